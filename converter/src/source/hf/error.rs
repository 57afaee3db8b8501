//! Why a Hugging Face folder cannot be read.

use std::path::{Path, PathBuf};

use crate::printable;

/// A folder that is no model, or none that can be cut.
#[derive(Debug, thiserror::Error)]
pub enum HfError {
    /// A file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that a model needs is not there.
    #[error("{}: {what} is missing; {way_out}", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// Which file.
        what: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// A file larger than any honest one.
    #[error(
        "{}: {bytes} bytes, more than the {limit} that such a file may have; fetch the model again",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Not the JSON that it should be.
    #[error("{}: not the JSON that is expected here; fetch the file again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: serde_json::Error,
    },
    /// A field that is absent or makes no sense.
    #[error("{}: `{field}` {why}; fetch the file again or mend it", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A kind of model that is not converted.
    #[error(
        "{}: architecture `{}` is not supported; splitconv converts {}",
        path.display(),
        printable(.found),
        super::config::SUPPORTED.join(", ")
    )]
    Architecture {
        /// config.json.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Something that splitrun does not compute.
    #[error("{}: {} is not supported; {way_out}", path.display(), printable(.what))]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What.
        what: String,
        /// What to do.
        way_out: &'static str,
    },
    /// Weights that somebody has quantised already.
    #[error(
        "{}: the checkpoint is already quantised ({}); splitconv needs the weights as F32, F16 or BF16: convert the original model",
        path.display(),
        printable(.method)
    )]
    Quantised {
        /// The file that says so.
        path: PathBuf,
        /// The method, as `gptq`.
        method: String,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("{}: not a sound safetensors file ({why}); fetch it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The index names something that is no file of the folder.
    #[error(
        "{}: `{}` is not the name of a file in the model's folder; fetch the index again",
        path.display(),
        printable(.name)
    )]
    IndexName {
        /// The index.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// The index and the files do not agree about a tensor.
    #[error(
        "{}: tensor `{}` {why}; the download is not whole, or files of two models are mixed",
        path.display(),
        printable(.tensor)
    )]
    Index {
        /// The index or a file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not agree.
        why: String,
    },
    /// A tensor that stands in two files.
    #[error(
        "tensor `{}` stands in {} and in {}; remove the file that does not belong to the model",
        printable(.tensor),
        a.display(),
        b.display()
    )]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One file.
        a: PathBuf,
        /// The other.
        b: PathBuf,
    },
    /// A tensor whose type is not a float of 16 or 32 bits.
    #[error(
        "{}: tensor `{}` is {dtype}; splitconv reads F32, F16 and BF16: convert the original model",
        path.display(),
        printable(.tensor)
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor that such a model does not have.
    #[error(
        "{}: tensor `{}` is not part of a {arch} as splitrun computes it; convert a model without it",
        path.display(),
        printable(.tensor)
    )]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The architecture.
        arch: &'static str,
    },
    /// A tensor of another size than config.json says.
    #[error(
        "{}: tensor `{tensor}` has shape {found:?}, but config.json asks for {wanted:?}; the files are of two models or damaged, fetch them again",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape that config.json asks for.
        wanted: Vec<u64>,
    },
    /// Tensors that are nowhere.
    #[error(
        "{}: tensor `{first}`{more} is missing; the download is not whole, fetch it again",
        folder.display(),
        more = and_more(*.others)
    )]
    MissingTensor {
        /// The folder.
        folder: PathBuf,
        /// The first one.
        first: String,
        /// How many more.
        others: usize,
    },
    /// A vocabulary that cannot be carried over.
    #[error("{}: {}; {way_out}", path.display(), printable(.why))]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to do.
        way_out: &'static str,
    },
}

fn and_more(n: usize) -> String {
    if n == 0 {
        String::new()
    } else {
        format!(" (and {n} more)")
    }
}

impl HfError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn json(path: &Path, source: serde_json::Error) -> Self {
        Self::Json {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn field(path: &Path, field: &str, why: impl Into<String>) -> Self {
        Self::Field {
            path: path.to_owned(),
            field: field.to_owned(),
            why: why.into(),
        }
    }
}
