//! The moment in which two files get their names: both or neither, also when the process is
//! killed in between.
//!
//! The journal says before the first renaming that both files are whole. So whoever finds it
//! saying so can do the rest.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use formats::gguf::{Gguf, WriteError};
use formats::pair::HalfInfo;

use super::StreamError;
use super::journal::Publish;
use super::output::partial_name;

/// The name under which the file that stood at `path` waits until its successor is safe.
fn backup_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".splitconv-old");
    PathBuf::from(name)
}

/// Gives both files, complete under their temporary names, the names `paths`, or neither. With
/// `replace`, over files that stand there: those are kept aside until both new ones are in
/// place, and put back when one cannot be.
pub(super) fn publish(
    paths: &[PathBuf; 2],
    folder: &Path,
    replace: bool,
) -> Result<(), StreamError> {
    let mut places: Vec<Place> = Vec::with_capacity(paths.len());
    for path in paths {
        if !replace && path.exists() {
            return Err(StreamError::Exists { path: path.clone() });
        }
        let fail = |e: io::Error| StreamError::write(path, e.into());
        let place = Place::take(path).map_err(fail)?;
        places.push(place);
        std::fs::rename(partial_name(path), path).map_err(fail)?;
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

/// Does what a killed run had begun: gives the files their names that do not have them yet.
/// `false` when nothing of that run is there any more.
///
/// # Errors
/// When a file is not the one that was finished, or stands where no file may be replaced, or
/// cannot be renamed.
pub(super) fn complete(
    paths: &[PathBuf; 2],
    folder: &Path,
    journal: &Path,
    publish: &Publish,
) -> Result<bool, StreamError> {
    let temporary = paths.each_ref().map(|p| partial_name(p));
    if !paths.iter().chain(&temporary).any(|p| p.exists()) {
        return Ok(false);
    }
    // All is looked at before anything is touched.
    for (no, (path, temporary)) in paths.iter().zip(&temporary).enumerate() {
        let waits = temporary.exists();
        let new = if waits { temporary } else { path };
        if !is_it(new, no, publish) {
            return Err(StreamError::Unpublished {
                path: new.clone(),
                journal: journal.to_owned(),
            });
        }
        if waits && !publish.replace && path.exists() {
            return Err(StreamError::Exists { path: path.clone() });
        }
    }
    for (path, temporary) in paths.iter().zip(&temporary) {
        if temporary.exists() {
            let renamed = std::fs::rename(temporary, path);
            renamed.map_err(|e| StreamError::write(path, e.into()))?;
        }
    }
    sync_folder(folder)?;
    if publish.replace {
        for path in paths {
            // The pair is whole and durable; a file too many is no reason to fail.
            let _ = remove(&backup_name(path));
        }
    }
    Ok(true)
}

/// Whether the file is half `no` of the pair that was about to be published.
fn is_it(path: &Path, no: usize, publish: &Publish) -> bool {
    let Ok(file) = Gguf::open(path) else {
        return false;
    };
    let Ok(Some(half)) = HalfInfo::from_metadata(file.metadata()) else {
        return false;
    };
    usize::from(half.role.shard()) == no
        && Some(half.contract.pair_id) == publish.pair_id()
        && publish.bytes.get(no) == Some(&(file.file_bytes() as u64))
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
        // Should putting back fail, both files still have a name.
        if self.taken && std::fs::rename(&self.path, partial_name(&self.path)).is_err() {
            return;
        }
        if let Some(backup) = &self.backup {
            // Renaming one of two names of the same file over the other does nothing.
            if std::fs::rename(backup, &self.path).is_ok() {
                let _ = remove(backup);
            }
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

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Whatever stands in the way, both old files are as they were and both new ones wait.
    #[test]
    fn both_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|n| dir.path().join(n));
        let [a, b] = &paths;
        let two = || {
            for (path, text) in paths.iter().zip(["new a", "new b"]) {
                std::fs::write(partial_name(path), text).unwrap();
            }
        };
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let wait = || {
            assert_eq!(read(&partial_name(a)), "new a");
            assert_eq!(read(&partial_name(b)), "new b");
        };
        std::fs::create_dir(b).unwrap();
        two();
        // Nothing stood at `a`: nothing stands there again.
        assert!(publish(&paths, dir.path(), true).is_err());
        assert_eq!(names(dir.path()), ["a.partial", "b", "b.partial"]);
        wait();
        // The old `a` is back.
        std::fs::write(a, "old a").unwrap();
        assert!(publish(&paths, dir.path(), true).is_err());
        assert_eq!(names(dir.path()), ["a", "a.partial", "b", "b.partial"]);
        assert_eq!(read(a), "old a");
        wait();
        std::fs::remove_dir(b).unwrap();
        std::fs::write(b, "old b").unwrap();
        // A backup that a killed run has left is no obstacle.
        std::fs::write(backup_name(b), "older b").unwrap();
        assert!(publish(&paths, dir.path(), false).is_err());
        assert_eq!(read(b), "old b");
        publish(&paths, dir.path(), true).unwrap();
        assert_eq!(names(dir.path()), ["a", "b"]);
        assert_eq!((read(a).as_str(), read(b).as_str()), ("new a", "new b"));
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
