//! The bytes of a tensor as rows, in the order that GGUF wants them, read when they are wanted.
//!
//! Not through the map that a header was read from: a file that is cut short while it is mapped
//! ends the process with `SIGBUS`, a disk that fails likewise. Reading by position makes both an
//! error that has a name, and holds no more in memory than is asked for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::at;

/// The bytes of a tensor: rows of equal length, where they are stored and in which order they
/// are to be read.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    path: &'a Path,
    store: Store<'a>,
    bytes: usize,
    count: usize,
    order: RowOrder,
}

#[derive(Clone, Copy, Debug)]
enum Store<'a> {
    /// The file, and the position of the first byte.
    File(&'a File, u64),
    Memory(&'a [u8]),
}

/// In which order the rows of a tensor are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are stored.
    Stored,
    /// Hugging Face rotates the two halves of a head against each other, llama.cpp's `llama`
    /// neighbours: row `2j + k` of a head is its stored row `k · head_dim / 2 + j`.
    Interleaved {
        /// Rows of one head; even, and a divisor of the number of rows.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The stored row that is handed out as row `row`.
    pub fn stored(self, row: usize) -> usize {
        match self {
            Self::Stored => row,
            Self::Interleaved { head_dim } => {
                let within = row % head_dim;
                row - within + within % 2 * (head_dim / 2) + within / 2
            }
        }
    }
}

impl<'a> Rows<'a> {
    /// `rows` rows, `bytes` bytes together, from position `start` of `file`, which is called
    /// `path`.
    pub fn in_file(path: &'a Path, file: &'a File, start: u64, bytes: usize, rows: usize) -> Self {
        Self {
            path,
            store: Store::File(file, start),
            bytes,
            count: rows,
            order: RowOrder::Stored,
        }
    }

    /// `rows` rows that were made of the contents of the file `path`.
    pub fn in_memory(path: &'a Path, bytes: &'a [u8], rows: usize) -> Self {
        Self {
            path,
            store: Store::Memory(bytes),
            bytes: bytes.len(),
            count: rows,
            order: RowOrder::Stored,
        }
    }

    /// The same rows in another order.
    #[must_use]
    pub fn ordered(self, order: RowOrder) -> Self {
        Self { order, ..self }
    }

    /// The file, for errors.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// Bytes of all rows.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn row_bytes(&self) -> usize {
        self.bytes.checked_div(self.count).unwrap_or(0)
    }

    /// Puts some rows into `out`, in place of what it held.
    ///
    /// # Errors
    /// The system's; when there are no such rows; when the file is shorter than it was.
    pub fn read(&self, rows: Range<usize>, out: &mut Vec<u8>) -> io::Result<()> {
        let n = self.row_bytes();
        out.resize(rows.len() * n, 0);
        match self.order {
            RowOrder::Stored => self.fill(rows.start * n, out),
            order @ RowOrder::Interleaved { .. } => {
                for (row, to) in rows.zip(out.chunks_exact_mut(n.max(1))) {
                    self.fill(order.stored(row) * n, to)?;
                }
                Ok(())
            }
        }
    }

    /// All rows.
    ///
    /// # Errors
    /// As [`Rows::read`].
    pub fn all(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read(0..self.count, &mut out)?;
        Ok(out)
    }

    fn fill(&self, at: usize, out: &mut [u8]) -> io::Result<()> {
        let end = at.saturating_add(out.len());
        if end > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self.store {
            Store::File(file, start) => at::read(file, out, start + at as u64),
            Store::Memory(bytes) => {
                out.copy_from_slice(&bytes[at..end]);
                Ok(())
            }
        }
    }
}

/// What tells that a file is not what it was: its size and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Size in bytes.
    pub bytes: u64,
    /// Nanoseconds since 1970; negative before.
    pub modified_ns: i128,
}

impl Stamp {
    /// The stamp of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        // Some file systems know no times; then the size must do.
        let modified_ns = found.modified().map_or(0, |t| {
            let ns = |d: std::time::Duration| d.as_nanos() as i128;
            t.duration_since(UNIX_EPOCH)
                .map_or_else(|before| -ns(before.duration()), ns)
        });
        Ok(Self {
            bytes: found.len(),
            modified_ns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_from_anywhere_in_any_order() {
        // Two heads of six rows, two bytes a row, behind three other bytes.
        let bytes: Vec<u8> = (0..12_u8).flat_map(|r| [r, r + 100]).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        std::fs::write(&path, [&[9, 9, 9], &bytes[..]].concat()).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let order = RowOrder::Interleaved { head_dim: 6 };
        let mut out = Vec::new();
        for rows in [
            Rows::in_memory(&path, &bytes, 12),
            Rows::in_file(&path, &file, 3, 24, 12),
        ] {
            assert_eq!((rows.all().unwrap(), rows.len()), (bytes.clone(), 24));
            rows.read(3..5, &mut out).unwrap();
            assert_eq!(out, [3, 103, 4, 104]);
            let rows = rows.ordered(order);
            let first: Vec<u8> = rows.all().unwrap().chunks(2).map(|r| r[0]).collect();
            assert_eq!(first, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
            rows.read(7..9, &mut out).unwrap();
            assert_eq!(out, [9, 109, 7, 107]);
            assert!(rows.read(11..13, &mut out).is_err());
        }
        file.set_len(10).unwrap();
        let rows = Rows::in_file(&path, &file, 3, 24, 12);
        let cut = rows.all().unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}
