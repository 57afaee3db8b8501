//! Pre-tokenizers: how byte-level BPE cuts text into words before it merges.
//!
//! The published patterns end in `\s+(?!\S)|\s+`: a run of white space leaves its last character
//! to the word behind it. The look-ahead is done here in code instead, so that the patterns stay
//! plain regular expressions and every input takes linear time.

use fancy_regex::Regex;

use super::TextError;

/// A named way to cut text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// llama.cpp's fallback for files that name none (`default`).
    Default,
    /// GPT-2 (`gpt-2`).
    Gpt2,
    /// Llama 3 (`llama-bpe`).
    LlamaBpe,
    /// SmolLM, SmolLM2 (`smollm`).
    Smollm,
    /// Qwen2, Qwen2.5 and what is distilled into them (`qwen2`): Llama 3's words, but every digit
    /// alone.
    Qwen2,
    /// DeepSeek-Coder (`deepseek-coder`).
    DeepseekCoder,
}

const GPT2: &str = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const QWEN2: &str = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";

/// Compiles a pattern over the letters and digits of Unicode 15, the version that llama.cpp's
/// tables have; later ones would cut text in new scripts elsewhere.
fn compile(pattern: &str) -> Result<Regex, TextError> {
    let pattern = ["L", "N", "P"].iter().fold(pattern.to_owned(), |p, class| {
        let class = format!(r"\p{{{class}}}");
        p.replace(&class, &format!(r"[{class}&&\p{{age=15.0}}]"))
    });
    Regex::new(&pattern).map_err(|e| TextError::BadVocabulary(e.to_string()))
}

impl PreTokenizer {
    /// The names that files use.
    pub const NAMES: [&str; 10] = [
        "default",
        "gpt-2",
        "llama-bpe",
        "llama3",
        "llama-v3",
        "smollm",
        "qwen2",
        "deepseek-r1-qwen",
        "megrez",
        "deepseek-coder",
    ];

    /// The pre-tokenizer that a file names.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "default" => Self::Default,
            "gpt-2" => Self::Gpt2,
            "llama-bpe" | "llama3" | "llama-v3" => Self::LlamaBpe,
            "smollm" => Self::Smollm,
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self::Qwen2,
            "deepseek-coder" => Self::DeepseekCoder,
            _ => return None,
        })
    }

    /// Whether prompts start with BOS unless the file says otherwise.
    pub fn adds_bos(self) -> bool {
        self == Self::LlamaBpe
    }

    /// Whether a word that is a token is taken whole, whatever the merges say.
    pub fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }
}

#[derive(Debug)]
enum Stage {
    /// Matches and what lies between them become words of their own.
    Isolate(Regex),
    /// Every word is a match; a run of white space gives its last character back. With
    /// `newlines`, a run that ends in a line break is kept whole.
    Words { regex: Regex, newlines: bool },
}

/// The compiled stages; each cuts the words of the one before it.
#[derive(Debug)]
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

impl Splitter {
    pub(super) fn new(pre: PreTokenizer) -> Result<Self, TextError> {
        let isolate = |p: &str| compile(p).map(Stage::Isolate);
        let gpt2 = || {
            compile(GPT2).map(|regex| Stage::Words {
                regex,
                newlines: false,
            })
        };
        let stages = match pre {
            PreTokenizer::Default => vec![
                isolate(r"[\p{P}\$\+<=>\^~\|]+")?,
                gpt2()?,
                isolate(r"\p{N}+")?,
                isolate("[0-9][0-9][0-9]")?,
            ],
            PreTokenizer::Gpt2 => vec![gpt2()?],
            PreTokenizer::LlamaBpe => vec![Stage::Words {
                regex: compile(LLAMA3)?,
                newlines: true,
            }],
            PreTokenizer::Qwen2 => vec![Stage::Words {
                regex: compile(QWEN2)?,
                newlines: true,
            }],
            PreTokenizer::DeepseekCoder => vec![
                isolate(r"[\r\n]")?,
                isolate(r"\s?\p{L}+")?,
                isolate(r"\s?\p{P}+")?,
                isolate("[一-龥ࠀ-一가-퟿]+")?,
                isolate(r"\p{N}")?,
            ],
            PreTokenizer::Smollm => vec![isolate(r"\p{N}")?, gpt2()?],
        };
        Ok(Self { stages })
    }

    /// Calls `word` with each word of `text`, in order; together they are `text`.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        run(&self.stages, text, word);
    }
}

fn run<'t>(stages: &[Stage], text: &'t str, word: &mut dyn FnMut(&'t str)) {
    if text.is_empty() {
        return;
    }
    let Some((stage, rest)) = stages.split_first() else {
        return word(text);
    };
    let mut emit = |from: usize, to: usize| {
        if let Some(part) = text.get(from..to) {
            run(rest, part, word);
        }
    };
    let mut at = 0;
    match stage {
        Stage::Isolate(regex) => {
            // Err cannot happen: none of the patterns backtracks
            for m in regex.find_iter(text).map_while(Result::ok) {
                emit(at, m.start());
                emit(m.start(), m.end());
                at = m.end();
            }
        }
        Stage::Words { regex, newlines } => {
            while let Ok(Some(m)) = regex.find_from_pos(text, at) {
                let end = give_back(text, m.start(), m.end(), *newlines);
                if end <= at {
                    break;
                }
                emit(at, m.start());
                emit(m.start(), end);
                at = end;
            }
        }
    }
    emit(at, text.len());
}

/// Where a match really ends: `\s+(?!\S)` before `\s+`.
fn give_back(text: &str, start: usize, end: usize, newlines: bool) -> usize {
    if end == text.len() {
        return end;
    }
    match text.get(start..end).and_then(|m| m.chars().next_back()) {
        Some(c) if newlines && (c == '\r' || c == '\n') => end,
        Some(c) if c.is_whitespace() && end - c.len_utf8() > start => end - c.len_utf8(),
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: PreTokenizer, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        Splitter::new(pre)
            .unwrap()
            .split(text, &mut |w| out.push(w.to_owned()));
        assert_eq!(out.concat(), text);
        out
    }

    #[test]
    fn a_run_of_spaces_leaves_one_to_the_word() {
        for pre in [
            PreTokenizer::Gpt2,
            PreTokenizer::LlamaBpe,
            PreTokenizer::Smollm,
            PreTokenizer::Qwen2,
        ] {
            assert_eq!(words(pre, "a   b  "), ["a", "  ", " b", "  "], "{pre:?}");
        }
    }

    #[test]
    fn digits() {
        assert_eq!(words(PreTokenizer::Gpt2, "x 12345"), ["x", " 12345"]);
        assert_eq!(
            words(PreTokenizer::LlamaBpe, "x 12345"),
            ["x", " ", "123", "45"]
        );
        assert_eq!(
            words(PreTokenizer::Smollm, "x 123"),
            ["x", " ", "1", "2", "3"]
        );
        assert_eq!(
            words(PreTokenizer::Qwen2, "x123 (45)"),
            ["x", "1", "2", "3", " (", "4", "5", ")"]
        );
        assert_eq!(
            words(PreTokenizer::Default, "x 12345"),
            ["x", " ", "123", "45"]
        );
    }

    #[test]
    fn digits_are_those_of_unicode_15() {
        assert_eq!(words(PreTokenizer::Smollm, "!٣!"), ["!", "٣", "!"]);
        // a digit since Unicode 16
        assert_eq!(words(PreTokenizer::Smollm, "!\u{10d40}!"), ["!\u{10d40}!"]);
    }

    #[test]
    fn line_breaks() {
        for pre in [PreTokenizer::LlamaBpe, PreTokenizer::Qwen2] {
            assert_eq!(words(pre, "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        }
        assert_eq!(
            words(PreTokenizer::Gpt2, "a \n\n  b"),
            ["a", " \n\n ", " b"]
        );
    }

    #[test]
    fn contractions() {
        assert_eq!(
            words(PreTokenizer::DeepseekCoder, "I'd 12\n"),
            ["I", "'", "d", " ", "1", "2", "\n"]
        );
        assert_eq!(words(PreTokenizer::Gpt2, "I'LL"), ["I", "'", "LL"]);
        for pre in [PreTokenizer::LlamaBpe, PreTokenizer::Qwen2] {
            assert_eq!(words(pre, "I'LL"), ["I", "'LL"]);
        }
    }

    #[test]
    fn long_runs_are_linear() {
        let n = 1 << 20;
        for c in [" ", "\n", "a", "1", "!", "\u{a0}", "é"] {
            for pre in [
                PreTokenizer::Default,
                PreTokenizer::LlamaBpe,
                PreTokenizer::Smollm,
                PreTokenizer::Qwen2,
            ] {
                let _ = words(pre, &format!("{}x", c.repeat(n / c.len())));
            }
        }
    }
}
