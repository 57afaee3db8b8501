//! Reading hyperparameters from GGUF metadata.

use std::path::PathBuf;

use formats::gguf::{GgufError, GgufSet, Metadata, Value};
use formats::pair::key;

use super::hparams::{HParams, Rope};

/// More layers than any model has; a header that claims more is damaged.
const MAX_LAYERS: u32 = 4096;

/// A model that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Not a Llama.
    #[error("{}: architecture {arch:?} is not supported; only `llama` is", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        arch: String,
    },
    /// A key is missing, or has a value that cannot be.
    #[error("{}: metadata key `{key}` {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A tensor is missing.
    #[error("{}: tensor `{tensor}` is missing; convert or fetch the model again", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the hyperparameters say.
    #[error("{}: tensor `{tensor}` has shape {found:?}, the hyperparameters need {want:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the file has.
        found: Vec<u64>,
        /// What it should have.
        want: Vec<u64>,
    },
    /// Something this engine does not compute.
    #[error("{}: {what} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
}

/// Typed access to keys with errors that name file and key.
struct Keys<'a> {
    path: PathBuf,
    m: &'a Metadata,
}

impl Keys<'_> {
    fn bad(&self, key: &str, why: impl Into<String>) -> ModelError {
        ModelError::Key {
            path: self.path.clone(),
            key: key.into(),
            why: why.into(),
        }
    }

    fn opt_u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.m
            .get(key)
            .map(|v| {
                v.as_u32()
                    .ok_or_else(|| self.bad(key, format!("is {v}, which is no usable count")))
            })
            .transpose()
    }

    /// A count between 1 and `max`.
    fn count(&self, key: &str, max: u32) -> Result<usize, ModelError> {
        match self.opt_u32(key)? {
            Some(v) if (1..=max).contains(&v) => Ok(v as usize),
            Some(v) => Err(self.bad(key, format!("is {v}, outside 1..={max}"))),
            None => Err(self.bad(key, "is missing")),
        }
    }

    /// A scale: positive, or 0 for one.
    fn factor(&self, key: &str) -> Result<Option<f32>, ModelError> {
        if self.m.get(key).and_then(Value::as_f32) == Some(0.0) {
            return Ok(Some(1.0));
        }
        self.opt_f32(key)
    }

    fn opt_f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.m
            .get(key)
            .map(|v| {
                v.as_f32()
                    .filter(|f| f.is_finite() && *f > 0.0)
                    .ok_or_else(|| self.bad(key, format!("is {v}, which is no positive number")))
            })
            .transpose()
    }
}

/// Reads the shape of the model from the metadata and the tensor directory of `set`.
///
/// # Errors
/// When the architecture is not `llama`, or a key is missing or impossible.
pub fn read_hparams(set: &GgufSet) -> Result<HParams, ModelError> {
    let path = set.files()[0].path().to_owned();
    let k = Keys {
        path,
        m: set.metadata(),
    };
    match k
        .m
        .get("general.architecture")
        .map(|v| v.as_str().unwrap_or("?"))
    {
        Some("llama") => {}
        Some(other) => {
            return Err(ModelError::Architecture {
                path: k.path,
                arch: other.to_owned(),
            });
        }
        None => return Err(k.bad("general.architecture", "is missing")),
    }
    if k.opt_u32("llama.expert_count")?.unwrap_or(0) > 0 {
        return Err(ModelError::Unsupported {
            path: k.path,
            what: "a mixture of experts (llama.expert_count)".into(),
        });
    }
    let n_layer = k.count("llama.block_count", MAX_LAYERS)?;
    let n_embd = k.count("llama.embedding_length", 1 << 20)?;
    let n_head = k.count("llama.attention.head_count", 1 << 16)?;
    let n_head_kv = match k.opt_u32("llama.attention.head_count_kv")? {
        Some(_) => k.count("llama.attention.head_count_kv", n_head as u32)?,
        None => n_head,
    };
    if !n_head.is_multiple_of(n_head_kv) {
        return Err(k.bad(
            "llama.attention.head_count_kv",
            format!("is {n_head_kv}, which does not divide the {n_head} query heads"),
        ));
    }
    let head_dim = match k.opt_u32("llama.attention.key_length")? {
        Some(_) => k.count("llama.attention.key_length", 1 << 16)?,
        None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
        None => {
            return Err(k.bad(
                "llama.attention.head_count",
                format!("is {n_head}, which does not divide the width {n_embd}"),
            ));
        }
    };
    if let Some(v) = k.opt_u32("llama.attention.value_length")?
        && v as usize != head_dim
    {
        return Err(k.bad(
            "llama.attention.value_length",
            format!("is {v}; values of another width than keys ({head_dim}) are not supported"),
        ));
    }
    let n_ff = k.count("llama.feed_forward_length", 1 << 24)?;
    let n_ctx_train = k.count("llama.context_length", u32::MAX)?;
    let rms_eps = k
        .opt_f32("llama.attention.layer_norm_rms_epsilon")?
        .ok_or_else(|| k.bad("llama.attention.layer_norm_rms_epsilon", "is missing"))?;
    let n_vocab = set
        .find("token_embd.weight")
        .or_else(|| set.find("output.weight"))
        .and_then(|(_, t)| t.dims.get(1).copied())
        .unwrap_or(0) as usize;
    let rope = read_rope(&k, set, head_dim)?;
    Ok(HParams {
        n_layer,
        n_embd,
        n_head,
        n_head_kv,
        head_dim,
        n_ff,
        n_vocab,
        n_ctx_train,
        rms_eps,
        rope,
    })
}

fn read_rope(k: &Keys<'_>, set: &GgufSet, head_dim: usize) -> Result<Rope, ModelError> {
    let dims = match k.opt_u32("llama.rope.dimension_count")? {
        Some(_) => k.count("llama.rope.dimension_count", head_dim as u32)?,
        None => head_dim,
    };
    if !dims.is_multiple_of(2) {
        return Err(k.bad(
            "llama.rope.dimension_count",
            format!("is {dims}, an odd number"),
        ));
    }
    let base = k.opt_f32("llama.rope.freq_base")?.unwrap_or(10_000.0);
    let scaling = match k.m.get("llama.rope.scaling.type") {
        // A file that says nothing scales linearly by its factor, as in llama.cpp.
        None => "linear",
        Some(v) => v.as_str().ok_or_else(|| {
            k.bad(
                "llama.rope.scaling.type",
                format!("is {v}, which is no name"),
            )
        })?,
    };
    let linear_scale = match scaling {
        "none" => 1.0,
        // The oldest files have only `scale_linear`; a factor of 0 means none.
        "linear" => match k.factor("llama.rope.scaling.factor")? {
            Some(f) => f,
            None => k.factor("llama.rope.scale_linear")?.unwrap_or(1.0),
        },
        other => {
            return Err(ModelError::Unsupported {
                path: k.path.clone(),
                what: format!("RoPE scaling `{other}` (llama.rope.scaling.type)"),
            });
        }
    };
    Ok(Rope {
        dims,
        base,
        linear_scale,
        factors: read_factors(k, set, dims)?,
    })
}

/// Llama-3 frequency factors: a tensor in a whole model and on the edge, an array in the cloud
/// half (no tensor may stand in both files of a pair).
fn read_factors(k: &Keys<'_>, set: &GgufSet, dims: usize) -> Result<Option<Vec<f32>>, ModelError> {
    let factors: Vec<f32> = if let Some((file, t)) = set.tensor("rope_freqs.weight") {
        if t.dims != [dims as u64 / 2] {
            return Err(ModelError::Shape {
                path: file.path().to_owned(),
                tensor: t.name.clone(),
                found: t.dims.clone(),
                want: vec![dims as u64 / 2],
            });
        }
        let mut v = vec![0.0; dims / 2];
        formats::blocks::dequantize_row(t.block_type, file.data(t), &mut v)
            .map_err(|e| k.bad("rope_freqs.weight", e.to_string()))?;
        v
    } else if let Some(v) = k.m.get(key::ROPE_FREQS) {
        v.as_array()
            .and_then(|a| a.f32s())
            .filter(|a| a.len() == dims / 2)
            .ok_or_else(|| k.bad(key::ROPE_FREQS, format!("is no f32 array of {}", dims / 2)))?
            .collect()
    } else {
        return Ok(None);
    };
    if factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
        return Err(k.bad(
            "rope_freqs.weight",
            "holds a factor that is not a positive number",
        ));
    }
    Ok(Some(factors))
}
