//! What can be wrong with an importance matrix.

use std::io;
use std::path::{Path, PathBuf};

use crate::gguf::GgufErrorKind;

/// An importance matrix that cannot be used: which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("importance matrix {}: {kind}", path.display())]
pub struct ImatrixError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub kind: ImatrixErrorKind,
}

impl ImatrixError {
    pub(super) fn new(path: &Path, kind: ImatrixErrorKind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
        }
    }
}

/// Why an importance matrix cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixErrorKind {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A damaged GGUF.
    #[error("{0}")]
    Gguf(#[from] GgufErrorKind),
    /// A GGUF of another kind.
    #[error(
        "it is a GGUF of type `{found}`, not an importance matrix; make one with `splitrun calibrate` or llama-imatrix"
    )]
    OtherGguf {
        /// Its `general.type`, or what stands for it.
        found: String,
    },
    /// Neither GGUF nor `.dat`.
    #[error(
        "neither a GGUF nor llama.cpp's older .dat ({why}); make one with `splitrun calibrate` or llama-imatrix"
    )]
    NotImatrix {
        /// What does not fit.
        why: String,
    },
    /// Sums without counts or the other way round.
    #[error("tensor `{tensor}` stands without its `{missing}`; calibrate again")]
    Alone {
        /// The one that is there.
        tensor: String,
        /// The one that is not.
        missing: String,
    },
    /// Numbers that make no sense.
    #[error("tensor `{tensor}`: {why}; calibrate again")]
    Entry {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// Nothing in it.
    #[error("it holds no tensor; calibrate again")]
    Empty,
}
