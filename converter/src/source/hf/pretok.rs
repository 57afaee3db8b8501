//! `tokenizer.ggml.pre`: the name of the rule that cuts text into words.
//!
//! llama.cpp's conversion knows a rule by the ids that a whole tokenizer gives to one test text.
//! So do we, where the rule is one that splitrun has; a vocabulary that is not in the table is
//! known by the rule's pattern. The pipeline is rebuilt from the parts recognised, so nothing
//! in the file is ever run.

use std::collections::{HashMap, HashSet};

use sha2::{Digest as _, Sha256};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::HfError;
use super::folder::Folder;
use super::tokenizer_json::{self, Step, TokenizerJson};

/// The text that llama.cpp's conversion tokenises.
const TEXT: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫\u{fe0f} (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL";

/// SHA-256 of the ids, written as Python writes a list, of the tokenizers whose rule splitrun has.
const KNOWN: [(&str, &str); 8] = [
    (
        "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",
        "llama-bpe",
    ),
    (
        "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249",
        "smollm",
    ),
    (
        "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
        "qwen2",
    ),
    (
        "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c",
        "qwen2",
    ),
    (
        "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5",
        "deepseek-r1-qwen",
    ),
    (
        "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821",
        "deepseek-coder",
    ),
    (
        "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454",
        "gpt-2",
    ),
    (
        "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4",
        "gpt-2",
    ),
];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const DEEPSEEK_CODER: [&str; 4] = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"];

/// A rule that splitrun has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    DeepseekCoder,
    Gpt2,
    Llama3,
    Qwen2,
    Smollm,
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Self::DeepseekCoder => "deepseek-coder",
            Self::Gpt2 => "gpt-2",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
            Self::Smollm => "smollm",
        }
    }

    /// The rule that these steps are.
    fn of(steps: &[&Step], ignores_merges: bool) -> Option<Self> {
        // A space put in front of a text is something that a byte-level GGUF cannot say.
        let bytes = |s: &Step, regex: bool| {
            s.kind == "ByteLevel"
                && s.add_prefix_space == Some(false)
                && s.use_regex.unwrap_or(true) == regex
        };
        let split = |s: &Step, wanted: &str| {
            let regex = s.pattern.as_ref().and_then(|p| p.regex.as_deref());
            let isolated = s.behavior.as_deref() == Some("Isolated");
            s.kind == "Split" && isolated && !s.invert && regex == Some(wanted)
        };
        let digits = |s: &Step| s.kind == "Digits" && s.individual_digits == Some(true);
        match steps {
            [b] if bytes(b, true) => Some(Self::Gpt2),
            [d, b] if digits(d) && bytes(b, true) => Some(Self::Smollm),
            [words @ .., d, b]
                if words.len() == DEEPSEEK_CODER.len()
                    && words.iter().zip(DEEPSEEK_CODER).all(|(s, w)| split(s, w))
                    && digits(d)
                    && bytes(b, false) =>
            {
                Some(Self::DeepseekCoder)
            }
            // llama.cpp takes whole words first under this name.
            [s, b] if split(s, LLAMA3) && bytes(b, false) && ignores_merges => Some(Self::Llama3),
            [s, b] if split(s, QWEN2) && bytes(b, false) => Some(Self::Qwen2),
            _ => None,
        }
    }

    /// The steps again, from what is known of them.
    fn steps(self) -> tokenizers::Result<Vec<PreTokenizerWrapper>> {
        let split = |pattern: &str| -> tokenizers::Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
        };
        let bytes = |regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, regex));
        Ok(match self {
            Self::DeepseekCoder => {
                let words = DEEPSEEK_CODER.iter().map(|w| split(w));
                let mut steps = words.collect::<tokenizers::Result<Vec<_>>>()?;
                steps.extend([Digits::new(true).into(), bytes(false)]);
                steps
            }
            Self::Gpt2 => vec![bytes(true)],
            Self::Llama3 => vec![split(LLAMA3)?, bytes(false)],
            Self::Qwen2 => vec![split(QWEN2)?, bytes(false)],
            Self::Smollm => vec![Digits::new(true).into(), bytes(true)],
        })
    }
}

/// The value of `tokenizer.ggml.pre` for a byte-level vocabulary.
pub(super) fn name(folder: &Folder, json: &TokenizerJson) -> Result<&'static str, HfError> {
    let path = folder.join(tokenizer_json::NAME);
    let steps = json.pre_tokenizer.as_ref().map(Step::flat);
    let rule = Rule::of(&steps.unwrap_or_default(), json.ignores_merges());
    let normalizers = json.normalizer.as_ref().map(Step::flat).unwrap_or_default();
    let plain = normalizers.iter().all(|n| n.kind == "NFC");
    let Some(rule) = rule.filter(|_| plain) else {
        return Err(HfError::Unsupported {
            path,
            what: format!("its pre-tokenizer ({})", describe(json)),
            way_out: "splitrun has those of GPT-2, Llama 3, Qwen2, SmolLM and DeepSeek Coder: choose a model with one of them",
        });
    };
    let ids = ids(json, rule, !normalizers.is_empty()).map_err(|e| HfError::Vocabulary {
        path,
        why: format!("its merges cannot be used: {e}"),
        way_out: "fetch the file again",
    })?;
    let hash = fingerprint(&ids);
    let known = KNOWN.iter().find(|(h, _)| *h == hash);
    Ok(known.map_or(rule.name(), |(_, name)| name))
}

/// The steps of a pipeline in words.
fn describe(json: &TokenizerJson) -> String {
    let kinds = |step: &Option<Step>| {
        let steps = step.as_ref().map(Step::flat).unwrap_or_default();
        let kinds: Vec<String> = steps
            .iter()
            .map(|s| {
                let regex = s.pattern.as_ref().and_then(|p| p.regex.as_deref());
                let name: String = s.kind.chars().take(32).collect();
                match regex {
                    None => name,
                    Some(regex) => {
                        let short: String = regex.chars().take(120).collect();
                        format!("{name} {short}")
                    }
                }
            })
            .collect();
        if kinds.is_empty() {
            "none".to_owned()
        } else {
            kinds.join(" + ")
        }
    };
    format!(
        "{}, after normalizer {}",
        kinds(&json.pre_tokenizer),
        kinds(&json.normalizer)
    )
}

/// The ids of the test text, with what the tokenizer adds around a text.
fn ids(json: &TokenizerJson, rule: Rule, nfc: bool) -> tokenizers::Result<Vec<u32>> {
    let mut texts: HashMap<String, u32> = json.vocab().iter().cloned().collect();
    for added in json.added() {
        texts.entry(added.content.clone()).or_insert(added.id);
    }
    let mut seen = HashSet::new();
    let merges: Vec<(String, String)> = json
        .merges()
        .iter()
        .filter(|m| {
            let whole = format!("{}{}", m.left, m.right);
            let parts = [&m.left, &m.right, &whole];
            parts.iter().all(|t| texts.contains_key(*t)) && seen.insert((&m.left, &m.right))
        })
        .map(|m| (m.left.clone(), m.right.clone()))
        .collect();
    let vocab: tokenizers::models::bpe::Vocab = texts.clone().into_iter().collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(json.ignores_merges())
        .build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    if nfc {
        tokenizer.with_normalizer(Some(NFC))?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(rule.steps()?)));
    // Special tokens do not occur in the text; others, as runs of spaces, may.
    let plain = json.added().iter().filter(|a| !a.special);
    let plain = plain.map(|a| AddedToken::from(a.content.clone(), false));
    tokenizer.add_tokens(plain)?;
    let encoding = tokenizer.encode(TEXT, false)?;
    let id = |text: &str| texts.get(text).copied();
    let (before, after) = around(json);
    Ok(before
        .iter()
        .filter_map(|t| id(t))
        .chain(encoding.get_ids().iter().copied())
        .chain(after.iter().filter_map(|t| id(t)))
        .collect())
}

/// The tokens that a template puts before and after a text.
fn around(json: &TokenizerJson) -> (Vec<&str>, Vec<&str>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let processors = json.post_processor.as_ref().map(|p| p.flat());
    for p in processors.unwrap_or_default() {
        if p.kind != "TemplateProcessing" {
            continue;
        }
        let mut text = false;
        for piece in &p.single.0 {
            match piece.token() {
                Some(token) if text => after.push(token),
                Some(token) => before.push(token),
                None => text |= piece.sequence().is_some(),
            }
        }
    }
    (before, after)
}

/// SHA-256 of the ids as Python writes a list.
fn fingerprint(ids: &[u32]) -> String {
    let hash = Sha256::digest(format!("{ids:?}"));
    let digit = |d: u8| char::from_digit(u32::from(d), 16);
    let pair = |b: &u8| [digit(b >> 4), digit(b & 15)];
    hash.iter().flat_map(pair).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pre_tokenizer: &str, ignores_merges: bool) -> Option<Rule> {
        let step: Step = serde_json::from_str(pre_tokenizer).unwrap();
        Rule::of(&step.flat(), ignores_merges)
    }

    #[test]
    fn rules_are_known_by_their_steps() {
        let bytes = |regex: bool| {
            format!(r#"{{"type":"ByteLevel","add_prefix_space":false,"use_regex":{regex}}}"#)
        };
        assert_eq!(rule(&bytes(true), false), Some(Rule::Gpt2));
        let sequence = |first: &str, regex| {
            format!(
                r#"{{"type":"Sequence","pretokenizers":[{first},{}]}}"#,
                bytes(regex)
            )
        };
        let digits = r#"{"type":"Digits","individual_digits":true}"#;
        assert_eq!(rule(&sequence(digits, true), false), Some(Rule::Smollm));
        let split = |regex: &str| {
            let regex = serde_json::to_string(regex).unwrap();
            format!(
                r#"{{"type":"Split","pattern":{{"Regex":{regex}}},"behavior":"Isolated","invert":false}}"#
            )
        };
        let qwen = sequence(&split(QWEN2), false);
        assert_eq!(rule(&qwen, false), Some(Rule::Qwen2));
        let llama = sequence(&split(LLAMA3), false);
        assert_eq!(rule(&llama, true), Some(Rule::Llama3));
        assert_eq!(rule(&llama, false), None, "words are merged there");
        assert_eq!(rule(&sequence(&split(r"\d+"), false), true), None);
        let spaced = r#"{"type":"ByteLevel","add_prefix_space":true}"#;
        assert_eq!(rule(spaced, false), None);
    }

    #[test]
    fn lists_are_written_as_python_does() {
        assert_eq!(format!("{:?}", [1, 2, 3]), "[1, 2, 3]");
        assert_eq!(fingerprint(&[]).len(), 64);
    }
}
