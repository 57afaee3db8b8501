//! Safetensors files, mapped: their headers checked, their tensors found by name.
//!
//! The `safetensors` crate checks that tensors follow each other without holes or overlap, fill
//! the file to its end, and are as long as type and shape ask for. What it leaves open is bounded
//! here: the size of a header, a name in two files, types that are no plain floats.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use formats::blocks::BlockType;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::super::Rows;
use super::HfError;
use super::folder::{self, Weights};

/// Largest header; the crate itself would take 100 MB. A shard of a large model has 100 KB.
const MAX_HEADER: u64 = 16 << 20;

/// One open file. Its header has been read through a map; tensors are read by position, so that
/// damage is an error.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// A tensor as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Which file.
    pub(super) shard: usize,
    /// Its type.
    pub(super) dtype: BlockType,
    /// Its shape as PyTorch writes it: rows first.
    pub(super) shape: Vec<u64>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

/// All files of a model, and what stands in them.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) shards: Vec<Shard>,
    pub(super) tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Maps the files and reads their headers.
    ///
    /// `ignored` says which tensors may be of any type, because nobody reads them.
    pub(super) fn open(weights: Weights, ignored: impl Fn(&str) -> bool) -> Result<Self, HfError> {
        let mut shards: Vec<Shard> = Vec::with_capacity(weights.files.len());
        let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
        for path in weights.files {
            let (file, map) = map(
                &path,
                weights.index.as_ref().map(|(index, _)| index.as_path()),
            )?;
            let shard = shards.len();
            for (name, stored) in header(&path, &map, shard, &ignored)? {
                if let Some(other) = tensors.get(&name) {
                    return Err(HfError::Duplicate {
                        tensor: name,
                        a: shards[other.shard].path.clone(),
                        b: path,
                    });
                }
                tensors.insert(name, stored);
            }
            shards.push(Shard { path, file });
        }
        if let Some((index, promised)) = &weights.index {
            agree(index, promised, &shards, &tensors)?;
        }
        Ok(Self { shards, tensors })
    }

    /// The file that a tensor stands in.
    pub(super) fn file(&self, tensor: &Stored) -> &Path {
        &self.shards[tensor.shard].path
    }

    /// The rows of a tensor, as they are stored.
    pub(super) fn rows(&self, tensor: &Stored) -> Rows<'_> {
        let Shard { path, file } = &self.shards[tensor.shard];
        let rows = match tensor.shape.as_slice() {
            [rows, _] => *rows as usize,
            _ => 1,
        };
        let start = tensor.range.start as u64;
        Rows::in_file(path, file, start, tensor.range.len(), rows)
    }
}

/// Index and files must hold the same tensors, each where the index says.
fn agree(
    index: &Path,
    promised: &BTreeMap<String, PathBuf>,
    shards: &[Shard],
    tensors: &BTreeMap<String, Stored>,
) -> Result<(), HfError> {
    let wrong = |tensor: &str, why: String| HfError::Index {
        path: index.to_owned(),
        tensor: tensor.to_owned(),
        why,
    };
    for (name, file) in promised {
        match tensors.get(name) {
            Some(found) if shards[found.shard].path == *file => {}
            Some(found) => {
                let other = shards[found.shard].path.display().to_string();
                let why = format!("should be in {}, but is in {other}", file.display());
                return Err(wrong(name, why));
            }
            None => {
                let why = format!("should be in {}, but is not", file.display());
                return Err(wrong(name, why));
            }
        }
    }
    match tensors.iter().find(|(n, _)| !promised.contains_key(*n)) {
        None => Ok(()),
        Some((name, found)) => {
            let file = shards[found.shard].path.display();
            Err(wrong(name, format!("is in {file}, but not in the index")))
        }
    }
}

fn map(path: &Path, index: Option<&Path>) -> Result<(File, Mmap), HfError> {
    let gone = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let Some((file, bytes)) = folder::open(path)? else {
        return Err(match index {
            Some(index) => HfError::Index {
                path: index.to_owned(),
                tensor: "weight_map".to_owned(),
                why: format!("names {}, which is not there", path.display()),
            },
            None => HfError::io(path, gone()),
        });
    };
    let unsound = |why: &str| HfError::Safetensors {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    if bytes < 8 {
        return Err(unsound("it is shorter than a header"));
    }
    // SAFETY: the map is read-only and private to this program. Another process that truncates
    // the file while we run would fault us, as it would every program that maps its weights.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| HfError::io(path, e))?;
    Ok((file, map))
}

fn header(
    path: &Path,
    map: &[u8],
    shard: usize,
    ignored: &impl Fn(&str) -> bool,
) -> Result<Vec<(String, Stored)>, HfError> {
    let unsound = |why: String| HfError::Safetensors {
        path: path.to_owned(),
        why,
    };
    let size = map.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    if size > MAX_HEADER {
        return Err(unsound(format!(
            "it claims a header of {size} bytes, the limit is {MAX_HEADER}"
        )));
    }
    let (header, metadata) = SafeTensors::read_metadata(map).map_err(|e| unsound(e.to_string()))?;
    let start = 8 + header;
    let mut all = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => BlockType::F32,
            Dtype::F16 => BlockType::F16,
            Dtype::BF16 => BlockType::BF16,
            // Of no use to anybody, so its bytes may be what they like.
            _ if ignored(&name) => continue,
            other => return Err(refused(path, name, other)),
        };
        let (from, to) = info.data_offsets;
        all.push((
            name,
            Stored {
                shard,
                dtype,
                shape: info.shape.iter().map(|d| *d as u64).collect(),
                range: start + from..start + to,
            },
        ));
    }
    // The crate's map has no order of its own; errors should not depend on chance.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// A type that is no plain float: by what stands beside it, whose work it is.
fn refused(path: &Path, tensor: String, dtype: Dtype) -> HfError {
    let ends = |e: &[&str]| e.iter().any(|e| tensor.ends_with(e));
    let dtype_name = format!("{dtype:?}");
    let method = if ends(&[".qweight", ".qzeros", ".g_idx", ".scales"]) {
        "GPTQ or AWQ".to_owned()
    } else if dtype_name.starts_with("F8") {
        format!("FP8: tensor `{tensor}` is {dtype_name}")
    } else if ends(&[".SCB", ".absmax", ".quant_map", ".nested_absmax"])
        || tensor.contains(".quant_state.")
    {
        "bitsandbytes".to_owned()
    } else if ends(&[".weight_packed", ".weight_shape"]) {
        "compressed-tensors".to_owned()
    } else if ends(&[".weight"]) && matches!(dtype, Dtype::U8 | Dtype::I8) {
        format!("bitsandbytes or another 8-bit method: tensor `{tensor}` is {dtype_name}")
    } else {
        return HfError::Dtype {
            path: path.to_owned(),
            tensor,
            dtype: dtype_name,
        };
    };
    HfError::Quantised {
        path: path.to_owned(),
        method,
    }
}
