//! What a Llama must have: its sizes in the metadata, its tensors, their shapes.

use std::path::Path;

use formats::gguf::{GgufSet, Value};

use super::SourceError;

/// The sizes of a Llama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hparams {
    /// Layers.
    pub n_layer: u32,
    /// Width of a hidden row.
    pub n_embd: u64,
    /// Width inside the feed-forward block.
    pub n_ff: u64,
    /// Query heads.
    pub n_head: u64,
    /// Key and value heads.
    pub n_head_kv: u64,
    /// Values of one head's key.
    pub head_dim_k: u64,
    /// Values of one head's value.
    pub head_dim_v: u64,
    /// Tokens in the vocabulary.
    pub n_vocab: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// Where in the model a tensor belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `token_embd.weight`.
    Embedding,
    /// `rope_freqs.weight`: needed by every layer.
    RopeFreqs,
    /// `blk.N.…`.
    Layer(u32),
    /// `output_norm.weight`.
    OutputNorm,
    /// `output.weight`.
    Output,
}

impl Place {
    /// The place of the tensor called `name`, `None` for a name that a Llama does not have.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "token_embd.weight" => Self::Embedding,
            "rope_freqs.weight" => Self::RopeFreqs,
            "output_norm.weight" => Self::OutputNorm,
            "output.weight" => Self::Output,
            _ => {
                let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
                if !layer.bytes().all(|b| b.is_ascii_digit()) || !PARTS.contains(&part) {
                    return None;
                }
                Self::Layer(layer.parse().ok()?)
            }
        })
    }
}

/// The tensors that a layer may have. The biases are optional.
const PARTS: [&str; 16] = [
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
    "attn_output.bias",
    "ffn_gate.bias",
    "ffn_up.bias",
    "ffn_down.bias",
];

/// Checks that `set` is a whole Llama and returns its sizes.
pub(super) fn check(path: &Path, set: &GgufSet) -> Result<Hparams, SourceError> {
    let keys = Keys { path, set };
    keys.architecture()?;
    let h = keys.hparams()?;
    shapes(path, set, &h)?;
    for (_, tensor) in set.tensors() {
        let known = match Place::of(&tensor.name) {
            Some(Place::Layer(l)) => l < h.n_layer,
            place => place.is_some(),
        };
        if !known {
            return Err(SourceError::UnknownTensor {
                path: path.to_owned(),
                tensor: tensor.name.clone(),
            });
        }
    }
    Ok(h)
}

struct Keys<'a> {
    path: &'a Path,
    set: &'a GgufSet,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.set.metadata().get(key)
    }

    fn bad(&self, key: &str, why: impl Into<String>) -> SourceError {
        SourceError::Key {
            path: self.path.to_owned(),
            key: key.to_owned(),
            why: why.into(),
        }
    }

    fn architecture(&self) -> Result<(), SourceError> {
        let key = "general.architecture";
        let value = self.get(key).ok_or_else(|| self.bad(key, "is missing"))?;
        match value.as_str() {
            Some("llama") => {}
            Some(found) => {
                return Err(SourceError::Architecture {
                    path: self.path.to_owned(),
                    found: found.chars().take(64).collect(),
                });
            }
            None => return Err(self.bad(key, "is not a string")),
        }
        let experts = self.get("llama.expert_count").and_then(Value::as_u64);
        if experts.is_some_and(|n| n > 0) {
            return Err(SourceError::Unsupported {
                path: self.path.to_owned(),
                what: format!("a mixture of {} experts", experts.unwrap_or(0)),
                way_out: "splitconv cuts dense Llama models",
            });
        }
        Ok(())
    }

    /// A positive number, `None` when the key is absent.
    fn optional(&self, key: &str) -> Result<Option<u64>, SourceError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n) if n > 0 && u32::try_from(n).is_ok() => Ok(Some(n)),
            Some(n) => Err(self.bad(key, format!("is {n}"))),
            None if value.as_array().is_some() => Err(SourceError::Unsupported {
                path: self.path.to_owned(),
                what: format!("`{key}` differs from layer to layer"),
                way_out: "splitconv cuts models whose layers are all alike",
            }),
            None => Err(self.bad(key, format!("is {value}, not a positive whole number"))),
        }
    }

    fn required(&self, key: &str) -> Result<u64, SourceError> {
        self.optional(key)?
            .ok_or_else(|| self.bad(key, "is missing"))
    }

    fn hparams(&self) -> Result<Hparams, SourceError> {
        let n_layer = self.required("llama.block_count")?;
        let n_embd = self.required("llama.embedding_length")?;
        let n_ff = self.required("llama.feed_forward_length")?;
        let n_head = self.required("llama.attention.head_count")?;
        let n_head_kv = self
            .optional("llama.attention.head_count_kv")?
            .unwrap_or(n_head);
        let head_dim_k = match self.optional("llama.attention.key_length")? {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                let why = format!("is {n_head}, which does not divide {n_embd}");
                return Err(self.bad("llama.attention.head_count", why));
            }
        };
        if !n_head.is_multiple_of(n_head_kv) {
            let why = format!("is {n_head_kv}, which does not divide {n_head} heads");
            return Err(self.bad("llama.attention.head_count_kv", why));
        }
        let head_dim_v = self
            .optional("llama.attention.value_length")?
            .unwrap_or(head_dim_k);
        let tokens = self.get("tokenizer.ggml.tokens").and_then(Value::as_array);
        let n_vocab = match tokens {
            Some(tokens) => tokens.len() as u64,
            None => self.required("llama.vocab_size")?,
        };
        Ok(Hparams {
            // `optional` lets no number past u32.
            n_layer: n_layer as u32,
            n_embd,
            n_ff,
            n_head,
            n_head_kv,
            head_dim_k,
            head_dim_v,
            n_vocab,
            tied: self.set.tensor("output.weight").is_none(),
        })
    }
}

/// Checks that every tensor a Llama needs is there and has the shape its sizes ask for.
fn shapes(path: &Path, set: &GgufSet, h: &Hparams) -> Result<(), SourceError> {
    // Sizes fit u32, so products fit u64.
    let (q, k, v) = (
        h.n_head * h.head_dim_k,
        h.n_head_kv * h.head_dim_k,
        h.n_head_kv * h.head_dim_v,
    );
    let (e, f) = (h.n_embd, h.n_ff);
    let layer: [(&str, Vec<u64>); 9] = [
        ("attn_norm", vec![e]),
        ("attn_q", vec![e, q]),
        ("attn_k", vec![e, k]),
        ("attn_v", vec![e, v]),
        ("attn_output", vec![h.n_head * h.head_dim_v, e]),
        ("ffn_norm", vec![e]),
        ("ffn_gate", vec![e, f]),
        ("ffn_up", vec![e, f]),
        ("ffn_down", vec![f, e]),
    ];
    let mut missing: Option<(String, usize)> = None;
    let mut need = |name: String, wanted: &[u64]| -> Result<(), SourceError> {
        match set.tensor(&name) {
            Some((_, t)) if t.dims == wanted => Ok(()),
            Some((_, t)) => Err(SourceError::Shape {
                path: path.to_owned(),
                tensor: name,
                found: t.dims.clone(),
                wanted: wanted.to_vec(),
            }),
            None => {
                match &mut missing {
                    Some((_, others)) => *others += 1,
                    None => missing = Some((name, 0)),
                }
                Ok(())
            }
        }
    };
    need("token_embd.weight".into(), &[e, h.n_vocab])?;
    // A claim of four thousand million layers ends at the number of tensors in the file.
    let have = set.tensors().count() as u32;
    for l in 0..h.n_layer.min(have.saturating_add(1)) {
        for (part, wanted) in &layer {
            need(format!("blk.{l}.{part}.weight"), wanted)?;
        }
    }
    need("output_norm.weight".into(), &[e])?;
    if !h.tied {
        need("output.weight".into(), &[e, h.n_vocab])?;
    }
    match missing {
        None => Ok(()),
        Some((first, others)) => Err(SourceError::MissingTensor {
            path: path.to_owned(),
            first,
            others,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(Place::of("blk.12.attn_q.weight"), Some(Place::Layer(12)));
        assert_eq!(Place::of("output.weight"), Some(Place::Output));
        for no in [
            "blk.x.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.1.ffn_gate_exps.weight",
            "blk..attn_q.weight",
            "blk.99999999999.attn_q.weight",
            "rope_factors_long.weight",
            "output",
        ] {
            assert_eq!(Place::of(no), None, "{no}");
        }
    }
}
