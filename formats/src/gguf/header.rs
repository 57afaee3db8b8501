//! Parsing a header: bounded by the bytes at hand, never by what the header claims.

use std::collections::HashSet;

use super::error::GgufErrorKind as Kind;
use super::value::{Metadata, Value, ValueType};
use crate::blocks::BlockType;

/// Longest metadata key, from the GGUF specification.
const MAX_KEY: u64 = 65_535;
/// Longest tensor name we accept; GGML itself stops at 64.
const MAX_NAME: u64 = 1_024;
/// Arrays of arrays deeper than this are refused.
const MAX_NESTING: usize = 4;
/// Alignment of tensor data without `general.alignment`.
pub(crate) const DEFAULT_ALIGNMENT: usize = 32;

/// Where a tensor is and how it is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, as `blk.0.attn_q.weight`.
    pub name: String,
    /// Sizes, GGML order: `dims[0]` is the length of a row. One to four of them.
    pub dims: Vec<u64>,
    /// Block type.
    pub block_type: BlockType,
    /// First byte in its file.
    pub start: usize,
    /// Bytes of data.
    pub bytes: usize,
}

impl TensorInfo {
    /// Weights in a row.
    pub fn row_len(&self) -> usize {
        self.dims.first().map_or(1, |d| *d as usize)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).map(|d| *d as usize).product()
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.bytes.checked_div(self.rows()).unwrap_or(0)
    }
}

/// A parsed header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<TensorInfo>,
    /// First byte of the data section.
    pub(crate) data_start: usize,
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.data.len() - self.at
    }

    fn take(&mut self, n: u64, what: impl FnOnce() -> String) -> Result<&'a [u8], Kind> {
        let left = self.left();
        match usize::try_from(n) {
            Ok(n) if n <= left => {
                let out = &self.data[self.at..self.at + n];
                self.at += n;
                Ok(out)
            }
            _ => Err(Kind::Truncated {
                what: what(),
                at: self.at,
                need: n,
                left,
            }),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, Kind> {
        let b = self.take(4, || what.to_owned())?;
        Ok(b.iter().rev().fold(0, |acc, b| acc << 8 | u32::from(*b)))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Kind> {
        let b = self.take(8, || what.to_owned())?;
        Ok(b.iter().rev().fold(0, |acc, b| acc << 8 | u64::from(*b)))
    }

    fn name(&mut self, what: &str, max: u64) -> Result<String, Kind> {
        let n = self.u64(what)?;
        if n > max {
            return Err(Kind::Malformed {
                what: format!("{what} at byte {}", self.at),
                why: format!("a length of {n} bytes, more than the {max} allowed"),
            });
        }
        let bytes = self.take(n, || what.to_owned())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| Kind::Malformed {
            what: format!("{what} {:?}", String::from_utf8_lossy(bytes)),
            why: "not UTF-8".into(),
        })
    }

    /// Steps over one value of type `ty`, checking that all of it is there.
    fn skip_value(&mut self, ty: ValueType, key: &str, depth: usize) -> Result<(), Kind> {
        let what = || format!("the value of `{key}`");
        if let Some(n) = ty.fixed_size() {
            self.take(n as u64, what)?;
            return Ok(());
        }
        if ty == ValueType::String {
            let n = self.u64("a string length")?;
            self.take(n, what)?;
            return Ok(());
        }
        if depth == MAX_NESTING {
            return Err(Kind::Malformed {
                what: what(),
                why: format!("arrays nested deeper than {MAX_NESTING}"),
            });
        }
        let elem = self.value_type(key)?;
        let count = self.u64("an array length")?;
        if let Some(size) = elem.fixed_size() {
            let bytes = count.saturating_mul(size as u64);
            self.take(bytes, what)?;
            return Ok(());
        }
        let min = if elem == ValueType::String { 8 } else { 12 };
        self.check_count(count, min, "array elements")?;
        for _ in 0..count {
            self.skip_value(elem, key, depth + 1)?;
        }
        Ok(())
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, Kind> {
        let id = self.u32("a value type")?;
        ValueType::from_id(id).ok_or_else(|| Kind::Malformed {
            what: format!("key `{key}`"),
            why: format!("unknown value type {id}"),
        })
    }

    fn check_count(&self, count: u64, min_bytes: usize, what: &'static str) -> Result<(), Kind> {
        let room = self.left() / min_bytes;
        if count > room as u64 {
            return Err(Kind::AbsurdCount { what, count, room });
        }
        Ok(())
    }
}

pub(crate) fn parse(data: &[u8]) -> Result<Header, Kind> {
    let mut c = Cursor { data, at: 0 };
    if !data.starts_with(b"GGUF") {
        return Err(Kind::NotGguf {
            found: data.iter().take(4).copied().collect(),
        });
    }
    c.at = 4;
    let version = c.u32("the version")?;
    if version != 0 && version.trailing_zeros() >= 16 {
        return Err(Kind::BigEndian);
    }
    if !(2..=3).contains(&version) {
        return Err(Kind::Version(version));
    }
    let n_tensors = c.u64("the number of tensors")?;
    let n_kv = c.u64("the number of metadata keys")?;
    c.check_count(n_kv, 13, "metadata keys")?;
    c.check_count(n_tensors, 32, "tensors")?;

    let metadata = parse_metadata(&mut c, n_kv)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = parse_tensors(&mut c, n_tensors)?;
    let data_start = c.at.next_multiple_of(alignment);
    place(&mut tensors, data_start, alignment, data.len())?;
    Ok(Header {
        version,
        alignment,
        metadata,
        tensors,
        data_start,
    })
}

fn parse_metadata(c: &mut Cursor<'_>, n_kv: u64) -> Result<Metadata, Kind> {
    let mut metadata = Metadata::new();
    let mut seen = HashSet::new();
    for _ in 0..n_kv {
        let key = c.name("a metadata key", MAX_KEY)?;
        let ty = c.value_type(&key)?;
        let start = c.at;
        c.skip_value(ty, &key, 0)?;
        if !seen.insert(key.clone()) {
            return Err(Kind::Malformed {
                what: format!("key `{key}`"),
                why: "it stands twice".into(),
            });
        }
        let payload = c.data[start..c.at].to_vec();
        metadata.push(key, Value::from_checked(ty, payload));
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Result<usize, Kind> {
    let Some(v) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match v.as_u32() {
        Some(a) if a.is_power_of_two() && (8..=1 << 20).contains(&a) => Ok(a as usize),
        _ => Err(Kind::Malformed {
            what: "general.alignment".into(),
            why: format!("{v} is not a power of two between 8 and 1048576"),
        }),
    }
}

/// Reads the tensor directory; `start` still holds the offset into the data section.
fn parse_tensors(c: &mut Cursor<'_>, n: u64) -> Result<Vec<TensorInfo>, Kind> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for _ in 0..n {
        let name = c.name("a tensor name", MAX_NAME)?;
        let bad = |why: String| Kind::Malformed {
            what: format!("tensor `{name}`"),
            why,
        };
        let n_dims = c.u32("a tensor's number of dimensions")?;
        if !(1..=4).contains(&n_dims) {
            return Err(bad(format!("{n_dims} dimensions; one to four are allowed")));
        }
        let mut dims = Vec::with_capacity(n_dims as usize);
        let mut weights = 1_u64;
        for _ in 0..n_dims {
            let d = c.u64("a tensor dimension")?;
            weights = weights
                .checked_mul(d)
                .filter(|w| *w > 0 && *w <= 1 << 48)
                .ok_or_else(|| bad(format!("a dimension of {d} makes an impossible size")))?;
            dims.push(d);
        }
        let id = c.u32("a tensor type")?;
        let offset = c.u64("a tensor offset")?;
        let block_type = BlockType::from_id(id).ok_or_else(|| Kind::UnknownType {
            tensor: name.clone(),
            id,
        })?;
        let bytes = block_type
            .row_bytes(dims[0] as usize)
            .and_then(|row| row.checked_mul((weights / dims[0]) as usize))
            .ok_or_else(|| {
                bad(format!(
                    "rows of {} are not whole blocks of {block_type}",
                    dims[0]
                ))
            })?;
        let start = usize::try_from(offset).map_err(|_| bad(format!("offset {offset}")))?;
        if !seen.insert(name.clone()) {
            return Err(bad("it stands twice".into()));
        }
        tensors.push(TensorInfo {
            name,
            dims,
            block_type,
            start,
            bytes,
        });
    }
    Ok(tensors)
}

/// Turns offsets into file positions and checks alignment, range and overlap.
fn place(
    tensors: &mut [TensorInfo],
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> Result<(), Kind> {
    for t in tensors.iter_mut() {
        if !t.start.is_multiple_of(alignment) {
            return Err(Kind::Malformed {
                what: format!("tensor `{}`", t.name),
                why: format!(
                    "offset {} is not a multiple of the alignment {alignment}",
                    t.start
                ),
            });
        }
        let start = data_start.checked_add(t.start);
        let end = start.and_then(|s| s.checked_add(t.bytes));
        match (start, end) {
            (Some(s), Some(e)) if e <= file_len => t.start = s,
            _ => {
                return Err(Kind::TensorOutOfFile {
                    tensor: t.name.clone(),
                    start: start.map_or(u64::MAX, |s| s as u64),
                    end: end.map_or(u64::MAX, |e| e as u64),
                    len: file_len as u64,
                });
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.start);
    for w in order.windows(2) {
        if w[0].start + w[0].bytes > w[1].start {
            return Err(Kind::Overlap {
                a: w[0].name.clone(),
                b: w[1].name.clone(),
            });
        }
    }
    Ok(())
}
