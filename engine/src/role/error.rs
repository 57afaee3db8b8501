//! What can go wrong in a run.

use std::path::PathBuf;

use formats::gguf::GgufError;
use formats::pair::{ContractMismatch, LocateError, PairError};
use formats::wire::{DecodeError, EncodeError};

use crate::exec::ExecError;
use crate::link::LinkError;
use crate::model::ModelError;
use crate::text::TextError;

/// Why a run failed. Each text names the thing, the cause and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// No model was found.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// A file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A half's keys are broken.
    #[error("{}: {source}", path.display())]
    Pair {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: PairError,
    },
    /// Two files that are no pair.
    #[error("{} and {}: {source}", edge.display(), cloud.display())]
    Mismatch {
        /// The edge file.
        edge: PathBuf,
        /// The cloud file.
        cloud: PathBuf,
        /// What differs.
        source: ContractMismatch,
    },
    /// The file at hand is not the half this role runs.
    #[error("{}: {why}", path.display())]
    WrongFile {
        /// The file.
        path: PathBuf,
        /// Why it will not do, and what would.
        why: String,
    },
    /// Text could not be turned into ids or back.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The executor refused.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The other half cannot be reached, refused, or is gone.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A boundary row could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A frame could not be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A flag has a value that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The request cannot be served as put.
    #[error("{0}")]
    Request(String),
}

impl RunError {
    /// An I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
