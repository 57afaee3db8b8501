//! llama.cpp's GGUF form, and the statistics of the boundary and the sensitivities in it.

use std::collections::BTreeMap;

use super::{Entry, Imatrix, ImatrixError, ImatrixErrorKind as Kind, check};
use super::{boundary, sensitivity};
use crate::blocks::BlockType;
use crate::gguf::{Gguf, Metadata, TensorDecl, TensorInfo, Value, WriteError, Writer};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// The values of an F32 tensor.
pub(super) fn floats(file: &Gguf, t: &TensorInfo) -> Result<Vec<f32>, Kind> {
    if t.block_type != BlockType::F32 {
        return Err(Kind::Entry {
            tensor: t.name.clone(),
            why: format!("it is {}, not F32", t.block_type),
        });
    }
    let (words, _) = file.data(t).as_chunks::<4>();
    Ok(words.iter().map(|w| f32::from_le_bytes(*w)).collect())
}

pub(super) fn read(file: &Gguf) -> Result<Imatrix, ImatrixError> {
    parse(file).map_err(|kind| ImatrixError::new(file.path(), kind))
}

fn parse(file: &Gguf) -> Result<Imatrix, Kind> {
    let meta = file.metadata();
    let kind = meta.get("general.type").and_then(Value::as_str);
    if kind != Some("imatrix") {
        let found: String = kind.unwrap_or("model").chars().take(40).collect();
        return Err(Kind::OtherGguf { found });
    }
    let number = |key| meta.get(key).and_then(Value::as_u32).unwrap_or(0);
    let names = meta.get("imatrix.datasets").and_then(Value::as_array);
    let datasets = names.and_then(|a| a.strings()).map(|all| {
        all.map(|s| String::from_utf8_lossy(s).into_owned())
            .collect()
    });
    let mut out = Imatrix {
        datasets: datasets.unwrap_or_default(),
        chunk_count: number("imatrix.chunk_count"),
        chunk_size: number("imatrix.chunk_size"),
        entries: BTreeMap::new(),
        boundary: boundary::read(file)?,
        sensitivity: sensitivity::read(file)?,
    };
    for t in file.tensors() {
        if let Some(name) = t.name.strip_suffix(COUNTS)
            && file.tensor(&format!("{name}{SUMS}")).is_none()
        {
            return Err(Kind::Alone {
                tensor: t.name.clone(),
                missing: SUMS.into(),
            });
        }
        let Some(name) = t.name.strip_suffix(SUMS) else {
            continue;
        };
        let Some(counts) = file.tensor(&format!("{name}{COUNTS}")) else {
            return Err(Kind::Alone {
                tensor: t.name.clone(),
                missing: COUNTS.into(),
            });
        };
        let entry = Entry {
            sums: floats(file, t)?,
            counts: floats(file, counts)?,
        };
        check(name, &entry)?;
        out.entries.insert(name.to_owned(), entry);
    }
    if out.entries.is_empty() {
        return Err(Kind::Empty);
    }
    Ok(out)
}

pub(super) fn write(im: &Imatrix) -> Result<Vec<u8>, WriteError> {
    let mut meta = Metadata::new();
    meta.set("general.type", Value::string("imatrix"));
    meta.set("imatrix.datasets", Value::string_array(&im.datasets));
    meta.set("imatrix.chunk_count", Value::u32(im.chunk_count));
    meta.set("imatrix.chunk_size", Value::u32(im.chunk_size));
    let mut tensors: Vec<(TensorDecl, &[f32])> = Vec::new();
    for (name, e) in &im.entries {
        let n = e.counts.len();
        if n == 0 || e.sums.is_empty() || !e.sums.len().is_multiple_of(n) {
            return Err(WriteError::BadTensor(name.clone()));
        }
        let row = (e.sums.len() / n) as u64;
        tensors.push((decl(format!("{name}{SUMS}"), row, n as u64), &e.sums));
        tensors.push((decl(format!("{name}{COUNTS}"), 1, n as u64), &e.counts));
    }
    if let Some(b) = &im.boundary {
        boundary::describe(b, &mut meta, &mut tensors)?;
    }
    if let Some(s) = &im.sensitivity {
        sensitivity::describe(s, &mut meta, &mut tensors)?;
    }
    let decls = tensors.iter().map(|(d, _)| d.clone()).collect();
    let mut writer = Writer::new(Vec::new(), &meta, decls)?;
    for (_, values) in tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.write(&bytes)?;
    }
    writer.finish()
}

/// An F32 tensor of `rows` rows of `row` values.
pub(super) fn decl(name: String, row: u64, rows: u64) -> TensorDecl {
    TensorDecl {
        name,
        dims: vec![row, rows],
        block_type: BlockType::F32,
    }
}

pub(super) type Tensors<'a> = Vec<(TensorDecl, &'a [f32])>;

pub(super) fn push<'a>(
    tensors: &mut Tensors<'a>,
    name: &str,
    values: &'a [f32],
    rows: usize,
) -> Result<(), WriteError> {
    if rows == 0 || values.is_empty() || !values.len().is_multiple_of(rows) {
        return Err(WriteError::BadTensor(name.to_owned()));
    }
    let row = (values.len() / rows) as u64;
    tensors.push((decl(name.to_owned(), row, rows as u64), values));
    Ok(())
}
