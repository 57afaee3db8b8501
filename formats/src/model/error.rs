//! What can be wrong with a model whose file is sound.

use super::architecture::Architecture;

/// A model that cannot be cut or run: what is wrong and what to do. Which file it is, the caller
/// says in front of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFault {
    /// Another architecture.
    #[error(
        "architecture `{found}` is not supported; supported are {}: choose a model of one of them",
        Architecture::supported()
    )]
    Architecture {
        /// What the file says: at most 64 characters, escaped for a terminal.
        found: String,
    },
    /// A key that describes the model is absent or makes no sense.
    #[error(
        "metadata `{key}` {why}; the file is damaged or was converted wrongly, fetch or make it again"
    )]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A model of a kind that splitrun does not compute.
    #[error("{what}: splitrun does not compute that, choose another model")]
    Unsupported {
        /// What it is, with the key that says so.
        what: String,
    },
    /// Tensors are not there.
    #[error(
        "tensor `{first}`{more} is missing; the file is not whole, fetch or make it again",
        more = and_more(*.others)
    )]
    MissingTensor {
        /// The first one that is missing.
        first: String,
        /// How many more are missing.
        others: usize,
    },
    /// A tensor of the wrong size.
    #[error(
        "tensor `{tensor}` has shape {found:?}, but the metadata asks for {wanted:?}; the file is damaged, fetch or make it again"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape, row length first.
        found: Vec<u64>,
        /// The shape that the metadata asks for.
        wanted: Vec<u64>,
    },
    /// A tensor with impossible contents.
    #[error("tensor `{tensor}` {why}; the file is damaged, fetch or make it again")]
    Contents {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor that the architecture does not have, or one that splitrun would ignore: the text
    /// would be wrong without a word.
    #[error(
        "tensor `{tensor}` is not part of a model of architecture `{architecture}` as splitrun computes it{}; take a model without it",
        no_biases(.tensor)
    )]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The architecture of the model.
        architecture: Architecture,
    },
}

impl ModelFault {
    /// The tensor it is about, if it is about one that is there.
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::Shape { tensor, .. }
            | Self::Contents { tensor, .. }
            | Self::UnknownTensor { tensor, .. } => Some(tensor),
            _ => None,
        }
    }
}

fn no_biases(tensor: &str) -> &'static str {
    match tensor.rsplit_once('.') {
        Some((_, "bias")) => " (no biases but those of Q, K and V)",
        _ => "",
    }
}

fn and_more(n: usize) -> String {
    if n == 0 {
        String::new()
    } else {
        format!(" (and {n} more)")
    }
}
