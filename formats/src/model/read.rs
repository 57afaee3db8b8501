//! Sizes from metadata.

use super::architecture::Architecture;
use super::directory::TensorDirectory;
use super::error::ModelFault;
use super::hparams::{HParams, Rope};
use super::tensors::{EMBEDDING, OUTPUT, ROPE_FREQS};
use crate::gguf::{Metadata, Value};
use crate::pair::key;

/// More layers than any model has; a header that claims more is damaged.
const MAX_LAYERS: u32 = 4096;
/// The frequency base of files that state none, as in llama.cpp, whatever the architecture.
const DEFAULT_BASE: f32 = 10_000.0;

impl HParams {
    /// Reads the shape of a model from its metadata and its tensors.
    ///
    /// Of the tensors it looks at what the metadata may leave open: how many tokens there are,
    /// whether the head is tied, the frequency factors. That the others are there and have the
    /// right shapes, [`check_tensors`](super::check_tensors) says.
    ///
    /// # Errors
    /// When the architecture is not supported, a key is missing or impossible, or asks for
    /// something that splitrun does not compute.
    pub fn read(
        metadata: &Metadata,
        tensors: &(impl TensorDirectory + ?Sized),
    ) -> Result<Self, ModelFault> {
        let k = Keys {
            arch: Architecture::of(metadata)?,
            m: metadata,
        };
        let key = k.arch.key("expert_count");
        if let Some(n) = k.m.get(&key).and_then(Value::as_u64).filter(|n| *n > 0) {
            return Err(ModelFault::Unsupported {
                what: format!("a mixture of {n} experts (`{key}`)"),
            });
        }
        let n_layer = k.required("block_count", MAX_LAYERS)?;
        let n_embd = k.required("embedding_length", 1 << 20)?;
        let n_ff = k.required("feed_forward_length", 1 << 24)?;
        let n_head = k.required("attention.head_count", 1 << 16)?;
        let n_ctx_train = k.required("context_length", u32::MAX)?;
        let n_head_kv = k
            .optional("attention.head_count_kv", n_head)?
            .unwrap_or(n_head);
        if !n_head.is_multiple_of(n_head_kv) {
            let why = format!("is {n_head_kv}, which does not divide {n_head} heads");
            return Err(k.bad("attention.head_count_kv", why));
        }
        let head_dim = match k.optional("attention.key_length", 1 << 16)? {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                let why = format!("is {n_head}, which does not divide {n_embd}");
                return Err(k.bad("attention.head_count", why));
            }
        };
        let value = k.optional("attention.value_length", u32::MAX)?;
        if let Some(value) = value.filter(|v| *v != head_dim) {
            let key = k.arch.key("attention.value_length");
            return Err(ModelFault::Unsupported {
                what: format!(
                    "a head with values of {value} numbers (`{key}`) beside keys of {head_dim}"
                ),
            });
        }
        let eps = "attention.layer_norm_rms_epsilon";
        let rms_eps = k.float(eps)?.ok_or_else(|| k.bad(eps, "is missing"))?;
        Ok(Self {
            architecture: k.arch,
            n_layer: n_layer as usize,
            n_embd: n_embd as usize,
            n_head: n_head as usize,
            n_head_kv: n_head_kv as usize,
            head_dim: head_dim as usize,
            n_ff: n_ff as usize,
            n_vocab: k.vocabulary(tensors)?,
            n_ctx_train: n_ctx_train as usize,
            rms_eps,
            rope: k.rope(tensors, head_dim)?,
            tied: tensors.dims(OUTPUT).is_none(),
        })
    }
}

/// Typed access to the keys of an architecture, with errors that name the key.
struct Keys<'a> {
    arch: Architecture,
    m: &'a Metadata,
}

impl Keys<'_> {
    fn get(&self, rest: &str) -> Option<&Value> {
        self.m.get(&self.arch.key(rest))
    }

    fn bad(&self, rest: &str, why: impl Into<String>) -> ModelFault {
        ModelFault::Key {
            key: self.arch.key(rest),
            why: why.into(),
        }
    }

    /// A number from 1 to `max`, `None` when the key is absent.
    fn optional(&self, rest: &str, max: u32) -> Result<Option<u32>, ModelFault> {
        let Some(value) = self.get(rest) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n) if (1..=u64::from(max)).contains(&n) => Ok(Some(n as u32)),
            Some(n) => Err(self.bad(rest, format!("is {n}, outside 1..={max}"))),
            None if value.as_array().is_some() => Err(ModelFault::Unsupported {
                what: format!(
                    "a model whose `{}` differs from layer to layer",
                    self.arch.key(rest)
                ),
            }),
            None => Err(self.bad(rest, format!("is {value}, not a positive whole number"))),
        }
    }

    fn required(&self, rest: &str, max: u32) -> Result<u32, ModelFault> {
        self.optional(rest, max)?
            .ok_or_else(|| self.bad(rest, "is missing"))
    }

    /// A positive number, `None` when the key is absent.
    fn float(&self, rest: &str) -> Result<Option<f32>, ModelFault> {
        let Some(value) = self.get(rest) else {
            return Ok(None);
        };
        match value.as_f32() {
            Some(f) if f.is_finite() && f > 0.0 => Ok(Some(f)),
            _ => Err(self.bad(rest, format!("is {value}, not a positive number"))),
        }
    }

    /// A positive number, or 0 for one; `None` when the key is absent.
    fn scale(&self, rest: &str) -> Result<Option<f32>, ModelFault> {
        match self.get(rest).and_then(Value::as_f32) {
            Some(0.0) => Ok(Some(1.0)),
            _ => self.float(rest),
        }
    }

    /// How many tokens there are: the tokenizer says it, else its key, else the tensors.
    fn vocabulary(&self, tensors: &(impl TensorDirectory + ?Sized)) -> Result<usize, ModelFault> {
        let tokens = self.m.get("tokenizer.ggml.tokens");
        if let Some(tokens) = tokens.and_then(Value::as_array) {
            return Ok(tokens.len());
        }
        if let Some(n) = self.optional("vocab_size", u32::MAX)? {
            return Ok(n as usize);
        }
        [EMBEDDING, OUTPUT]
            .iter()
            .find_map(|name| tensors.dims(name)?.get(1).copied())
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| self.bad("vocab_size", "is missing"))
    }

    fn rope(
        &self,
        tensors: &(impl TensorDirectory + ?Sized),
        head_dim: u32,
    ) -> Result<Rope, ModelFault> {
        let dims = self
            .optional("rope.dimension_count", head_dim)?
            .unwrap_or(head_dim);
        if !dims.is_multiple_of(2) {
            let why = format!("is {dims}, an odd number");
            return Err(self.bad("rope.dimension_count", why));
        }
        let kind = "rope.scaling.type";
        let scaling = match self.get(kind) {
            // A file that says nothing scales linearly by its factor, if it has one.
            None => "linear",
            Some(v) => v
                .as_str()
                .ok_or_else(|| self.bad(kind, format!("is {v}, not a name")))?,
        };
        let linear_scale = match scaling {
            "none" => 1.0,
            "linear" => match self.scale("rope.scaling.factor")? {
                Some(factor) => factor,
                // The oldest files have only this one.
                None => self.scale("rope.scale_linear")?.unwrap_or(1.0),
            },
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(ModelFault::Unsupported {
                    what: format!("RoPE scaling `{other}` (`{}`)", self.arch.key(kind)),
                });
            }
        };
        Ok(Rope {
            dims: dims as usize,
            base: self.float("rope.freq_base")?.unwrap_or(DEFAULT_BASE),
            linear_scale,
            factors: self.factors(tensors, dims as usize / 2)?,
            style: self.arch.rope_style(),
        })
    }

    /// Llama-3 frequency factors: a tensor in a whole model and on the edge, an array in the
    /// cloud half (no tensor may stand in both files of a pair).
    fn factors(
        &self,
        tensors: &(impl TensorDirectory + ?Sized),
        n: usize,
    ) -> Result<Option<Vec<f32>>, ModelFault> {
        let contents = |why: String| ModelFault::Contents {
            tensor: ROPE_FREQS.into(),
            why,
        };
        let factors: Vec<f32> = if let Some(found) = tensors.dims(ROPE_FREQS) {
            let wanted = vec![n as u64];
            if found != wanted {
                return Err(ModelFault::Shape {
                    tensor: ROPE_FREQS.into(),
                    found,
                    wanted,
                });
            }
            match tensors.floats(ROPE_FREQS) {
                Some(Ok(values)) => values,
                Some(Err(e)) => return Err(contents(format!("cannot be decoded ({e})"))),
                None => return Err(contents("vanished".into())),
            }
        } else if let Some(v) = self.m.get(key::ROPE_FREQS) {
            v.as_array()
                .and_then(|a| a.f32s())
                .filter(|a| a.len() == n)
                .ok_or_else(|| ModelFault::Key {
                    key: key::ROPE_FREQS.into(),
                    why: format!("is no f32 array of {n}"),
                })?
                .collect()
        } else {
            return Ok(None);
        };
        if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err(contents(
                "holds a factor that is not a positive number".into(),
            ));
        }
        Ok(Some(factors))
    }
}
