//! The model to be cut: opened, checked to be whole, its tensors placed.

mod hf;
mod rows;
mod store;

use std::path::{Path, PathBuf};

use formats::gguf::{GgufError, Metadata, TensorInfo};
use formats::model::{HParams, ModelFault};
use formats::pair::{Digest, HalfRole};

use store::Store;

pub use formats::model::Place;
pub use hf::HfError;
pub use rows::{RowOrder, Rows, Stamp};

/// A model that cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be read as a GGUF.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The Hugging Face folder cannot be read.
    #[error(transparent)]
    HuggingFace(#[from] HfError),
    /// The file is one half already.
    #[error(
        "{} is already the {role} half of a pair cut after layer {split}; convert the model it was made from",
        path.display()
    )]
    AlreadyHalf {
        /// The file.
        path: PathBuf,
        /// Which half.
        role: HalfRole,
        /// Its cut.
        split: u32,
    },
    /// The file carries keys of ours that cannot be read.
    #[error("{} has damaged splitconv keys; convert the model it was made from", path.display())]
    DamagedHalf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: formats::pair::PairError,
    },
    /// The model is damaged, not whole, or of a kind that splitrun does not compute.
    #[error("{}: {fault}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        fault: ModelFault,
    },
    /// One half would have no layer.
    #[error(
        "--split {split} leaves no layer {side}; {} has {n_layer} layers, choose 1 to {}",
        path.display(),
        .n_layer - 1
    )]
    EmptyHalf {
        /// The file.
        path: PathBuf,
        /// The cut asked for.
        split: u32,
        /// Layers of the model.
        n_layer: u32,
        /// Which side is empty, in words.
        side: &'static str,
    },
    /// The system does not tell about a file.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A model of one layer.
    #[error("{}: a model of one layer cannot be cut between two; run it whole with splitrun", path.display())]
    OneLayer {
        /// The file.
        path: PathBuf,
    },
}

/// A checked source model.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    store: Store,
    /// Of each file, when it was opened.
    stamps: Vec<Stamp>,
    hparams: HParams,
}

impl Source {
    /// Opens a GGUF (one file or, given any of its shards, a sharded model) or a model in the
    /// Hugging Face layout (its folder or a file of it), and checks that it is whole and of an
    /// architecture that splitrun computes. Matrices are not read.
    ///
    /// # Errors
    /// [`SourceError`], naming file and tensor.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let store = Store::open(path)?;
        let mut stamps = Vec::new();
        for (path, file) in store.files() {
            let stamp = Stamp::of(file).map_err(|e| SourceError::Read {
                path: path.to_owned(),
                source: e,
            })?;
            stamps.push(stamp);
        }
        let hparams = store.check().map_err(|fault| SourceError::Model {
            path: fault
                .tensor()
                .and_then(|name| store.tensor(name))
                .map_or(path, |(_, rows)| rows.path())
                .to_owned(),
            fault,
        })?;
        Ok(Self {
            path: path.to_owned(),
            store,
            stamps,
            hparams,
        })
    }

    /// Whether `path` is to be read in the Hugging Face layout: a folder, or a file of one.
    pub fn is_hugging_face(path: &Path) -> bool {
        hf::is_folder(path)
    }

    /// The file that was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the model without its ending: the stem of the pair's names.
    pub fn stem(&self) -> String {
        self.store.stem(&self.path)
    }

    /// The model's sizes.
    pub fn hparams(&self) -> &HParams {
        &self.hparams
    }

    /// The model's metadata; of a source that is no GGUF, those that it would have as one.
    pub fn metadata(&self) -> &Metadata {
        self.store.metadata()
    }

    /// What could not be carried over from a source that is no GGUF.
    pub fn notes(&self) -> &[String] {
        self.store.notes()
    }

    /// All tensors, in the source's order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.store.tensors()
    }

    /// The tensor called `name` and where its rows are.
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, Rows<'_>)> {
        self.store.tensor(name)
    }

    /// The files that hold the weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.store.files().into_iter().map(|(path, _)| path)
    }

    /// The first file that is no longer what it was when it was opened: another size, another
    /// time of change, or no answer.
    pub fn changed(&self) -> Option<&Path> {
        let mut files = self.store.files().into_iter().zip(&self.stamps);
        let changed = files.find(|((_, f), was)| Stamp::of(f).ok() != Some(**was));
        changed.map(|((path, _), _)| path)
    }

    /// Size and time of change of each file, as they were when it was opened.
    pub fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    /// A digest of all headers: metadata, and names, types, shapes and places of the tensors.
    pub fn header_digest(&self) -> Digest {
        self.store.header_digest()
    }

    /// The file that the tensor called `name` stands in: a shard, or what was named.
    pub fn file_of(&self, name: &str) -> &Path {
        self.store
            .tensor(name)
            .map_or(&self.path, |(_, rows)| rows.path())
    }

    /// Checks that both halves would have a layer.
    ///
    /// # Errors
    /// [`SourceError::EmptyHalf`] with the cuts that are possible.
    pub fn check_split(&self, split: u32) -> Result<(), SourceError> {
        // The reader lets no number past u32.
        let n_layer = self.hparams.n_layer as u32;
        if n_layer == 1 {
            return Err(SourceError::OneLayer {
                path: self.path.clone(),
            });
        }
        let side = match split {
            0 => "on the edge",
            s if s >= n_layer => "in the cloud",
            _ => return Ok(()),
        };
        Err(SourceError::EmptyHalf {
            path: self.path.clone(),
            split,
            n_layer,
            side,
        })
    }
}
