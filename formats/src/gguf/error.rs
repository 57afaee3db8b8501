//! What can be wrong with a GGUF file.

use std::io;
use std::path::{Path, PathBuf};

/// A GGUF file that cannot be used: which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct GgufError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub kind: GgufErrorKind,
}

impl GgufError {
    pub(crate) fn new(path: &Path, kind: GgufErrorKind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
        }
    }
}

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufErrorKind {
    /// The file cannot be opened, mapped, read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another kind of file.
    #[error(
        "not a GGUF file (it starts with {found:02x?}, a GGUF starts with \"GGUF\"); name a .gguf file, or make one with llama.cpp's convert_hf_to_gguf.py"
    )]
    NotGguf {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// Written on and for a big-endian machine.
    #[error(
        "a big-endian GGUF; only little-endian files are read: convert it with gguf-convert-endian of the gguf package"
    )]
    BigEndian,
    /// Version 1 or one not invented yet.
    #[error(
        "GGUF version {0} is not supported (2 and 3 are); re-create the file with a current llama.cpp"
    )]
    Version(u32),
    /// The file ends inside its header.
    #[error(
        "truncated: {what} at byte {at} needs {need} bytes, {left} are left; fetch or convert the file again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where.
        at: usize,
        /// Bytes needed.
        need: u64,
        /// Bytes left in the file.
        left: usize,
    },
    /// A count that the file is too small for.
    #[error(
        "the header claims {count} {what}, but the file has room for {room} at most; it is damaged, fetch or convert it again"
    )]
    AbsurdCount {
        /// What is counted.
        what: &'static str,
        /// The claim.
        count: u64,
        /// The most that fit.
        room: usize,
    },
    /// A key, value or name that breaks the format's rules.
    #[error("{what}: {why}; the file is damaged or was made wrongly, fetch or convert it again")]
    Malformed {
        /// The key or tensor.
        what: String,
        /// The rule.
        why: String,
    },
    /// A tensor of a type we cannot decode.
    #[error(
        "tensor `{tensor}` has block type {id}, which is not supported; re-create the file in one of {}",
        crate::blocks::names(crate::blocks::BlockType::ALL)
    )]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// GGML's id.
        id: u32,
    },
    /// Data that reaches past the end of the file.
    #[error(
        "truncated: tensor `{tensor}` spans bytes {start}..{end}, the file has {len}; fetch or convert it again"
    )]
    TensorOutOfFile {
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Size of the file.
        len: u64,
    },
    /// Two tensors on the same bytes.
    #[error("tensors `{a}` and `{b}` overlap; the file is damaged, fetch or convert it again")]
    Overlap {
        /// The one that starts first.
        a: String,
        /// The other.
        b: String,
    },
    /// A shard is missing or does not fit the others.
    #[error("shard {no} of {count}: {why}; all shards of one model must stand in one folder")]
    Shard {
        /// Number of the shard, from 1.
        no: usize,
        /// Shards of the model.
        count: usize,
        /// What is wrong.
        why: String,
    },
    /// The `gguf-rs` crate reads the file otherwise.
    #[error("a second reader (gguf-rs) disagrees: {0}; fetch or convert the file again")]
    SecondOpinion(String),
}
