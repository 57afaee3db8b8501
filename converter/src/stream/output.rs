//! The two files while they are written: under a temporary name, locked, and gone again unless
//! they are finished.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use formats::gguf::{Metadata, TensorDecl, WriteError, Writer, encode_header};

use super::StreamError;

/// Bytes handed to the system at once.
const BUFFER: usize = 1 << 20;

/// The name under which `path` is written.
pub fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// A file that removes itself when dropped before [`Finished::publish`].
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    temporary: PathBuf,
    keep: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing better can be done about a failure here; the name says what the file is.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// A file being written.
pub(super) struct Output {
    // Before `partial`: the file is closed, then removed.
    writer: Writer<BufWriter<File>>,
    tensors: Vec<TensorDecl>,
    header_bytes: usize,
    partial: Partial,
}

impl Output {
    /// Opens the temporary file of `path` and writes a header into it, which
    /// [`Output::finish`] will replace by one of the same size.
    pub(super) fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: Vec<TensorDecl>,
    ) -> Result<Self, StreamError> {
        let temporary = partial_name(path);
        let fail = |e| StreamError::write(&temporary, e);
        // Not truncated before it is locked: it may be another process's.
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false);
        let file = file.open(&temporary).map_err(|e| fail(e.into()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StreamError::Busy { path: temporary });
            }
            // A file system without locks: then the user must take care.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(fail(e.into())),
        }
        let partial = Partial {
            path: path.to_owned(),
            temporary: temporary.clone(),
            keep: false,
        };
        file.set_len(0).map_err(|e| fail(e.into()))?;
        let header = encode_header(metadata, &tensors).map_err(fail)?;
        let sink = BufWriter::with_capacity(BUFFER, file);
        let writer = Writer::new(sink, metadata, tensors.clone()).map_err(fail)?;
        Ok(Self {
            writer,
            tensors,
            header_bytes: header.bytes.len(),
            partial,
        })
    }

    /// Appends to the current tensor.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.writer
            .write(bytes)
            .map_err(|e| StreamError::write(&self.partial.temporary, e))
    }

    /// Writes the final header over the first one and makes all of it durable.
    pub(super) fn finish(self, metadata: &Metadata) -> Result<Finished, StreamError> {
        let Self {
            writer,
            tensors,
            header_bytes,
            partial,
        } = self;
        let fail = |e| StreamError::write(&partial.temporary, e);
        let io = |e: io::Error| StreamError::write(&partial.temporary, e.into());
        let header = encode_header(metadata, &tensors).map_err(fail)?;
        if header.bytes.len() != header_bytes {
            return Err(StreamError::Internal("the header changed its size"));
        }
        let sink = writer.finish().map_err(fail)?;
        let mut file = sink.into_inner().map_err(|e| io(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(&header.bytes).map_err(io)?;
        file.sync_all().map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        Ok(Finished {
            _file: file,
            partial,
            bytes,
        })
    }
}

/// A complete file that still has its temporary name.
pub(super) struct Finished {
    // Holds the lock until the file has its name.
    _file: File,
    partial: Partial,
    pub(super) bytes: u64,
}

impl Finished {
    /// Gives the file its name. With `replace`, over a file that stands there.
    pub(super) fn publish(mut self, replace: bool) -> Result<(), StreamError> {
        let path = self.partial.path.clone();
        if !replace && path.exists() {
            return Err(StreamError::Exists { path });
        }
        let renamed = std::fs::rename(&self.partial.temporary, &path);
        renamed.map_err(|e| StreamError::write(&path, e.into()))?;
        self.partial.keep = true;
        Ok(())
    }
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StreamError> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    // Elsewhere a folder cannot be opened as a file.
    if cfg!(unix) {
        let synced = File::open(folder).and_then(|f| f.sync_all());
        synced.map_err(|e| StreamError::write(folder, WriteError::Io(e)))?;
    }
    Ok(())
}
