//! The vocabulary: `tokenizer.ggml.*`.
//!
//! Which file it is taken from, the kinds of tokens, padding and scores follow llama.cpp's
//! conversion, with one exception: a SentencePiece vocabulary that comes as tokenizer.json alone
//! has merges and no scores. There llama.cpp writes −1000 for every token, and text falls into
//! other tokens than the model was trained on; here a piece scores by the rank of its merge, which
//! gives the ids of the original tokenizer.

use std::collections::{BTreeMap, HashMap, HashSet};

use formats::gguf::{Metadata, Value};
use serde_json::{Map, Value as Json};

use super::HfError;
use super::config::{Arch, Config};
use super::folder::{Folder, TOKENIZER_CONFIG};
use super::special::{self, Special};
use super::tokenizer_json::{self, TokenizerJson};
use super::{pretok, sentencepiece};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of tokens that fill the vocabulary up.
const PADDING: f32 = -10_000.0;
/// Score of tokens that no merge makes.
const ADDED: f32 = -1_000.0;

/// Tokens beside those of tokenizer.model: text → id.
const ADDED_TOKENS: &str = "added_tokens.json";

/// A vocabulary as a GGUF has it.
struct Vocabulary {
    model: &'static str,
    pre: &'static str,
    tokens: Vec<Vec<u8>>,
    scores: Option<Vec<f32>>,
    kinds: Vec<i32>,
    merges: Vec<String>,
}

/// Writes the vocabulary of `n_vocab` tokens; returns what could not be carried over.
pub(super) fn write(
    folder: &Folder,
    config: &Config,
    n_vocab: usize,
    meta: &mut Metadata,
) -> Result<Vec<String>, HfError> {
    let tokenizer_config = special::tokenizer_config(folder)?;
    let told = tokenizer_config.as_ref();
    if config.arch != Arch::Qwen2 {
        let on = told
            .and_then(|c| c.get("add_prefix_space"))
            .and_then(Json::as_bool);
        if let Some(on) = on {
            meta.set("tokenizer.ggml.add_space_prefix", Value::bool(on));
        }
    }
    let json = TokenizerJson::read(folder)?;
    let vocabulary = match (sentencepiece::read(folder)?, &json) {
        (Some(pieces), _) => from_pieces(folder, &pieces, told, n_vocab)?,
        (None, Some(json)) if json.is_sentencepiece() && config.arch != Arch::Qwen2 => {
            if !prefixes_space(json) && meta.get("tokenizer.ggml.add_space_prefix").is_none() {
                meta.set("tokenizer.ggml.add_space_prefix", Value::bool(false));
            }
            from_merges(folder, json, told, n_vocab)?
        }
        (None, Some(json)) => byte_level(folder, json, told, n_vocab)?,
        (None, None) => {
            return Err(HfError::MissingFile {
                folder: folder.path().to_owned(),
                what: "the tokenizer (tokenizer.json or tokenizer.model)",
                way_out: "fetch it with the model, or save it anew with the transformers library",
            });
        }
    };
    let special = Special::read(folder, config, json.as_ref(), told, &vocabulary.tokens)?;
    vocabulary.write(meta);
    let notes = special.notes.clone();
    special.write(meta);
    exceptions(config, meta);
    Ok(notes)
}

/// What llama.cpp's conversion knows about single models.
fn exceptions(config: &Config, meta: &mut Metadata) {
    match config.n_vocab {
        // Code Llama: the end of a filled gap.
        Some(32_016) if config.arch != Arch::Qwen2 => {
            meta.set("tokenizer.ggml.eot_token_id", Value::u32(32_010));
        }
        // Granite and SmolLM.
        Some(49_152) if config.arch != Arch::Qwen2 => {
            meta.set("tokenizer.ggml.add_bos_token", Value::bool(false));
        }
        _ => {}
    }
}

impl Vocabulary {
    /// `n` unused tokens.
    fn blank(model: &'static str, pre: &'static str, n: usize) -> Self {
        Self {
            model,
            pre,
            tokens: (0..n).map(|i| format!("[PAD{i}]").into_bytes()).collect(),
            scores: Some(vec![PADDING; n]),
            kinds: vec![UNUSED; n],
            merges: Vec::new(),
        }
    }

    fn put(&mut self, id: usize, text: &str, score: f32, kind: i32) {
        let scores = self.scores.get_or_insert_default();
        if let (Some(token), Some(k), Some(s)) = (
            self.tokens.get_mut(id),
            self.kinds.get_mut(id),
            scores.get_mut(id),
        ) {
            *token = text.as_bytes().to_vec();
            *k = kind;
            *s = score;
        }
    }

    fn write(&self, meta: &mut Metadata) {
        meta.set("tokenizer.ggml.model", Value::string(self.model));
        meta.set("tokenizer.ggml.pre", Value::string(self.pre));
        meta.set("tokenizer.ggml.tokens", Value::string_array(&self.tokens));
        if let Some(scores) = &self.scores {
            meta.set("tokenizer.ggml.scores", Value::f32_array(scores));
        }
        meta.set("tokenizer.ggml.token_type", Value::i32_array(&self.kinds));
        if !self.merges.is_empty() {
            meta.set("tokenizer.ggml.merges", Value::string_array(&self.merges));
        }
    }
}

/// Tokens that steer a model although their file does not say so.
fn looks_special(text: &str) -> bool {
    let framed = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || framed("<|", "|>")
        || framed("<｜", "｜>")
        || framed("<unused", ">")
}

/// An added token as it is written: its text and kind.
fn added(text: &str, special: bool) -> (String, i32) {
    if special || looks_special(text) {
        (text.to_owned(), CONTROL)
    } else {
        (text.replace('▁', " "), USER_DEFINED)
    }
}

/// The tokens of `added_tokens_decoder` in tokenizer_config.json: id, text, whether special.
fn decoder(
    folder: &Folder,
    config: Option<&Map<String, Json>>,
) -> Result<BTreeMap<usize, (String, bool)>, HfError> {
    let mut all = BTreeMap::new();
    let Some(found) = config.and_then(|c| c.get("added_tokens_decoder")) else {
        return Ok(all);
    };
    let bad = |id: &str| {
        let id: String = id.chars().take(32).collect();
        let field = format!("added_tokens_decoder.{id}");
        HfError::field(&folder.join(TOKENIZER_CONFIG), &field, "is no token")
    };
    for (id, token) in found.as_object().into_iter().flatten() {
        let number: usize = id.parse().map_err(|_| bad(id))?;
        let text = token.get("content").and_then(Json::as_str);
        let text = text.ok_or_else(|| bad(id))?;
        let special = token.get("special").and_then(Json::as_bool);
        all.insert(number, (text.to_owned(), special.unwrap_or(false)));
    }
    Ok(all)
}

/// From tokenizer.model, with what was added to it.
fn from_pieces(
    folder: &Folder,
    pieces: &[sentencepiece::Piece],
    config: Option<&Map<String, Json>>,
    n_vocab: usize,
) -> Result<Vocabulary, HfError> {
    let mut v = Vocabulary::blank("llama", "default", n_vocab);
    // More pieces than rows of the embedding: the model cannot say them.
    for (id, p) in pieces.iter().enumerate().take(n_vocab) {
        let kind = match p.kind {
            Some(kind @ (UNKNOWN | CONTROL | UNUSED | BYTE)) => kind,
            _ => NORMAL,
        };
        v.put(id, &p.text, p.score, kind);
    }
    if let Some(list) = folder.json(ADDED_TOKENS)? {
        for (text, id) in list.as_object().into_iter().flatten() {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
            let id = id.ok_or_else(|| {
                let text: String = text.chars().take(32).collect();
                HfError::field(&folder.join(ADDED_TOKENS), &text, "has no id")
            })?;
            v.put(id, text, ADDED, USER_DEFINED);
        }
    }
    for (id, (text, special)) in decoder(folder, config)? {
        let (text, kind) = added(&text, special);
        v.put(id, &text, ADDED, kind);
    }
    Ok(v)
}

/// All tokens of a tokenizer.json by id: text, and whether added and special.
struct Texts<'a> {
    by_id: BTreeMap<usize, (&'a str, Option<bool>)>,
}

impl<'a> Texts<'a> {
    fn gather(
        folder: &Folder,
        json: &'a TokenizerJson,
        told: &'a BTreeMap<usize, (String, bool)>,
        n_vocab: usize,
    ) -> Result<Self, HfError> {
        let mut by_id = BTreeMap::new();
        let mut known = HashSet::new();
        for (text, id) in json.vocab() {
            by_id.insert(*id as usize, (text.as_str(), None));
            known.insert(text.as_str());
        }
        for a in json.added() {
            by_id.insert(a.id as usize, (a.content.as_str(), Some(a.special)));
            known.insert(a.content.as_str());
        }
        for (id, (text, special)) in told {
            if !known.contains(text.as_str()) {
                by_id.insert(*id, (text.as_str(), Some(*special)));
            }
        }
        match by_id.last_key_value() {
            Some((last, (text, _))) if *last >= n_vocab => {
                let text: String = text.chars().take(32).collect();
                Err(HfError::Vocabulary {
                    path: folder.join(tokenizer_json::NAME),
                    why: format!(
                        "token {last} (`{text}`) has no row in an embedding of {n_vocab} rows (`vocab_size`)"
                    ),
                    way_out: "fetch the tokenizer that belongs to the model",
                })
            }
            _ => Ok(Self { by_id }),
        }
    }
}

/// Byte-level BPE out of tokenizer.json.
fn byte_level(
    folder: &Folder,
    json: &TokenizerJson,
    config: Option<&Map<String, Json>>,
    n_vocab: usize,
) -> Result<Vocabulary, HfError> {
    let pre = pretok::name(folder, json)?;
    let told = decoder(folder, config)?;
    let texts = Texts::gather(folder, json, &told, n_vocab)?;
    let mut v = Vocabulary::blank("gpt2", pre, n_vocab);
    for (id, (text, special)) in texts.by_id {
        let (text, kind) = match special {
            None => (text.to_owned(), NORMAL),
            Some(special) => added(text, special),
        };
        v.put(id, &text, 0.0, kind);
    }
    v.scores = None;
    v.merges = json
        .merges()
        .iter()
        .map(tokenizer_json::Merge::joined)
        .collect();
    Ok(v)
}

/// Whether the tokenizer puts a space in front of a text.
fn prefixes_space(json: &TokenizerJson) -> bool {
    let steps = json.normalizer.iter().chain(&json.pre_tokenizer);
    steps.flat_map(|s| s.flat()).any(|s| {
        let scheme = s.prepend_scheme.as_deref();
        let metaspace = scheme.map_or(s.add_prefix_space != Some(false), |p| p != "never");
        (s.kind == "Prepend" && s.prepend.as_deref() == Some("▁"))
            || (s.kind == "Metaspace" && metaspace)
    })
}

/// SentencePiece's BPE out of tokenizer.json.
fn from_merges(
    folder: &Folder,
    json: &TokenizerJson,
    config: Option<&Map<String, Json>>,
    n_vocab: usize,
) -> Result<Vocabulary, HfError> {
    let told = decoder(folder, config)?;
    let texts = Texts::gather(folder, json, &told, n_vocab)?;
    let control = control_texts(folder, config)?;
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, m) in json.merges().iter().enumerate() {
        ranks
            .entry(format!("{}{}", m.left, m.right))
            .or_insert(rank);
    }
    // What no merge makes comes after all that one does.
    let never = -(json.merges().len() as f32) + ADDED;
    let own = json.vocab().len();
    let mut v = Vocabulary::blank("llama", "default", n_vocab);
    for (id, (text, special)) in texts.by_id {
        let byte = is_byte(text);
        let kind = match special {
            _ if byte && id < own => BYTE,
            _ if control.contains(text) => CONTROL,
            Some(true) => CONTROL,
            Some(false) if id >= own => USER_DEFINED,
            _ => NORMAL,
        };
        let score = match ranks.get(text) {
            Some(rank) if kind == NORMAL => -(*rank as f32),
            None if kind == NORMAL && text.chars().nth(1).is_some() => never,
            _ => ADDED,
        };
        v.put(id, text, score, kind);
    }
    Ok(v)
}

/// `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The texts that tokenizer_config.json and special_tokens_map.json give a role.
fn control_texts(
    folder: &Folder,
    config: Option<&Map<String, Json>>,
) -> Result<HashSet<String>, HfError> {
    let map = folder.json("special_tokens_map.json")?;
    let map = map.as_ref().and_then(Json::as_object);
    let mut all = HashSet::new();
    let mut put = |token: &Json| {
        let text = token.as_str().or_else(|| token.get("content")?.as_str());
        all.extend(text.map(str::to_owned));
    };
    for source in config.into_iter().chain(map) {
        for role in ["bos", "eos", "unk", "sep", "pad", "cls", "mask"] {
            source.get(&format!("{role}_token")).map(&mut put);
        }
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            let more = source.get(key).and_then(Json::as_array);
            more.into_iter().flatten().for_each(&mut put);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_text() {
        assert!(is_byte("<0x0A>") && !is_byte("<0x0G>") && !is_byte("<0x0>"));
        assert_eq!(added("a▁b", false), ("a b".to_owned(), USER_DEFINED));
        assert_eq!(added("a▁b", true), ("a▁b".to_owned(), CONTROL));
        assert_eq!(added("<|im_end|>", false).1, CONTROL);
        assert_eq!(added("<unused7>", false).1, CONTROL);
    }
}
