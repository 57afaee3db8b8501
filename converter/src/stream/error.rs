//! Why a conversion could not be finished.

use std::io;
use std::path::{Path, PathBuf};

use formats::blocks::BlockType;
use formats::gguf::WriteError;

use crate::one_line;

/// A conversion that could not be finished. Files that stood under the names of the pair are as
/// they were; what is finished is kept beside them when the error is a [`StreamError::Kept`].
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The output cannot be written.
    #[error("cannot write {}{hint}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// The source cannot be read.
    #[error("cannot read tensor `{tensor}` from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source is not what it was when it was opened.
    #[error(
        "{} changed while it was read; wait until it is whole, then run the same command again",
        path.display()
    )]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// There is a file of that name.
    #[error("{} exists already; --force replaces it, --out DIR writes elsewhere", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes the same file.
    #[error("{} is being written by another splitconv; wait for it or choose another --out", path.display())]
    Busy {
        /// The temporary file.
        path: PathBuf,
    },
    /// An earlier run was killed while it renamed its files, and one of them was changed since.
    #[error(
        "{} is not the file that an interrupted run had finished; remove it and {}, then run again",
        path.display(),
        journal.display()
    )]
    Unpublished {
        /// The file.
        path: PathBuf,
        /// The record of the interrupted run.
        journal: PathBuf,
    },
    /// A signal asked for an end.
    #[error("interrupted")]
    Interrupted,
    /// It failed, and what is finished stays for the next run.
    #[error(
        "{}; {done} of {of} tensors are finished and kept in {}: the same command goes on there, --fresh starts over",
        one_line(.cause.as_ref()),
        journal.display()
    )]
    Kept {
        /// What happened.
        cause: Box<StreamError>,
        /// Finished tensors.
        done: usize,
        /// All tensors.
        of: usize,
        /// The record of the run; the halves lie beside it.
        journal: PathBuf,
    },
    /// NaN or infinity in the source.
    #[error(
        "{}: tensor `{tensor}`, row {row} holds {value}, which cannot be encoded; the source is damaged, fetch or make it again",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row.
        row: usize,
        /// The value.
        value: f32,
    },
    /// A value beyond the range of the type it should become.
    #[error(
        "{}: tensor `{tensor}`, row {row} holds {value}, which {to} cannot; use --tensor-type '{}=BF16'",
        path.display(),
        regex::escape(.tensor)
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row.
        row: usize,
        /// The value.
        value: f32,
        /// The type.
        to: BlockType,
    },
    /// The frequency factors of the source are of a kind the cloud's key cannot hold.
    #[error(
        "{}: tensor `rope_freqs.weight` is {found}, not F32; make the source again with a current llama.cpp",
        path.display()
    )]
    RopeFreqs {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: BlockType,
    },
    /// No thread could be started.
    #[error("cannot start a thread; try -t 1")]
    Threads(#[source] io::Error),
    /// A bug.
    #[error("internal error: {0}; please report it with the command line")]
    Internal(&'static str),
}

impl StreamError {
    /// A write to `path` that failed; says what helps when there is no room.
    pub fn write(path: &Path, source: WriteError) -> Self {
        let full = |e: &io::Error| {
            matches!(
                e.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            )
        };
        let hint = match &source {
            WriteError::Io(e) if full(e) => {
                " (make room there or choose another folder with --out)"
            }
            // Only a folder is made where something may stand already.
            WriteError::Io(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                " (it is not a folder; choose one with --out)"
            }
            _ => "",
        };
        Self::Write {
            path: path.to_owned(),
            hint,
            source,
        }
    }

    /// Whether the same command may get further another time: then what is finished is worth
    /// keeping. The others need another source or another recipe, which begin anew.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::Read { .. }
            | Self::SourceChanged { .. }
            | Self::Exists { .. }
            | Self::Busy { .. }
            | Self::Unpublished { .. }
            | Self::Interrupted
            | Self::Kept { .. }
            | Self::Threads(_) => true,
            Self::NotFinite { .. }
            | Self::TooLarge { .. }
            | Self::RopeFreqs { .. }
            | Self::Internal(_) => false,
        }
    }
}
