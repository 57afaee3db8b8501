//! What an error in each matrix of the layers costs in the end.
//!
//! `splitconv.sensitivity` is an F32 tensor of one row per layer and one column per kind of
//! matrix, in the order of [`KINDS`] (which `splitconv.sensitivity.kinds`, an array of strings,
//! repeats): nats of Kullback-Leibler divergence of the final distribution, a token, per unit of
//! squared relative error of the matrix. `splitconv.sensitivity.tokens` (u64) says over how many
//! tokens it was measured.

use super::ImatrixErrorKind as Kind;
use super::gguf_form::{Tensors, floats, push};
use crate::gguf::{Gguf, Metadata, Value, WriteError};

/// The kinds of matrices of a layer, as their tensors are named, in the order of the columns.
pub const KINDS: [&str; 7] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

const VALUES: &str = "splitconv.sensitivity";
const NAMES: &str = "splitconv.sensitivity.kinds";
const TOKENS: &str = "splitconv.sensitivity.tokens";

/// Nats of divergence per unit of squared relative error, of each matrix of each layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivity {
    /// Tokens that it was measured over; 0 when the file does not say.
    pub tokens: u64,
    /// A row per layer, its columns in the order of [`KINDS`]; finite, none negative.
    pub layers: Vec<[f32; KINDS.len()]>,
}

impl Sensitivity {
    /// That of the matrix of kind `kind` (one of [`KINDS`]) in layer `layer`.
    pub fn of(&self, layer: usize, kind: &str) -> Option<f32> {
        let k = KINDS.iter().position(|name| *name == kind)?;
        self.layers.get(layer).map(|row| row[k])
    }
}

pub(super) fn read(file: &Gguf) -> Result<Option<Sensitivity>, Kind> {
    let Some(t) = file.tensor(VALUES) else {
        return Ok(None);
    };
    let bad = |why: String| Kind::Entry {
        tensor: VALUES.to_owned(),
        why,
    };
    if t.dims.len() > 2 || t.row_len() != KINDS.len() {
        return Err(bad(format!(
            "its shape is {:?}, expected [{}, layers]",
            t.dims,
            KINDS.len()
        )));
    }
    let names = file.metadata().get(NAMES).and_then(Value::as_array);
    let ours = names
        .and_then(|a| a.strings())
        .is_some_and(|found| found.eq(KINDS.map(str::as_bytes)));
    if !ours {
        return Err(bad(format!("`{NAMES}` is not {}", KINDS.join(", "))));
    }
    let values = floats(file, t)?;
    if let Some(v) = values.iter().find(|v| !v.is_finite() || **v < 0.0) {
        return Err(bad(format!("{v} is no sensitivity")));
    }
    let (layers, _) = values.as_chunks();
    let tokens = file.metadata().get(TOKENS).and_then(Value::as_u64);
    Ok(Some(Sensitivity {
        tokens: tokens.unwrap_or(0),
        layers: layers.to_vec(),
    }))
}

pub(super) fn describe<'a>(
    s: &'a Sensitivity,
    meta: &mut Metadata,
    tensors: &mut Tensors<'a>,
) -> Result<(), WriteError> {
    meta.set(NAMES, Value::string_array(&KINDS));
    meta.set(TOKENS, Value::u64(s.tokens));
    push(tensors, VALUES, s.layers.as_flattened(), s.layers.len())
}
