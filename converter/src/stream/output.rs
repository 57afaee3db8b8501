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

/// The name under which the file that stood at `path` waits until its successor is safe.
fn backup_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".splitconv-old");
    PathBuf::from(name)
}

/// A file that removes itself when dropped before it is published.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    temporary: PathBuf,
    keep: bool,
    // Shares the lock with every other handle of the file. Fields are dropped after `drop` has
    // run, so the name goes first: nobody can lock a file that is about to vanish.
    file: File,
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
        let partial = Partial {
            path: path.to_owned(),
            temporary: temporary.clone(),
            keep: false,
            file: open_locked(&temporary)?,
        };
        let file = partial.file.try_clone().map_err(|e| fail(e.into()))?;
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
        Ok(Finished { partial, bytes })
    }
}

/// How often another process may take the name away between opening and locking.
const ATTEMPTS: u32 = 16;

/// Opens (or makes) `temporary` and locks it. What comes back is locked, still has that name and
/// no other one: a link would lead the writing into somebody else's file.
fn open_locked(temporary: &Path) -> Result<File, StreamError> {
    let fail = |e: io::Error| StreamError::write(temporary, e.into());
    for _ in 0..ATTEMPTS {
        let mut options = OpenOptions::new();
        options.write(true);
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

/// A complete file that still has its temporary name; locked until it has its own.
pub(super) struct Finished {
    partial: Partial,
    pub(super) bytes: u64,
}

/// Gives both files their names, or neither. With `replace`, over files that stand there: those
/// are kept aside until both new ones are in place, and put back when one cannot be.
pub(super) fn publish(
    mut files: [Finished; 2],
    folder: &Path,
    replace: bool,
) -> Result<(), StreamError> {
    let mut places: Vec<Place> = Vec::with_capacity(files.len());
    for file in &mut files {
        let path = file.partial.path.clone();
        if !replace && path.exists() {
            return Err(StreamError::Exists { path });
        }
        let fail = |e: io::Error| StreamError::write(&path, e.into());
        let place = Place::take(&path).map_err(fail)?;
        places.push(place);
        std::fs::rename(&file.partial.temporary, &path).map_err(fail)?;
        file.partial.keep = true;
        if let Some(place) = places.last_mut() {
            place.taken = true;
        }
    }
    sync_folder(folder)?;
    for place in &mut places {
        place.settle();
    }
    Ok(())
}

/// A name that a new file is to get. Dropped before [`Place::settle`], it is as it was before.
struct Place {
    path: PathBuf,
    /// Where the file that stood there is kept.
    backup: Option<PathBuf>,
    /// Whether the new file stands there.
    taken: bool,
    settled: bool,
}

impl Place {
    /// Keeps aside what stands at `path`.
    fn take(path: &Path) -> io::Result<Self> {
        let mut place = Self {
            path: path.to_owned(),
            backup: None,
            taken: false,
            settled: false,
        };
        // A folder of that name is nothing to be replaced: the rename will say so.
        let stands = std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_dir());
        if stands {
            let backup = backup_name(path);
            remove(&backup)?;
            // A second name leaves the first one valid at every moment; not every file system
            // has them.
            if std::fs::hard_link(path, &backup).is_err() {
                std::fs::rename(path, &backup)?;
            }
            place.backup = Some(backup);
        }
        Ok(place)
    }

    /// The new file stays; the old one goes.
    fn settle(&mut self) {
        self.settled = true;
        if let Some(backup) = &self.backup {
            // The pair is whole and durable; a file too many is no reason to fail.
            let _ = remove(backup);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        // Should putting back fail, the old file still has its second name.
        match &self.backup {
            // Renaming one of two names of the same file over the other does nothing.
            Some(backup) if std::fs::rename(backup, &self.path).is_ok() => {
                let _ = remove(backup);
            }
            None if self.taken => {
                let _ = remove(&self.path);
            }
            _ => {}
        }
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes the names in `folder` durable.
fn sync_folder(folder: &Path) -> Result<(), StreamError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(path: &Path, text: &str) -> Finished {
        let mut file = open_locked(&partial_name(path)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Finished {
            partial: Partial {
                path: path.to_owned(),
                temporary: partial_name(path),
                keep: false,
                file,
            },
            bytes: text.len() as u64,
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

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

    #[test]
    fn both_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let two = || [finished(&a, "new a"), finished(&b, "new b")];
        std::fs::create_dir(&b).unwrap();
        // Nothing stood at `a`: nothing stands there again.
        assert!(publish(two(), dir.path(), true).is_err());
        assert_eq!(names(dir.path()), ["b"]);
        // The old `a` is back.
        std::fs::write(&a, "old a").unwrap();
        assert!(publish(two(), dir.path(), true).is_err());
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert_eq!(std::fs::read(&a).unwrap(), b"old a");
        std::fs::remove_dir(&b).unwrap();
        std::fs::write(&b, "old b").unwrap();
        // A backup that a killed run has left is no obstacle.
        std::fs::write(backup_name(&b), "older b").unwrap();
        assert!(publish(two(), dir.path(), false).is_err());
        assert_eq!(std::fs::read(&b).unwrap(), b"old b");
        publish(two(), dir.path(), true).unwrap();
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert_eq!(std::fs::read(&a).unwrap(), b"new a");
        assert_eq!(std::fs::read(&b).unwrap(), b"new b");
    }

    /// The old file is there when the rename over it fails: both its names are one file.
    #[test]
    fn a_place_not_taken_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "old").unwrap();
        drop(Place::take(&path).unwrap());
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}
