//! The vocabulary of a GGUF file: texts, scores, kinds, and the ids with a role.
//!
//! Defaults and the tokens found by their text follow llama.cpp (`llama-vocab.cpp`), because the
//! metadata alone often leaves them out.

use std::collections::{BTreeSet, HashMap};

use formats::gguf::{Array, Metadata, Value, ValueType};
use formats::model::END_TEXTS;

use super::{PreTokenizer, TextError};

const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// Longest text of a token that is looked for in a prompt before anything else, in bytes. It
/// bounds the work that a file can ask for; real ones have below 40.
const MAX_SPECIAL_LEN: usize = 256;

/// Which algorithm cuts text into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// SentencePiece BPE: scores, no merges, bytes as fallback (`llama`).
    Spm,
    /// Byte-level BPE: merges and a pre-tokenizer (`gpt2`).
    Bpe,
}

/// What kind of token it is. llama.cpp may give one token several kinds, so it is a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr(u8);

impl Attr {
    /// No kind that counts; prints nothing.
    pub const NONE: Self = Self(0);
    /// The unknown token.
    pub const UNKNOWN: Self = Self(1);
    /// Reserved.
    pub const UNUSED: Self = Self(2);
    /// Ordinary text.
    pub const NORMAL: Self = Self(4);
    /// Steers the model; never printed.
    pub const CONTROL: Self = Self(8);
    /// Text that is cut out before anything else.
    pub const USER_DEFINED: Self = Self(16);
    /// One byte, written `<0x0A>`.
    pub const BYTE: Self = Self(32);
    /// White space after it belongs to it.
    pub const RSTRIP: Self = Self(64);

    /// Whether the two sets share a kind.
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Control or unknown: in a text only when the text's author may write special tokens.
    pub const fn is_special(self) -> bool {
        self.any(Self::CONTROL.with(Self::UNKNOWN))
    }

    fn from_token_type(t: i32) -> Self {
        match t {
            1 => Self::NORMAL,
            2 => Self::UNKNOWN,
            3 => Self::CONTROL,
            4 => Self::USER_DEFINED,
            5 => Self::UNUSED,
            6 => Self::BYTE,
            _ => Self::NONE,
        }
    }
}

/// Two neighbours that become one.
type Merge = (Box<[u8]>, Box<[u8]>);

#[derive(Clone, Debug)]
struct Entry {
    text: Box<[u8]>,
    score: f32,
    attr: Attr,
}

/// A vocabulary, checked: every id it hands out is below [`Vocab::len`].
#[derive(Clone, Debug)]
pub struct Vocab {
    model: Model,
    pre: PreTokenizer,
    entries: Vec<Entry>,
    index: HashMap<Box<[u8]>, u32>,
    merges: Vec<Merge>,
    max_len: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unk: Option<u32>,
    eog: BTreeSet<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
}

/// An id found by its key, else by one of the texts models give it; the found token becomes a
/// control token.
struct Role {
    key: &'static str,
    texts: &'static [&'static str],
    ends_generation: bool,
}

const EOT: Role = Role {
    key: "tokenizer.ggml.eot_token_id",
    texts: &[
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ],
    ends_generation: true,
};

const OTHER_ROLES: [Role; 7] = [
    Role {
        key: "tokenizer.ggml.eom_token_id",
        texts: &["<|eom_id|>"],
        ends_generation: true,
    },
    Role {
        key: "tokenizer.ggml.fim_pre_token_id",
        texts: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        ends_generation: false,
    },
    Role {
        key: "tokenizer.ggml.fim_suf_token_id",
        texts: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        ends_generation: false,
    },
    Role {
        key: "tokenizer.ggml.fim_mid_token_id",
        texts: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        ends_generation: false,
    },
    Role {
        key: "tokenizer.ggml.fim_pad_token_id",
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends_generation: true,
    },
    Role {
        key: "tokenizer.ggml.fim_rep_token_id",
        texts: &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
        ends_generation: true,
    },
    Role {
        key: "tokenizer.ggml.fim_sep_token_id",
        texts: &["<|file_sep|>"],
        ends_generation: true,
    },
];

impl Vocab {
    /// Reads and checks the `tokenizer.ggml.*` keys.
    ///
    /// An id out of range falls back to the model's default id, as in llama.cpp.
    ///
    /// # Errors
    /// A key missing or of another type, arrays shorter than the vocabulary, a tokenizer or
    /// pre-tokenizer this program does not know, two tokens with one text.
    pub fn from_metadata(meta: &Metadata) -> Result<Self, TextError> {
        let model = match text(meta, "tokenizer.ggml.model")? {
            Some("llama") => Model::Spm,
            Some("gpt2") => Model::Bpe,
            Some(other) => return Err(TextError::UnknownModel(other.to_owned())),
            None => {
                return Err(TextError::Missing {
                    key: "tokenizer.ggml.model",
                });
            }
        };
        let pre = match (model, text(meta, "tokenizer.ggml.pre")?) {
            (Model::Spm, _) | (Model::Bpe, None | Some("")) => PreTokenizer::Default,
            (Model::Bpe, Some(name)) => PreTokenizer::from_name(name)
                .ok_or_else(|| TextError::UnknownPreTokenizer(name.to_owned()))?,
        };
        let entries = read_entries(meta)?;
        let mut index = HashMap::with_capacity(entries.len());
        for (id, e) in entries.iter().enumerate() {
            if let Some(first) = index.insert(e.text.clone(), id as u32) {
                return Err(TextError::DuplicateToken {
                    first,
                    second: id as u32,
                    text: String::from_utf8_lossy(&e.text).into_owned(),
                });
            }
        }
        let merges = match model {
            Model::Spm => Vec::new(),
            Model::Bpe => read_merges(meta)?,
        };
        let (bos, eos, unk) = match model {
            Model::Spm => (1, 2, Some(0)),
            Model::Bpe => (11, 11, None),
        };
        let mut vocab = Self {
            model,
            pre,
            max_len: entries.iter().map(|e| e.text.len()).max().unwrap_or(0),
            entries,
            index,
            merges,
            bos: None,
            eos: None,
            eot: None,
            unk: None,
            eog: BTreeSet::new(),
            add_bos: flag(meta, "tokenizer.ggml.add_bos_token")?
                .unwrap_or(model == Model::Spm || pre.adds_bos()),
            add_eos: flag(meta, "tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            // Only SentencePiece looks at it; a byte-level file that sets it would lose a space
            // when text is decoded.
            add_space_prefix: model == Model::Spm
                && flag(meta, "tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
        };
        vocab.bos = vocab.id_of(meta, "tokenizer.ggml.bos_token_id", Some(bos));
        vocab.eos = vocab.id_of(meta, "tokenizer.ggml.eos_token_id", Some(eos));
        vocab.unk = vocab.id_of(meta, "tokenizer.ggml.unknown_token_id", unk);
        vocab.find_roles(meta);
        vocab.strip_after_specials(meta);
        for e in &vocab.entries {
            if e.attr.any(Attr::USER_DEFINED) || e.attr.is_special() {
                let len = e.text.len();
                if len > MAX_SPECIAL_LEN {
                    return Err(TextError::BadVocabulary(format!(
                        "a special token is {len} bytes long, the limit is {MAX_SPECIAL_LEN}"
                    )));
                }
            }
        }
        for (on, id, name) in [
            (vocab.add_bos, vocab.bos, "bos"),
            (vocab.add_eos, vocab.eos, "eos"),
        ] {
            if on && id.is_none() {
                return Err(TextError::BadVocabulary(format!(
                    "it asks for a {name} token and has none: set `tokenizer.ggml.{name}_token_id`, \
                     or `tokenizer.ggml.add_{name}_token` to false"
                )));
            }
        }
        Ok(vocab)
    }

    fn id_of(&self, meta: &Metadata, key: &str, default: Option<u32>) -> Option<u32> {
        let in_range = |id: &u32| (*id as usize) < self.entries.len();
        let default = default.filter(in_range);
        meta.get(key)
            .and_then(Value::as_u32)
            .filter(in_range)
            .or(default)
    }

    /// The role's token: by key, else the lowest id whose text is one of the role's.
    fn role(&mut self, meta: &Metadata, role: &Role) -> Option<u32> {
        if let Some(id) = self.id_of(meta, role.key, None) {
            return Some(id);
        }
        let id = role
            .texts
            .iter()
            .filter_map(|t| self.id(t.as_bytes()))
            .min()?;
        self.make_control(id);
        Some(id)
    }

    fn make_control(&mut self, id: u32) {
        if let Some(e) = self.entries.get_mut(id as usize) {
            e.attr = e.attr.with(Attr::CONTROL);
        }
    }

    fn find_roles(&mut self, meta: &Metadata) {
        self.eot = self.role(meta, &EOT);
        self.eog.extend(self.eot);
        for role in &OTHER_ROLES {
            let id = self.role(meta, role);
            if role.ends_generation {
                self.eog.extend(id);
            }
        }
        for text in END_TEXTS {
            if let Some(id) = self.id(text.as_bytes()) {
                self.make_control(id);
                self.eog.insert(id);
            }
        }
        self.eog.extend(self.eos);
    }

    /// Phi-3's tokens swallow the white space behind them; only the model's name tells.
    fn strip_after_specials(&mut self, meta: &Metadata) {
        let name = meta.get("general.name").and_then(Value::as_str);
        let name = name.unwrap_or_default().to_lowercase();
        if !(name.contains("phi-3") || name.contains("phi3")) {
            return;
        }
        for e in &mut self.entries {
            let special = e.attr.any(Attr::USER_DEFINED) || e.attr.is_special();
            let keeps = matches!(&*e.text, b"<unk>" | b"<s>" | b"<|endoftext|>");
            if special && !keeps {
                e.attr = e.attr.with(Attr::RSTRIP);
            }
        }
    }

    /// Which algorithm.
    pub fn model(&self) -> Model {
        self.model
    }

    /// Which pre-tokenizer; `Default` for SentencePiece, which has none.
    pub fn pre_tokenizer(&self) -> PreTokenizer {
        self.pre
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Never true of a vocabulary that was read.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The token with exactly this text.
    pub fn id(&self, text: &[u8]) -> Option<u32> {
        self.index.get(text).copied()
    }

    /// The token's text as it stands in the file (`▁` and byte-level letters unchanged); empty for
    /// an id out of range.
    pub fn text(&self, id: u32) -> &[u8] {
        self.entries.get(id as usize).map_or(&[], |e| &e.text)
    }

    /// The token's score; 0 where the file has none. Never NaN.
    pub fn score(&self, id: u32) -> f32 {
        self.entries.get(id as usize).map_or(0.0, |e| e.score)
    }

    /// The token's kinds.
    pub fn attr(&self, id: u32) -> Attr {
        self.entries.get(id as usize).map_or(Attr::NONE, |e| e.attr)
    }

    /// Pairs to merge, best first; empty for SentencePiece.
    pub fn merges(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.merges.iter().map(|(a, b)| (&**a, &**b))
    }

    /// Bytes of the longest token.
    pub fn max_token_len(&self) -> usize {
        self.max_len
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// End of turn.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// The unknown token.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Every token that ends a generation, in order.
    pub fn eog(&self) -> &BTreeSet<u32> {
        &self.eog
    }

    /// Whether a prompt starts with [`Vocab::bos`].
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a prompt ends with [`Vocab::eos`].
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Whether text gets a leading space before it is cut.
    pub fn add_space_prefix(&self) -> bool {
        self.add_space_prefix
    }
}

fn wrong(key: &'static str, wanted: &'static str, v: &Value) -> TextError {
    TextError::WrongType {
        key,
        wanted,
        found: match v.as_array() {
            Some(a) => format!("an array of {}", a.elem_type()),
            None => format!("a {}", v.value_type()),
        },
    }
}

fn text<'a>(meta: &'a Metadata, key: &'static str) -> Result<Option<&'a str>, TextError> {
    meta.get(key)
        .map(|v| v.as_str().ok_or_else(|| wrong(key, "a string", v)))
        .transpose()
}

fn flag(meta: &Metadata, key: &'static str) -> Result<Option<bool>, TextError> {
    meta.get(key)
        .map(|v| v.as_bool().ok_or_else(|| wrong(key, "a bool", v)))
        .transpose()
}

fn array<'a>(
    meta: &'a Metadata,
    key: &'static str,
    elem: ValueType,
    wanted: &'static str,
) -> Result<Option<Array<'a>>, TextError> {
    meta.get(key)
        .map(|v| {
            v.as_array()
                .filter(|a| a.elem_type() == elem)
                .ok_or_else(|| wrong(key, wanted, v))
        })
        .transpose()
}

fn strings<'a>(
    meta: &'a Metadata,
    key: &'static str,
) -> Result<impl Iterator<Item = &'a [u8]> + use<'a>, TextError> {
    array(meta, key, ValueType::String, "an array of strings")?
        .and_then(|a| a.strings())
        .ok_or(TextError::Missing { key })
}

fn read_entries(meta: &Metadata) -> Result<Vec<Entry>, TextError> {
    let mut entries: Vec<Entry> = strings(meta, TOKENS)?
        .enumerate()
        .map(|(i, t)| Entry {
            // llama.cpp's stand-in, so that a text lookup never finds the empty string
            text: if t.is_empty() {
                format!("[EMPTY_{i}]").into_bytes().into()
            } else {
                t.into()
            },
            score: 0.0,
            attr: Attr::NORMAL,
        })
        .collect();
    let tokens = entries.len();
    if tokens == 0 {
        return Err(TextError::BadVocabulary(format!("`{TOKENS}` is empty")));
    }
    if u32::try_from(tokens).is_err() {
        return Err(TextError::BadVocabulary(format!("{tokens} tokens")));
    }
    let long_enough = |key, found| {
        if found < tokens {
            return Err(TextError::WrongLength { key, found, tokens });
        }
        Ok(())
    };
    if let Some(v) = meta.get(SCORES) {
        let a = v.as_array();
        let floats: Vec<f32> = match (a.and_then(|a| a.f32s()), a.and_then(|a| a.i32s())) {
            (Some(f), _) => f.collect(),
            (None, Some(i)) => i.map(|s| s as f32).collect(),
            (None, None) => return Err(wrong(SCORES, "an array of f32", v)),
        };
        long_enough(SCORES, floats.len())?;
        for (e, s) in entries.iter_mut().zip(floats) {
            // the sum turns −0 into 0, which must order alike
            e.score = if s.is_nan() {
                f32::NEG_INFINITY
            } else {
                s + 0.0
            };
        }
    }
    if let Some(a) = array(meta, TYPES, ValueType::I32, "an array of i32")? {
        long_enough(TYPES, a.len())?;
        for (e, t) in entries.iter_mut().zip(a.i32s().into_iter().flatten()) {
            e.attr = Attr::from_token_type(t);
        }
    }
    Ok(entries)
}

/// Splits each merge at its first space after the first byte: the left part may itself start
/// with one.
fn read_merges(meta: &Metadata) -> Result<Vec<Merge>, TextError> {
    let split = |m: &[u8]| {
        let at = m.iter().skip(1).position(|b| *b == b' ')? + 1;
        Some((m.get(..at)?.into(), m.get(at + 1..)?.into()))
    };
    // one without a space merges nothing; it keeps its rank
    Ok(strings(meta, MERGES)?
        .map(|m| split(m).unwrap_or_default())
        .collect())
}
