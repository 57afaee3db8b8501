//! Models that cannot be run, and the shape of those that can.

use std::path::{Path, PathBuf};

use formats::gguf::{GgufError, GgufSet};
use formats::model::{HParams, ModelFault};

/// A model that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model is damaged, not whole, or of a kind that is not computed here.
    #[error("{}: {fault}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        fault: ModelFault,
    },
    /// Something this engine does not compute.
    #[error("{}: {what} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
}

impl ModelError {
    /// A fault of the model in `set`, with the file that holds the tensor it is about.
    pub(super) fn new(set: &GgufSet, fault: ModelFault) -> Self {
        let path = fault
            .tensor()
            .and_then(|name| set.tensor(name))
            .map_or(first(set), |(file, _)| file.path())
            .to_owned();
        Self::Model { path, fault }
    }

    pub(super) fn unsupported(set: &GgufSet, what: String) -> Self {
        Self::Unsupported {
            path: first(set).to_owned(),
            what,
        }
    }
}

/// The file that describes the model.
fn first(set: &GgufSet) -> &Path {
    set.files()[0].path()
}

/// Reads the shape of the model from the metadata and the tensor directory of `set`.
///
/// # Errors
/// When the architecture is not supported, or a key is missing or impossible.
pub fn read_hparams(set: &GgufSet) -> Result<HParams, ModelError> {
    HParams::read(set.metadata(), set).map_err(|fault| ModelError::new(set, fault))
}
