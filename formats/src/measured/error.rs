//! What can be wrong with a file of measurements.

use std::io;
use std::path::{Path, PathBuf};

use super::MAX_BYTES;

/// A file of measurements that cannot be used: which one, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct MeasuredError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub kind: MeasuredErrorKind,
}

impl MeasuredError {
    pub(super) fn new(path: &Path, kind: MeasuredErrorKind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
        }
    }
}

/// Why a file of measurements cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasuredErrorKind {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// More bytes than any such file has.
    #[error(
        "it has {0} bytes, no file of measurements has more than {max}; is it another file?",
        max = MAX_BYTES
    )]
    TooLarge(u64),
    /// Not JSON, or not the keys and types that are wanted.
    #[error("{0}; make it anew with {1}")]
    Json(serde_json::Error, &'static str),
    /// JSON of something else.
    #[error("it is a `{found}`, expected a `{wanted}`, which {maker} writes")]
    OtherFormat {
        /// Its `format`.
        found: String,
        /// The one expected.
        wanted: &'static str,
        /// The command that writes it.
        maker: &'static str,
    },
    /// A newer version than this program knows.
    #[error("it is of version {found}, this program knows versions up to {known}; update it")]
    Version {
        /// Its `version`.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// A value that cannot be.
    #[error("`{key}`: {why}")]
    Value {
        /// Which key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An error about the value of `key`.
pub(super) fn value(key: impl Into<String>, why: impl Into<String>) -> MeasuredErrorKind {
    MeasuredErrorKind::Value {
        key: key.into(),
        why: why.into(),
    }
}

/// The largest figure of any kind: whatever is made of a few of them stays a number.
const MOST: f64 = 1e15;

/// Checks that `v` is at least 0 and no larger than a measured figure can be.
pub(super) fn amount(key: &str, v: f64) -> Result<(), MeasuredErrorKind> {
    if v > MOST {
        return Err(value(key, format!("{v:e}: nothing is that large")));
    }
    if v >= 0.0 {
        return Ok(());
    }
    Err(value(key, format!("{v} is not a number of at least 0")))
}

/// The most bytes that a host or a process has: a pebibyte.
const MOST_BYTES: u64 = 1 << 50;

/// Checks that a host can have so many bytes.
pub(super) fn bytes(key: &str, n: u64) -> Result<(), MeasuredErrorKind> {
    if n <= MOST_BYTES {
        return Ok(());
    }
    Err(value(key, format!("{n} bytes: nothing is that large")))
}
