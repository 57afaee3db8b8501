//! What a Llama must have: its sizes in the metadata, its tensors, their shapes. What splitrun
//! does not compute is refused here: nobody wants to find that out with a pair in hand.

use std::path::Path;

use formats::blocks::BlockType;
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
    /// Values of one head's key, and of its value.
    pub head_dim: u64,
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

/// The tensors that a layer may have: those that splitrun reads.
const PARTS: [&str; 11] = [
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    // Old files carry the inverse frequencies that the base implies.
    "attn_rot_embd",
    "attn_rot_embd.weight",
];

/// Checks that `set` is a whole Llama and returns its sizes.
pub(super) fn check(path: &Path, set: &GgufSet) -> Result<Hparams, SourceError> {
    let keys = Keys { path, set };
    keys.architecture()?;
    let h = keys.hparams()?;
    keys.norms()?;
    keys.rope(&h)?;
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

    /// A number from 1 to `max`, `None` when the key is absent.
    fn optional(&self, key: &str, max: u32) -> Result<Option<u64>, SourceError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n) if (1..=u64::from(max)).contains(&n) => Ok(Some(n)),
            Some(n) => Err(self.bad(key, format!("is {n}, outside 1..={max}"))),
            None if value.as_array().is_some() => Err(SourceError::Unsupported {
                path: self.path.to_owned(),
                what: format!("`{key}` differs from layer to layer"),
                way_out: "splitconv cuts models whose layers are all alike",
            }),
            None => Err(self.bad(key, format!("is {value}, not a positive whole number"))),
        }
    }

    fn required(&self, key: &str, max: u32) -> Result<u64, SourceError> {
        self.optional(key, max)?
            .ok_or_else(|| self.bad(key, "is missing"))
    }

    /// A positive number, `None` when the key is absent.
    fn float(&self, key: &str) -> Result<Option<f32>, SourceError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f32() {
            Some(f) if f.is_finite() && f > 0.0 => Ok(Some(f)),
            _ => Err(self.bad(key, format!("is {value}, not a positive number"))),
        }
    }

    /// A positive number, or 0 for none; `None` when the key is absent.
    fn scale(&self, key: &str) -> Result<Option<f32>, SourceError> {
        match self.get(key).and_then(Value::as_f32) {
            Some(0.0) => Ok(Some(1.0)),
            _ => self.float(key),
        }
    }

    fn unsupported(&self, what: String) -> SourceError {
        SourceError::Unsupported {
            path: self.path.to_owned(),
            what,
            way_out: "splitrun would refuse the halves, choose another model",
        }
    }

    fn norms(&self) -> Result<(), SourceError> {
        let key = "llama.attention.layer_norm_rms_epsilon";
        let found = self.float(key)?;
        found.map(|_| ()).ok_or_else(|| self.bad(key, "is missing"))
    }

    /// Checks that splitrun can rotate: scaling is none, linear, or by factors.
    fn rope(&self, h: &Hparams) -> Result<(), SourceError> {
        let key = "llama.rope.dimension_count";
        let dims = self.optional(key, h.head_dim as u32)?;
        let dims = dims.unwrap_or(h.head_dim);
        if !dims.is_multiple_of(2) {
            return Err(self.bad(key, format!("is {dims}, an odd number")));
        }
        self.float("llama.rope.freq_base")?;
        let key = "llama.rope.scaling.type";
        let scaling = match self.get(key) {
            // A file that says nothing scales linearly by its factor, if it has one.
            None => "linear",
            Some(v) => (v.as_str()).ok_or_else(|| self.bad(key, format!("is {v}, not a name")))?,
        };
        match scaling {
            "none" => {}
            "linear" => {
                // The oldest files have only `scale_linear`.
                if self.scale("llama.rope.scaling.factor")?.is_none() {
                    self.scale("llama.rope.scale_linear")?;
                }
            }
            other => {
                let other: String = other.chars().take(64).collect();
                let what = format!("RoPE scaling `{other}` (llama.rope.scaling.type)");
                return Err(self.unsupported(what));
            }
        }
        // Another type than F32 is refused when the halves are written.
        let name = "rope_freqs.weight";
        if let Some((file, t)) = self.set.tensor(name) {
            if t.dims != [dims / 2] {
                return Err(SourceError::Shape {
                    path: file.path().to_owned(),
                    tensor: name.to_owned(),
                    found: t.dims.clone(),
                    wanted: vec![dims / 2],
                });
            }
            let (words, _) = file.data(t).as_chunks::<4>();
            let bad = |w: &[u8; 4]| {
                let f = f32::from_le_bytes(*w);
                !f.is_finite() || f <= 0.0
            };
            if t.block_type == BlockType::F32 && words.iter().any(bad) {
                return Err(SourceError::Unsupported {
                    path: file.path().to_owned(),
                    what: format!("tensor `{name}` holds a factor that is not a positive number"),
                    way_out: "the file is damaged, fetch or make it again",
                });
            }
        }
        Ok(())
    }

    fn hparams(&self) -> Result<Hparams, SourceError> {
        // The limits are splitrun's.
        let n_layer = self.required("llama.block_count", 4096)?;
        let n_embd = self.required("llama.embedding_length", 1 << 20)?;
        let n_ff = self.required("llama.feed_forward_length", 1 << 24)?;
        let n_head = self.required("llama.attention.head_count", 1 << 16)?;
        self.required("llama.context_length", u32::MAX)?;
        let n_head_kv = self
            .optional("llama.attention.head_count_kv", n_head as u32)?
            .unwrap_or(n_head);
        let head_dim = match self.optional("llama.attention.key_length", 1 << 16)? {
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
        let value = self.optional("llama.attention.value_length", u32::MAX)?;
        if let Some(value) = value.filter(|v| *v != head_dim) {
            return Err(self.unsupported(format!(
                "values of {value} numbers (llama.attention.value_length) beside keys of {head_dim}"
            )));
        }
        let tokens = self.get("tokenizer.ggml.tokens").and_then(Value::as_array);
        let n_vocab = match tokens {
            Some(tokens) => tokens.len() as u64,
            None => self.required("llama.vocab_size", u32::MAX)?,
        };
        Ok(Hparams {
            // `optional` lets no number past u32.
            n_layer: n_layer as u32,
            n_embd,
            n_ff,
            n_head,
            n_head_kv,
            head_dim,
            n_vocab,
            tied: self.set.tensor("output.weight").is_none(),
        })
    }
}

/// Checks that every tensor a Llama needs is there and has the shape its sizes ask for.
fn shapes(path: &Path, set: &GgufSet, h: &Hparams) -> Result<(), SourceError> {
    // Sizes fit u32, so products fit u64.
    let (q, kv) = (h.n_head * h.head_dim, h.n_head_kv * h.head_dim);
    let (e, f) = (h.n_embd, h.n_ff);
    let layer: [(&str, Vec<u64>); 9] = [
        ("attn_norm", vec![e]),
        ("attn_q", vec![e, q]),
        ("attn_k", vec![e, kv]),
        ("attn_v", vec![e, kv]),
        ("attn_output", vec![q, e]),
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
    // A claim of more layers than there are tensors ends at these.
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
            "blk.1.attn_q.bias",
            "blk..attn_q.weight",
            "blk.99999999999.attn_q.weight",
            "rope_factors_long.weight",
            "output",
        ] {
            assert_eq!(Place::of(no), None, "{no}");
        }
    }
}
