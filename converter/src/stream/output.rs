//! The files of a run while they are written: under temporary names, locked, and gone again unless
//! they are worth keeping.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use formats::gguf::{EncodedHeader, Metadata, TensorDecl, encode_header};

use super::StreamError;
use crate::at;

/// The name under which `path` is written.
pub fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// A file of a run, locked. It removes itself when dropped, unless it is to be kept.
#[derive(Debug)]
pub(super) struct Partial {
    pub(super) temporary: PathBuf,
    /// Whether it stays.
    pub(super) keep: bool,
    // Shares the lock with every other handle of the file. Fields are dropped after `drop` has
    // run, so the name goes first: nobody can lock a file that is about to vanish.
    pub(super) file: File,
}

impl Partial {
    /// Opens or makes the file `temporary`.
    pub(super) fn open(temporary: PathBuf) -> Result<Self, StreamError> {
        let file = open_locked(&temporary)?;
        Ok(Self {
            temporary,
            keep: false,
            file,
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing better can be done about a failure here; the name says what the file is.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// A half being written: tensors first, in any order, each at its place. Before the last of them
/// is there it has no header, so no program can take it for a model.
pub(super) struct Output {
    pub(super) partial: Partial,
    tensors: Vec<TensorDecl>,
    /// What it will look like; its bytes are not the final ones, but as many.
    layout: EncodedHeader,
}

impl Output {
    /// Opens the temporary file of `path`, for `tensors` behind a header of the size that
    /// `metadata` has.
    pub(super) fn open(
        path: &Path,
        metadata: &Metadata,
        tensors: Vec<TensorDecl>,
    ) -> Result<Self, StreamError> {
        let temporary = partial_name(path);
        let layout =
            encode_header(metadata, &tensors).map_err(|e| StreamError::write(&temporary, e))?;
        Ok(Self {
            partial: Partial::open(temporary)?,
            tensors,
            layout,
        })
    }

    /// The first byte of tensor `number` of this half.
    pub(super) fn start(&self, number: usize) -> Option<u64> {
        self.layout.starts.get(number).map(|s| *s as u64)
    }

    /// Makes it empty.
    pub(super) fn clear(&self) -> Result<(), StreamError> {
        let cleared = self.partial.file.set_len(0);
        cleared.map_err(|e| StreamError::write(&self.partial.temporary, e.into()))
    }

    /// Writes all that is no tensor, and makes the whole file durable; returns its size.
    pub(super) fn finish(&self, metadata: &Metadata) -> Result<u64, StreamError> {
        let name = &self.partial.temporary;
        let file = &self.partial.file;
        let io = |e: io::Error| StreamError::write(name, e.into());
        let header =
            encode_header(metadata, &self.tensors).map_err(|e| StreamError::write(name, e))?;
        if header.starts != self.layout.starts {
            return Err(StreamError::Internal("the header changed its size"));
        }
        let ends = self.tensors.iter().zip(&header.starts);
        let ends = ends.map(|(t, start)| start + t.bytes().unwrap_or(0));
        let next = header.starts.iter().skip(1).copied();
        for (end, next) in ends.zip(next.chain([header.file_bytes])) {
            at::write(file, &vec![0; next.saturating_sub(end)], end as u64).map_err(io)?;
        }
        file.set_len(header.file_bytes as u64).map_err(io)?;
        at::write(file, &header.bytes, 0).map_err(io)?;
        file.sync_all().map_err(io)?;
        Ok(header.file_bytes as u64)
    }
}

/// How often another process may take the name away between opening and locking.
const ATTEMPTS: u32 = 16;

/// Opens (or makes) `temporary` and locks it. What comes back is locked, still has that name and
/// no other one: a link would lead the writing into somebody else's file.
pub(super) fn open_locked(temporary: &Path) -> Result<File, StreamError> {
    let fail = |e: io::Error| StreamError::write(temporary, e.into());
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let opened = match std::fs::symlink_metadata(temporary) {
            // Not truncated before it is locked: it may be another process's.
            Ok(found) => plain(&found).and_then(|()| options.open(temporary)),
            // `create_new` follows no link that appears meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                options.create_new(true).open(temporary)
            }
            Err(e) => Err(e),
        };
        let file = match opened {
            Ok(file) => file,
            // Somebody made or renamed it between the look and the opening, unless its folder is
            // missing.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound && has_folder(temporary) => continue,
            Err(e) => return Err(fail(e)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => break,
            // A file system without locks: then the user must take care.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(fail(e)),
        }
        // Since it was opened, its owner may have renamed it: then this is a finished model.
        if is_named(&file, temporary).map_err(fail)? {
            let found = file.metadata().map_err(fail)?;
            plain(&found).map_err(fail)?;
            return Ok(file);
        }
    }
    Err(StreamError::Busy {
        path: temporary.to_owned(),
    })
}

fn has_folder(path: &Path) -> bool {
    path.parent()
        .is_some_and(|p| p.as_os_str().is_empty() || p.is_dir())
}

/// Refuses what is no ordinary file with one name.
fn plain(found: &std::fs::Metadata) -> io::Result<()> {
    #[cfg(unix)]
    let names = std::os::unix::fs::MetadataExt::nlink(found);
    #[cfg(not(unix))]
    let names = 1;
    let what = if !found.is_file() {
        "it is a link or no ordinary file; remove it"
    } else if names > 1 {
        "it is another name of some other file; remove it"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// Whether `path` names the very file that `file` is; a link to it does not.
#[cfg(unix)]
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Elsewhere the standard library cannot tell; that the name is still there is the best known.
#[cfg(not(unix))]
fn is_named(_: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// What the loser of the race holds: a handle of a file that got its own name meanwhile.
    #[cfg(unix)]
    #[test]
    fn a_renamed_file_is_not_the_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("m"), dir.path().join("m.partial"));
        let opened = File::create(&temporary).unwrap();
        assert!(is_named(&opened, &temporary).unwrap());
        std::fs::rename(&temporary, &path).unwrap();
        assert!(!is_named(&opened, &temporary).unwrap());
        File::create(&temporary).unwrap();
        assert!(!is_named(&opened, &temporary).unwrap());
        assert!(is_named(&open_locked(&temporary).unwrap(), &temporary).unwrap());
    }

    /// Many writers of one name: what has been published is never touched again.
    #[cfg(unix)]
    #[test]
    fn racing_writers_never_truncate_a_finished_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Ok(file) = open_locked(&partial_name(&path)) else {
                            continue;
                        };
                        file.set_len(0).unwrap();
                        (&file).write_all(b"whole").unwrap();
                        std::fs::rename(partial_name(&path), &path).unwrap();
                        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
                    }
                });
            }
        });
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }
}
