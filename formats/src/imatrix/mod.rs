//! Importance matrices: how strongly each column of each weight matrix is used.
//!
//! For a matrix `W` that is multiplied with activations `x`, the mean of `x_j²` over a text says
//! what an error in column `j` costs. Two files carry such numbers:
//!
//! - llama.cpp's GGUF (`general.type` = `imatrix`): per matrix a tensor `NAME.in_sum2` with the
//!   sums of squares and `NAME.counts` with the number of rows summed, both F32; `imatrix.datasets`,
//!   `imatrix.chunk_count` and `imatrix.chunk_size` in the metadata. Read and written;
//! - the older `.dat` of llama.cpp, a plain sequence of names and numbers. Only read.
//!
//! Files of this project hold [`Boundary`] statistics besides, and [`Sensitivity`] when it was
//! measured, in tensors under `splitconv.`, which llama.cpp passes over.

mod boundary;
mod dat;
mod error;
mod gguf_form;
mod sensitivity;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

pub use boundary::{Boundary, NORM_QUANTILES, OUTLIER_SIGMAS};
pub use error::{ImatrixError, ImatrixErrorKind};
pub use sensitivity::{KINDS, Sensitivity};

use crate::gguf::{Gguf, GgufErrorKind};
use crate::pair::Digest;

/// The numbers of one matrix, or of several stacked ones (experts).
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Sums of squares by input column, one matrix after the other.
    pub sums: Vec<f32>,
    /// Rows summed, one number per matrix; divides the length of `sums`.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Mean squares by column. `None` for stacked matrices, or when nothing was seen.
    pub fn mean(&self) -> Option<Vec<f32>> {
        match self.counts.as_slice() {
            [count] if *count > 0.0 => Some(self.sums.iter().map(|s| s / count).collect()),
            _ => None,
        }
    }
}

/// An importance matrix file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// What the texts were called.
    pub datasets: Vec<String>,
    /// Windows of text that were run.
    pub chunk_count: u32,
    /// Tokens of a window; 0 when the file does not say.
    pub chunk_size: u32,
    /// By the name of the weight tensor, as `blk.0.attn_q.weight`.
    pub entries: BTreeMap<String, Entry>,
    /// What travels between the halves, when the file says it.
    pub boundary: Option<Boundary>,
    /// What errors in the layers' matrices cost, when the file says it.
    pub sensitivity: Option<Sensitivity>,
}

impl Imatrix {
    /// Reads a file of either kind; which one it is, its first bytes tell.
    ///
    /// Memory is bounded by the size of the file.
    ///
    /// # Errors
    /// [`ImatrixError`], naming the file and, where there is one, the tensor.
    pub fn open(path: &Path) -> Result<Self, ImatrixError> {
        match Gguf::open(path) {
            Ok(file) => gguf_form::read(&file),
            Err(e) => match e.kind {
                GgufErrorKind::NotGguf { .. } => dat::read(path),
                kind => Err(ImatrixError::new(path, kind.into())),
            },
        }
    }

    /// The file in llama.cpp's GGUF form, as bytes.
    ///
    /// # Errors
    /// When the numbers of an entry do not go together.
    pub fn to_gguf(&self) -> Result<Vec<u8>, crate::gguf::WriteError> {
        gguf_form::write(self)
    }

    /// A digest of the importances (names and mean squares), whatever kind of file they came from.
    pub fn digest(&self) -> Digest {
        let mut hash = blake3::Hasher::new();
        hash.update(b"splitconv importance 1");
        for (name, entry) in &self.entries {
            let Some(mean) = entry.mean() else {
                continue;
            };
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&(mean.len() as u64).to_le_bytes());
            for m in mean {
                hash.update(&m.to_le_bytes());
            }
        }
        hash.finalize().into()
    }
}

/// Checks what both kinds of file must hold.
fn check(name: &str, entry: &Entry) -> Result<(), ImatrixErrorKind> {
    let bad = |why: String| ImatrixErrorKind::Entry {
        tensor: name.to_owned(),
        why,
    };
    if entry.counts.is_empty() || !entry.sums.len().is_multiple_of(entry.counts.len()) {
        return Err(bad(format!(
            "{} sums cannot be shared among {} counts",
            entry.sums.len(),
            entry.counts.len()
        )));
    }
    let wrong = |v: &&f32| !v.is_finite() || **v < 0.0;
    if let Some(v) = entry.sums.iter().find(wrong) {
        return Err(bad(format!("{v} is no sum of squares")));
    }
    if let Some(v) = entry.counts.iter().find(wrong) {
        return Err(bad(format!("{v} is no count")));
    }
    Ok(())
}
