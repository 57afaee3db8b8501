//! Where the question ends and the choice begins, in tokens.
//!
//! Query and choice are joined by one space and tokenized as one text, because that is the text
//! whose likelihood is asked for. What is scored begins at the first token that differs from those
//! of the query alone, in any of the choices: a merge across the border belongs to the choice, and
//! all choices are scored from the same place.

use super::Question;
use crate::role::RunError;
use crate::text::Tokenizer;

/// A question in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// What all choices have in front, the query's tokens first; never empty.
    pub shared: Vec<u32>,
    /// From here on tokens are scored; at least 1, as the first token has nothing in front.
    pub first_scored: usize,
    /// What each choice has behind `shared`.
    pub rests: Vec<Vec<u32>>,
    /// Whether the query's beginning was left out.
    pub truncated: bool,
}

impl Cut {
    /// Tokens of the longest choice with all in front of it.
    pub(super) fn longest(&self) -> usize {
        self.shared.len() + self.rests.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Tokens that are run.
    pub(super) fn tokens(&self) -> usize {
        self.shared.len() + self.rests.iter().map(Vec::len).sum::<usize>()
    }
}

/// Length of what both begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Cuts `question` into tokens, `ctx` at most: of a longer query the beginning is left out.
///
/// # Errors
/// When a choice alone is longer than `ctx`, or the query is empty and the vocabulary has no token
/// to begin a text with.
pub(super) fn cut(tokenizer: &Tokenizer, question: &Question, ctx: usize) -> Result<Cut, RunError> {
    let query = tokenizer.encode(&question.query, false);
    let texts = question.choices.iter().map(|choice| {
        if question.query.is_empty() {
            tokenizer.encode(choice, false)
        } else {
            tokenizer.encode(&format!("{} {choice}", question.query), false)
        }
    });
    let mut texts: Vec<Vec<u32>> = texts.collect();
    let mut first_scored = texts.iter().map(|t| common(&query, t)).min().unwrap_or(0);
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let begin = match (bos, first_scored) {
        (Some(bos), _) => Some(bos),
        (None, 1..) => None,
        // Something must stand in front of the first token that is scored; where no BOS does,
        // texts are parted by EOS.
        (None, 0) => Some(tokenizer.eos().or(tokenizer.bos()).ok_or_else(|| {
            RunError::Request(format!(
                "the question {} has no text in front of its choices, and the model has no token to begin with",
                question.start()
            ))
        })?),
    };
    if let Some(begin) = begin {
        first_scored += 1;
        for t in &mut texts {
            t.insert(0, begin);
        }
    }
    let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
    let surplus = longest.saturating_sub(ctx);
    if surplus > 0 {
        let from = usize::from(begin.is_some());
        // At least one token stays in front of what is scored.
        if from + surplus + usize::from(from == 0) > first_scored {
            return Err(RunError::Request(format!(
                "a choice of the question {} alone is longer than the context of {ctx} tokens; raise it with -c",
                question.start()
            )));
        }
        for t in &mut texts {
            t.drain(from..from + surplus);
        }
        first_scored -= surplus;
    }
    let mut shared = texts.first().cloned().unwrap_or_default();
    for t in &texts {
        shared.truncate(common(&shared, t));
    }
    Ok(Cut {
        first_scored,
        rests: texts.iter().map(|t| t[shared.len()..].to_vec()).collect(),
        shared,
        truncated: surplus > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Vocab;
    use formats::gguf::{Metadata, Value};

    /// A byte-level vocabulary with a merge over spaces and one over a letter and a space.
    fn tokenizer() -> Tokenizer {
        let mut m = Metadata::default();
        let mut next = 0x100;
        let mut pieces: Vec<String> = (0..=255_u8)
            .map(|b| match b {
                0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b).to_string(),
                _ => {
                    next += 1;
                    char::from_u32(next - 1).unwrap().to_string()
                }
            })
            .collect();
        pieces.push("ĠĠ".into());
        pieces.push("Ġa".into());
        pieces.push("<|end|>".into());
        let mut kinds = vec![1; pieces.len()];
        *kinds.last_mut().unwrap() = 3;
        m.set("tokenizer.ggml.model", Value::string("gpt2"));
        m.set("tokenizer.ggml.pre", Value::string("qwen2"));
        m.set("tokenizer.ggml.tokens", Value::string_array(&pieces));
        m.set("tokenizer.ggml.token_type", Value::i32_array(&kinds));
        m.set(
            "tokenizer.ggml.merges",
            Value::string_array(&["Ġ Ġ", "Ġ a"]),
        );
        m.set("tokenizer.ggml.eos_token_id", Value::u32(258));
        m.set("tokenizer.ggml.add_bos_token", Value::bool(false));
        Tokenizer::from_vocab(Vocab::from_metadata(&m).unwrap()).unwrap()
    }

    fn question(query: &str, choices: &[&str]) -> Question {
        Question {
            query: query.into(),
            choices: choices.iter().map(|c| (*c).to_owned()).collect(),
            gold: 0,
        }
    }

    fn id(b: u8) -> u32 {
        u32::from(b)
    }

    #[test]
    fn the_space_belongs_to_the_choice() {
        let t = tokenizer();
        let c = cut(&t, &question("xy", &["abc", "abd", "b"]), 100).unwrap();
        assert_eq!(c.shared, [id(b'x'), id(b'y')]);
        assert_eq!(c.first_scored, 2);
        // " a" is one token, " b" two.
        assert_eq!(c.rests[0], [257, id(b'b'), id(b'c')]);
        assert_eq!(c.rests[2], [id(b' '), id(b'b')]);
        let c = cut(&t, &question("xy", &["abc", "abd"]), 100).unwrap();
        assert_eq!(c.shared.len(), 4, "what choices share is run once");
        assert_eq!((c.first_scored, c.tokens(), c.longest()), (2, 6, 5));
    }

    #[test]
    fn a_merge_over_the_border_is_scored() {
        let t = tokenizer();
        // The query's space alone is a token; joined, two spaces are one.
        assert_eq!(t.encode("x ", false), [id(b'x'), id(b' ')]);
        let c = cut(&t, &question("x ", &[" b", "b"]), 100).unwrap();
        assert_eq!(c.first_scored, 1);
        for (rest, choice) in c.rests.iter().zip([" b", "b"]) {
            let whole = t.encode(&format!("x  {choice}"), false);
            assert_eq!([&c.shared[..], rest].concat(), whole);
        }
    }

    #[test]
    fn long_questions_lose_their_beginning_and_empty_ones_get_one() {
        let t = tokenizer();
        let c = cut(&t, &question("0123456789", &["abc", "b"]), 8).unwrap();
        assert!(c.truncated);
        assert_eq!(c.longest(), 8);
        assert_eq!(c.shared, "56789".bytes().map(id).collect::<Vec<_>>());
        assert_eq!(c.first_scored, 5);
        let said = cut(&t, &question("x", &["abcdefgh", "b"]), 8).unwrap_err();
        assert!(said.to_string().contains("raise it with -c"), "{said}");
        let c = cut(&t, &question("", &["ab", "b"]), 8).unwrap();
        assert_eq!((c.shared.as_slice(), c.first_scored), (&[258][..], 1));
        assert_eq!(c.rests[0], [id(b'a'), id(b'b')]);
    }
}
