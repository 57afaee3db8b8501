//! Why there is no plan.

use formats::measured::MeasuredError;

use crate::importance::ImportanceError;
use crate::recipe::RecipeError;
use crate::source::SourceError;
use crate::stream::StreamError;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The model cannot be opened or cut.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A recipe cannot be made.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The importance matrix cannot be read or is another model's.
    #[error(transparent)]
    Importance(#[from] ImportanceError),
    /// The files cannot be laid out.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A profile or a sensitivity file cannot be used.
    #[error(transparent)]
    Measured(#[from] MeasuredError),
    /// A sensitivity file of another model.
    #[error("--sensitivity {file}: {why}")]
    OtherModel {
        /// The file.
        file: String,
        /// What differs.
        why: String,
    },
    /// Neither a file nor a known host.
    #[error(
        "{flag} {name}: no such file, and no host of that name; hosts derived from published figures are {known}"
    )]
    NoProfile {
        /// The flag.
        flag: &'static str,
        /// What it says.
        name: String,
        /// The names.
        known: String,
    },
    /// A flag is missing or contradicts another one or the model: wrong usage.
    #[error("{0}")]
    Usage(String),
    /// No choice is within the limits.
    #[error("{0}")]
    Infeasible(String),
    /// A file of the answer cannot be written.
    #[error("cannot write {file}: {source}")]
    Write {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A mistake of this program.
    #[error("{0}; this is a bug of splitconv")]
    Internal(String),
}
