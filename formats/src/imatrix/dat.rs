//! The older form of llama.cpp: little-endian, no magic.
//!
//! `i32` number of entries; each: `i32` length of the name, name, `i32` calls, `i32` number of
//! values, values (F32: mean square × calls). Then, if there is more: `i32` chunks, `i32` length
//! of the text's name, name.

use std::path::Path;

use super::{Entry, Imatrix, ImatrixError, ImatrixErrorKind as Kind, check};

/// GGML's own names have 64 bytes; some room for prefixes.
const MAX_NAME: usize = 1024;
/// More than the numbers of any model; a larger file is something else.
const MAX_FILE: u64 = 4 << 30;

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Kind> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(Kind::NotImatrix {
                why: format!("{what} needs {n} bytes, {} are left", self.rest.len()),
            });
        };
        self.rest = tail;
        Ok(head)
    }

    fn number(&mut self, what: &str) -> Result<i32, Kind> {
        let mut b = [0; 4];
        b.copy_from_slice(self.take(4, what)?);
        Ok(i32::from_le_bytes(b))
    }

    /// A number that is a length of at least `least`.
    fn length(&mut self, what: &str, least: usize) -> Result<usize, Kind> {
        let n = self.number(what)?;
        usize::try_from(n)
            .ok()
            .filter(|n| *n >= least)
            .ok_or_else(|| Kind::NotImatrix {
                why: format!("{what} is {n}"),
            })
    }

    fn name(&mut self, what: &str, least: usize) -> Result<String, Kind> {
        let n = self.length(what, least)?;
        if n > MAX_NAME {
            return Err(Kind::NotImatrix {
                why: format!("{what} is {n}"),
            });
        }
        let bytes = self.take(n, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Kind::NotImatrix {
            why: "a name is not UTF-8".into(),
        })
    }
}

pub(super) fn read(path: &Path) -> Result<Imatrix, ImatrixError> {
    let fail = |kind| ImatrixError::new(path, kind);
    let size = std::fs::metadata(path).map_err(|e| fail(e.into()))?.len();
    if size > MAX_FILE {
        return Err(fail(Kind::NotImatrix {
            why: format!("{size} bytes are too many"),
        }));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(e.into()))?;
    parse(&bytes).map_err(fail)
}

pub(super) fn parse(bytes: &[u8]) -> Result<Imatrix, Kind> {
    let mut c = Cursor { rest: bytes };
    let mut out = Imatrix::default();
    for _ in 0..c.length("the number of entries", 1)? {
        let name = c.name("the length of a name", 1)?;
        let calls = c.number("a number of calls")?;
        let n = c.length("a number of values", 1)?;
        let size = n.checked_mul(4).ok_or_else(|| Kind::NotImatrix {
            why: format!("{n} values"),
        })?;
        let (words, _) = c.take(size, "values")?.as_chunks::<4>();
        let entry = Entry {
            sums: words.iter().map(|w| f32::from_le_bytes(*w)).collect(),
            // Without calls the values stand for themselves.
            counts: vec![calls.max(1) as f32],
        };
        check(&name, &entry)?;
        if out.entries.insert(name.clone(), entry).is_some() {
            return Err(Kind::Entry {
                tensor: name,
                why: "it stands twice".into(),
            });
        }
    }
    if !c.rest.is_empty() {
        out.chunk_count = u32::try_from(c.number("the number of chunks")?).unwrap_or(0);
        if !c.rest.is_empty() {
            let name = c.name("the length of the text's name", 0)?;
            out.datasets.extend((!name.is_empty()).then_some(name));
        }
    }
    Ok(out)
}
