//! What an error in each column of each matrix costs.
//!
//! An importance matrix ([`formats::imatrix`]) holds the mean square of the activation that each
//! column meets; the encoders minimise the squared error weighted by it. Where there is none, the
//! larger weights of a row count for more ([`Weighing::Size`]).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use formats::imatrix::{Boundary, Imatrix, ImatrixError, Sensitivity};
use formats::pair::Digest;

use crate::printable;
use crate::source::Source;

/// What an error in a weight costs, for the encoder.
#[derive(Clone, Debug, PartialEq)]
pub enum Weighing {
    /// The same everywhere: a table whose rows are looked up, and what is not a matrix.
    Even,
    /// `4·rms(row) + |x|`: a matrix of which no importance matrix says anything, other
    /// than `ffn_down`. Measured: a few
    /// percent less divergence than with [`Weighing::Even`], for half a percent more squared
    /// error (`docs/importance.md`).
    Size,
    /// A number for each column, of an importance matrix.
    Columns(Arc<[f32]>),
}

impl Weighing {
    /// The numbers of the importance matrix.
    pub fn columns(&self) -> Option<&[f32]> {
        match self {
            Self::Columns(columns) => Some(columns),
            Self::Even | Self::Size => None,
        }
    }

    /// What each weight of `row` costs; `None` where it is the same for all. `room` is there to
    /// be used again.
    pub fn of<'a>(&'a self, row: &[f32], room: &'a mut Vec<f32>) -> Option<&'a [f32]> {
        match self {
            Self::Even => None,
            Self::Columns(columns) => Some(columns),
            Self::Size => {
                let (eights, rest) = row.as_chunks::<8>();
                let mut squares = [0.0_f32; 8];
                for eight in eights {
                    for (sum, x) in squares.iter_mut().zip(eight) {
                        *sum += x * x;
                    }
                }
                for x in rest {
                    squares[0] += x * x;
                }
                let mean = squares.iter().sum::<f32>() / row.len().max(1) as f32;
                let base = 4.0 * mean.sqrt();
                room.clear();
                room.extend(row.iter().map(|x| base + x.abs()));
                Some(room)
            }
        }
    }
}

/// An importance matrix that does not belong to the model.
#[derive(Debug, thiserror::Error)]
pub enum ImportanceError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] ImatrixError),
    /// Another number of columns.
    #[error(
        "importance matrix {}: `{}` has {found} columns there, {wanted} in the model; calibrate this model with `splitrun calibrate`",
        path.display(),
        printable(.tensor)
    )]
    Columns {
        /// The importance matrix.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Columns there.
        found: usize,
        /// Columns in the model.
        wanted: usize,
    },
    /// Sensitivities of another number of layers.
    #[error(
        "importance matrix {}: it has sensitivities of {found} layers, the model has {wanted}; calibrate this model with `splitrun calibrate --sensitivity`",
        path.display()
    )]
    Layers {
        /// The importance matrix.
        path: PathBuf,
        /// Layers there.
        found: usize,
        /// Layers of the model.
        wanted: usize,
    },
}

/// Mean squares by tensor and column.
#[derive(Clone, Debug)]
pub struct Importance {
    path: PathBuf,
    digest: Digest,
    columns: HashMap<String, Arc<[f32]>>,
    boundary: Option<Boundary>,
    sensitivity: Option<Sensitivity>,
}

impl Importance {
    /// Reads an importance matrix of any kind.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self, ImportanceError> {
        let im = Imatrix::open(path)?;
        let digest = im.digest();
        let mean = |(name, e): (&String, &formats::imatrix::Entry)| {
            e.mean().map(|m| (name.clone(), Arc::from(m)))
        };
        Ok(Self {
            path: path.to_owned(),
            digest,
            columns: im.entries.iter().filter_map(mean).collect(),
            boundary: im.boundary,
            sensitivity: im.sensitivity,
        })
    }

    /// Checks that every matrix of `source` that it knows has the right number of columns, and
    /// that its sensitivities, if it has any, are of as many layers.
    ///
    /// # Errors
    /// [`ImportanceError::Columns`] for the first matrix that has not, or
    /// [`ImportanceError::Layers`].
    pub fn check(&self, source: &Source) -> Result<(), ImportanceError> {
        for t in source.tensors().filter(|t| t.dims.len() > 1) {
            if let Some(columns) = self.columns.get(&t.name)
                && columns.len() != t.row_len()
            {
                return Err(ImportanceError::Columns {
                    path: self.path.clone(),
                    tensor: t.name.clone(),
                    found: columns.len(),
                    wanted: t.row_len(),
                });
            }
        }
        let wanted = source.hparams().n_layer;
        match &self.sensitivity {
            Some(s) if s.layers.len() != wanted => Err(ImportanceError::Layers {
                path: self.path.clone(),
                found: s.layers.len(),
                wanted,
            }),
            _ => Ok(()),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Digest of the numbers.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Mean squares of the columns of `name`.
    pub fn of(&self, name: &str) -> Option<&Arc<[f32]>> {
        self.columns.get(name)
    }

    /// What travels at each cut, if the file says it.
    pub fn boundary(&self) -> Option<&Boundary> {
        self.boundary.as_ref()
    }

    /// What errors in the layers' matrices cost, if the file says it.
    pub fn sensitivity(&self) -> Option<&Sensitivity> {
        self.sensitivity.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weighing_by_size() {
        let mut room = vec![9.0];
        let row: Vec<f32> = (0..32)
            .map(|i| if i % 2 == 0 { 3.0 } else { -4.0 })
            .collect();
        let rms = 12.5_f32.sqrt();
        let weights = Weighing::Size.of(&row, &mut room).unwrap();
        for (w, x) in weights.iter().zip(&row) {
            assert!((w - (4.0 * rms + x.abs())).abs() < 1e-5, "{w} for {x}");
        }
        assert_eq!(weights.len(), 32);
        // Any length, and nothing but zeros: whoever encodes takes those for equals.
        assert_eq!(Weighing::Size.of(&[0.0; 3], &mut room).unwrap(), [0.0; 3]);
        assert_eq!(Weighing::Size.of(&[2.0], &mut room).unwrap(), [10.0]);
        assert_eq!(Weighing::Even.of(&row, &mut room), None);
        let columns = Weighing::Columns(vec![1.0, 2.0].into());
        assert_eq!(columns.of(&row, &mut room), columns.columns());
        assert_eq!(Weighing::Size.columns(), None);
    }
}
