//! The files of a Hugging Face folder: found, bounded in size, read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::HfError;
use super::bounded::BoundedMap;

/// Largest config.json, generation_config.json and chat template.
const SMALL: u64 = 4 << 20;
/// Largest tokenizer_config.json and index; a large model's index has 100 KB.
const MIDDLE: u64 = 16 << 20;
/// Shards of a model at most; the largest models published have below 200.
const MAX_SHARDS: usize = 2_048;

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const INDEX: &str = "model.safetensors.index.json";

/// A model's folder, and which of its files hold the weights.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// A file of weights that was named itself.
    file: Option<PathBuf>,
    /// An index that was named itself.
    index: Option<PathBuf>,
}

/// The files that hold the weights.
pub(super) struct Weights {
    /// The files, sorted.
    pub(super) files: Vec<PathBuf>,
    /// The index and the file that it gives each tensor, where there is an index.
    pub(super) index: Option<(PathBuf, BTreeMap<String, PathBuf>)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BoundedMap<String, { 1 << 20 }>,
}

/// Whether `path` is to be read as a Hugging Face model: a folder, or one of its files.
pub(in super::super) fn is_folder(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    matches!(ending, Some("safetensors" | "json")) || path.is_dir()
}

impl Folder {
    /// The folder that `path` is, or lies in.
    pub(super) fn new(path: &Path) -> Self {
        if path.is_dir() {
            return Self {
                path: path.to_owned(),
                file: None,
                index: None,
            };
        }
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let named = |yes: bool| yes.then(|| path.to_owned());
        Self {
            path: parent,
            // A shard alone is no model: its index, or its siblings, are.
            file: named(name.ends_with(".safetensors") && !name.contains("-of-")),
            index: named(name.ends_with(".index.json")),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder's own name, also of `.`; `model` where there is none.
    pub(super) fn name(&self) -> String {
        let whole = std::fs::canonicalize(&self.path).ok();
        let whole = whole.as_deref().unwrap_or(&self.path);
        match whole.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => "model".to_owned(),
        }
    }

    /// A JSON file of ordinary size; `None` when it is not there.
    pub(super) fn json(&self, name: &str) -> Result<Option<Json>, HfError> {
        let limit = if name == TOKENIZER_CONFIG {
            MIDDLE
        } else {
            SMALL
        };
        let path = self.join(name);
        let Some(bytes) = read(&path, limit)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&bytes).map_err(|e| HfError::json(&path, e))?;
        Ok(Some(value))
    }

    /// A JSON file as a type of its own, which bounds what it takes; `None` when it is not there.
    pub(super) fn typed<T: DeserializeOwned>(
        &self,
        name: &str,
        limit: u64,
    ) -> Result<Option<T>, HfError> {
        let path = self.join(name);
        let Some(bytes) = read(&path, limit)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&bytes).map_err(|e| HfError::json(&path, e))?;
        Ok(Some(value))
    }

    /// A file of text; `None` when it is not there.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, HfError> {
        let path = self.join(name);
        let Some(bytes) = read(&path, SMALL)? else {
            return Ok(None);
        };
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| HfError::field(&path, name, "is not UTF-8"))
    }

    /// The bytes of a file; `None` when it is not there.
    pub(super) fn bytes(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, HfError> {
        read(&self.join(name), limit)
    }

    /// Names of the folder's files that start and end so, sorted.
    pub(super) fn names(&self, start: &str, end: &str) -> Result<Vec<String>, HfError> {
        let fail = |e| HfError::io(&self.path, e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(start) && name.ends_with(end) && names.len() <= MAX_SHARDS {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Finds the files that hold the weights.
    pub(super) fn weights(&self) -> Result<Weights, HfError> {
        if let Some(file) = &self.file {
            return Ok(Weights {
                files: vec![file.clone()],
                index: None,
            });
        }
        let index = match &self.index {
            Some(path) => path.clone(),
            None => self.join(INDEX),
        };
        if let Some(bytes) = read(&index, MIDDLE)? {
            return self.indexed(index, &bytes);
        }
        if self.index.is_some() {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(HfError::io(&index, gone));
        }
        let names = self.names("model", ".safetensors")?;
        if names.is_empty() {
            let pickled = !self.names("pytorch_model", ".bin")?.is_empty();
            return Err(HfError::MissingFile {
                folder: self.path.clone(),
                what: "model.safetensors (or its shards)",
                way_out: if pickled {
                    "its pytorch_model.bin may run code when it is read: save the model as safetensors first"
                } else {
                    "name a folder in the Hugging Face layout, or a GGUF file"
                },
            });
        }
        bounded(names.len(), &self.path)?;
        Ok(Weights {
            files: names.iter().map(|n| self.join(n)).collect(),
            index: None,
        })
    }

    fn indexed(&self, path: PathBuf, bytes: &[u8]) -> Result<Weights, HfError> {
        let index: Index = serde_json::from_slice(bytes).map_err(|e| HfError::json(&path, e))?;
        let mut files = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (tensor, name) in index.weight_map.0 {
            // A plain name only: nothing outside the folder is ever opened for an index.
            let plain = Path::new(&name).file_name().is_some_and(|f| *f == *name)
                && !name.contains(['/', '\\', '\0', ':'])
                && name.ends_with(".safetensors");
            if !plain {
                return Err(HfError::IndexName { path, name });
            }
            let file = self.join(&name);
            files.insert(name, file.clone());
            tensors.insert(tensor, file);
        }
        if files.is_empty() {
            return Err(HfError::field(&path, "weight_map", "names no file"));
        }
        bounded(files.len(), &path)?;
        Ok(Weights {
            files: files.into_values().collect(),
            index: Some((path, tensors)),
        })
    }
}

/// Reads a file of at most `limit` bytes; `None` when it is not there.
fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, HfError> {
    let Some((file, bytes)) = open(path)? else {
        return Ok(None);
    };
    let too_large = |bytes| HfError::TooLarge {
        path: path.to_owned(),
        bytes,
        limit,
    };
    if bytes > limit {
        return Err(too_large(bytes));
    }
    let mut out = Vec::new();
    // It may grow while it is read.
    let mut bounded = file.take(limit + 1);
    bounded
        .read_to_end(&mut out)
        .map_err(|e| HfError::io(path, e))?;
    if out.len() as u64 > limit {
        return Err(too_large(out.len() as u64));
    }
    Ok(Some(out))
}

/// Opens an ordinary file and says how large it is; `None` when it is not there.
pub(super) fn open(path: &Path) -> Result<Option<(File, u64)>, HfError> {
    let fail = |e| HfError::io(path, e);
    let regular = |found: &std::fs::Metadata| {
        let other = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
        found.is_file().then_some(()).ok_or_else(other)
    };
    // Looked at before it is opened: opening a pipe waits for somebody to write into it.
    match std::fs::metadata(path) {
        Ok(found) => regular(&found).map_err(fail)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    }
    let file = File::open(path).map_err(fail)?;
    let found = file.metadata().map_err(fail)?;
    regular(&found).map_err(fail)?;
    Ok(Some((file, found.len())))
}

fn bounded(shards: usize, path: &Path) -> Result<(), HfError> {
    if shards <= MAX_SHARDS {
        return Ok(());
    }
    let why = format!("are {shards} or more, the limit is {MAX_SHARDS}");
    Err(HfError::field(path, "shards", why))
}
