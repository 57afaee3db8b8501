//! tokenizer.json, as far as a GGUF has room for it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::HfError;
use super::bounded::{BoundedMap, BoundedVec};
use super::folder::Folder;

/// The file's name.
pub(super) const NAME: &str = "tokenizer.json";
/// Largest file; vocabularies of 256,000 tokens have 35 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Most tokens.
const TOKENS: usize = 1 << 20;
/// Most merges.
const MERGES: usize = 1 << 22;
/// Most steps of a pipeline, and parts of a template.
const STEPS: usize = 64;

/// The file.
#[derive(Deserialize, Debug)]
pub(super) struct TokenizerJson {
    added_tokens: Option<BoundedVec<AddedToken, TOKENS>>,
    pub(super) normalizer: Option<Step>,
    pub(super) pre_tokenizer: Option<Step>,
    pub(super) post_processor: Option<PostProcessor>,
    pub(super) decoder: Option<Step>,
    pub(super) model: Model,
}

/// A token beside the model's vocabulary, or one of it with a special part.
#[derive(Clone, Deserialize, Debug)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
}

/// A normalizer, pre-tokenizer or decoder; a sequence holds others.
#[derive(Deserialize, Debug, Default)]
pub(super) struct Step {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(
        default,
        alias = "normalizers",
        alias = "pretokenizers",
        alias = "decoders"
    )]
    steps: BoundedVec<Step, STEPS>,
    pub(super) pattern: Option<Pattern>,
    pub(super) behavior: Option<String>,
    #[serde(default)]
    pub(super) invert: bool,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) use_regex: Option<bool>,
    pub(super) individual_digits: Option<bool>,
    pub(super) prepend: Option<String>,
    pub(super) prepend_scheme: Option<String>,
}

impl Step {
    /// The step itself, or the steps of the sequence that it is.
    pub(super) fn flat(&self) -> Vec<&Step> {
        if self.kind == "Sequence" {
            self.steps.0.iter().collect()
        } else {
            vec![self]
        }
    }
}

/// What a `Split` looks for.
#[derive(Deserialize, Debug)]
pub(super) struct Pattern {
    #[serde(rename = "Regex")]
    pub(super) regex: Option<String>,
}

/// What is added around a text.
#[derive(Deserialize, Debug)]
pub(super) struct PostProcessor {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    processors: BoundedVec<PostProcessor, STEPS>,
    #[serde(default)]
    pub(super) single: BoundedVec<Piece, STEPS>,
    #[serde(default)]
    pub(super) pair: BoundedVec<Piece, STEPS>,
    pub(super) cls: Option<(String, u32)>,
    pub(super) sep: Option<(String, u32)>,
}

impl PostProcessor {
    /// The processor itself, or those of the sequence that it is.
    pub(super) fn flat(&self) -> Vec<&PostProcessor> {
        if self.processors.0.is_empty() {
            vec![self]
        } else {
            self.processors.0.iter().collect()
        }
    }
}

/// A part of a template: a token or a text.
#[derive(Deserialize, Debug)]
pub(super) struct Piece {
    #[serde(rename = "SpecialToken")]
    token: Option<Named>,
    #[serde(rename = "Sequence")]
    sequence: Option<Named>,
}

#[derive(Deserialize, Debug)]
struct Named {
    id: String,
}

impl Piece {
    /// The token, where it is one.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|t| t.id.as_str())
    }

    /// `A` or `B`, where it is a text.
    pub(super) fn sequence(&self) -> Option<&str> {
        self.sequence.as_ref().map(|s| s.id.as_str())
    }
}

/// The vocabulary and its merges.
#[derive(Deserialize, Debug)]
pub(super) struct Model {
    vocab: BoundedMap<u32, TOKENS>,
    merges: Option<BoundedVec<Merge, MERGES>>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Two neighbours that become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) left: String,
    pub(super) right: String,
}

impl Merge {
    /// As GGUF has it: one text with a space between. A space inside becomes GPT-2's letter for
    /// it, as in llama.cpp's conversion.
    pub(super) fn joined(&self) -> String {
        let clean = |s: &str| s.replace(' ', "Ġ");
        format!("{} {}", clean(&self.left), clean(&self.right))
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: two texts, or one with a space between them")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
        let parts = text.split_once(' ');
        let (left, right) = parts.ok_or_else(|| E::custom("a merge without a space"))?;
        Ok(Merge {
            left: left.to_owned(),
            right: right.to_owned(),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
        let short = || A::Error::custom("a merge of less than two texts");
        let left = seq.next_element()?.ok_or_else(short)?;
        let right = seq.next_element()?.ok_or_else(short)?;
        match seq.next_element::<String>()? {
            None => Ok(Merge { left, right }),
            Some(_) => Err(A::Error::custom("a merge of more than two texts")),
        }
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(MergeVisitor)
    }
}

/// The type of the model, which decides whether the rest can be read at all.
#[derive(Deserialize)]
struct Head {
    model: HeadModel,
}

#[derive(Deserialize)]
struct HeadModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl TokenizerJson {
    /// Reads the folder's; `None` when it has none.
    pub(super) fn read(folder: &Folder) -> Result<Option<Self>, HfError> {
        let path = folder.join(NAME);
        let Some(head) = folder.typed::<Head>(NAME, MAX_BYTES)? else {
            return Ok(None);
        };
        if let Some(kind) = head.model.kind.filter(|k| k != "BPE") {
            let kind: String = kind.chars().take(64).collect();
            return Err(HfError::Unsupported {
                path,
                what: format!("a vocabulary of type `{kind}`"),
                way_out: "splitrun knows BPE: byte-level, or SentencePiece's",
            });
        }
        let Some(this) = folder.typed::<Self>(NAME, MAX_BYTES)? else {
            return Ok(None);
        };
        let affix = |a: &Option<String>| a.as_ref().is_some_and(|a| !a.is_empty());
        let m = &this.model;
        if affix(&m.continuing_subword_prefix) || affix(&m.end_of_word_suffix) {
            return Err(HfError::Unsupported {
                path,
                what: "a BPE vocabulary whose pieces have a prefix or suffix".to_owned(),
                way_out: "splitrun knows byte-level BPE and SentencePiece's",
            });
        }
        Ok(Some(this))
    }

    /// The tokens beside the model's own.
    pub(super) fn added(&self) -> &[AddedToken] {
        self.added_tokens.as_ref().map_or(&[], |a| &a.0)
    }

    /// The model's own tokens.
    pub(super) fn vocab(&self) -> &[(String, u32)] {
        &self.model.vocab.0
    }

    /// The merges, best first.
    pub(super) fn merges(&self) -> &[Merge] {
        self.model.merges.as_ref().map_or(&[], |m| &m.0)
    }

    /// Whether a word that is a token is taken whole.
    pub(super) fn ignores_merges(&self) -> bool {
        self.model.ignore_merges == Some(true)
    }

    /// Whether it is SentencePiece's kind of BPE: characters, with bytes for unknown ones.
    pub(super) fn is_sentencepiece(&self) -> bool {
        let decoder = self.decoder.as_ref().map(|d| d.kind.as_str());
        self.model.byte_fallback == Some(true) && decoder == Some("Sequence")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_in_both_spellings() {
        let merge = |text: &str| serde_json::from_str::<Merge>(text);
        assert_eq!(merge("\"a b\"").unwrap().joined(), "a b");
        assert_eq!(merge(r#"["a ","b"]"#).unwrap().joined(), "aĠ b");
        for bad in ["\"ab\"", "[\"a\"]", "[\"a\",\"b\",\"c\"]", "3", "[1,2]"] {
            assert!(merge(bad).is_err(), "{bad}");
        }
    }
}
