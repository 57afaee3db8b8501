//! Metadata and tensors as a GGUF has them, whatever they are stored in.

use std::fs::File;
use std::path::Path;

use formats::blocks::{RowError, dequantize_row};
use formats::gguf::{Gguf, GgufSet, Metadata, TensorInfo};
use formats::model::{HParams, ModelFault, TensorDirectory, check_tensors};
use formats::pair::{Digest, HalfInfo, metadata_digest, model_stem};

use super::{Rows, SourceError, hf};

/// What a model is read from.
#[derive(Debug)]
pub(super) enum Store {
    Gguf(GgufSet),
    HuggingFace(Box<hf::Model>),
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        if hf::is_folder(path) {
            return Ok(Self::HuggingFace(Box::new(hf::Model::open(path)?)));
        }
        // A half says that it is one of two shards; look before its sibling is asked for.
        let first = Gguf::open(path)?;
        match HalfInfo::from_metadata(first.metadata()) {
            Ok(None) => {}
            Ok(Some(half)) => {
                return Err(SourceError::AlreadyHalf {
                    path: path.to_owned(),
                    role: half.role,
                    split: half.contract.split,
                });
            }
            Err(source) => {
                return Err(SourceError::DamagedHalf {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        drop(first);
        Ok(Self::Gguf(GgufSet::open(path)?))
    }

    /// Checks that it is a whole model that splitrun computes.
    pub(super) fn check(&self) -> Result<HParams, ModelFault> {
        let hparams = HParams::read(self.metadata(), self)?;
        check_tensors(&hparams, self).map(|()| hparams)
    }

    /// What its name is, from which those of the halves are made.
    pub(super) fn stem(&self, path: &Path) -> String {
        match self {
            Self::Gguf(_) => model_stem(path),
            Self::HuggingFace(model) => model.stem(),
        }
    }

    pub(super) fn metadata(&self) -> &Metadata {
        match self {
            Self::Gguf(set) => set.metadata(),
            Self::HuggingFace(model) => model.metadata(),
        }
    }

    pub(super) fn notes(&self) -> &[String] {
        match self {
            Self::Gguf(_) => &[],
            Self::HuggingFace(model) => model.notes(),
        }
    }

    pub(super) fn tensors(&self) -> Box<dyn Iterator<Item = &TensorInfo> + '_> {
        match self {
            Self::Gguf(set) => Box::new(set.tensors().map(|(_, t)| t)),
            Self::HuggingFace(model) => Box::new(model.tensors()),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Option<(&TensorInfo, Rows<'_>)> {
        match self {
            Self::Gguf(set) => {
                let (file, t) = set.tensor(name)?;
                let start = t.start as u64;
                let rows = Rows::in_file(file.path(), file.file(), start, t.bytes, t.rows());
                Some((t, rows))
            }
            Self::HuggingFace(model) => model.tensor(name),
        }
    }

    /// The open files that hold the weights.
    pub(super) fn files(&self) -> Vec<(&Path, &File)> {
        match self {
            Self::Gguf(set) => set.files().iter().map(|f| (f.path(), f.file())).collect(),
            Self::HuggingFace(model) => model.files().collect(),
        }
    }

    /// A digest of all but the weights: metadata, and names, types, shapes and places of the
    /// tensors.
    pub(super) fn header_digest(&self) -> Digest {
        let mut lines = Vec::new();
        match self {
            Self::Gguf(set) => {
                for file in set.files() {
                    lines.push(metadata_digest(file.metadata()).to_string());
                    lines.extend(file.tensors().iter().map(|t| format!("{t:?}")));
                }
            }
            Self::HuggingFace(model) => {
                lines.push(metadata_digest(model.metadata()).to_string());
                lines.extend(model.made().map(|bytes| Digest::of(bytes).to_string()));
                lines.extend(model.tensors().map(|t| format!("{t:?}")));
            }
        }
        Digest::of(lines.join("\n").as_bytes())
    }
}

impl TensorDirectory for Store {
    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        self.tensor(name).map(|(t, _)| t.dims.clone())
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors().map(|t| t.name.as_str()))
    }

    fn floats(&self, name: &str) -> Option<Result<Vec<f32>, RowError>> {
        let (t, rows) = self.tensor(name)?;
        let mut values = vec![0.0; t.row_len() * t.rows()];
        // What cannot be read is as wrong as what is too short.
        let bytes = rows.all().unwrap_or_default();
        Some(dequantize_row(t.block_type, &bytes, &mut values).map(|()| values))
    }
}
