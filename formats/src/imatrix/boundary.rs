//! Statistics of the rows that would travel, at every possible cut.
//!
//! | tensor | shape (row first) | row `i` is about a cut after `i + 1` layers |
//! |---|---|---|
//! | `splitconv.boundary.mean` | width × cuts | mean of each channel |
//! | `splitconv.boundary.sigma` | width × cuts | standard deviation of each channel |
//! | `splitconv.boundary.absmax` | width × cuts | largest magnitude of each channel |
//! | `splitconv.boundary.first_row_absmax` | width × cuts | the same, over the first rows of the windows |
//! | `splitconv.boundary.row_norms` | quantiles × cuts | quantiles of the Euclidean norms of the rows |
//! | `splitconv.boundary.outliers` | thresholds × cuts | mean number of values of a row at or above k σ |
//! | `splitconv.boundary.kl` | steps × cuts | mean KL divergence with codec `tcq` at the steps [`KL_STEPS`]; the tensor is absent when it was not measured |
//!
//! The first row of a window is apart: many models put values hundreds of times larger than all
//! others into it, and one such row would be most of every other figure. σ in the last line is
//! the trimmed sigma of the row ([`crate::wire::trimmed_sigma`]), as threshold splitting uses it.
//! `splitconv.boundary.rows` (u64) counts the rows, `splitconv.boundary.norm_quantiles` and
//! `splitconv.boundary.outlier_sigmas` (arrays of f32) name the quantiles and the thresholds.

use super::ImatrixErrorKind as Kind;
use super::gguf_form::{Tensors, floats, push};
use crate::gguf::{Gguf, Metadata, Value, WriteError};
use crate::wire::{CutStatistics, KL_STEPS};

/// The quantiles of row norms that are kept.
pub const NORM_QUANTILES: [f32; 7] = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0];

/// The thresholds, in trimmed sigmas of the row, above which outliers are counted.
pub const OUTLIER_SIGMAS: [f32; 7] = [3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0];

const ROWS: &str = "splitconv.boundary.rows";
const QUANTILES: &str = "splitconv.boundary.norm_quantiles";
const SIGMAS: &str = "splitconv.boundary.outlier_sigmas";
const WIDE: [&str; 4] = [
    "splitconv.boundary.mean",
    "splitconv.boundary.sigma",
    "splitconv.boundary.absmax",
    "splitconv.boundary.first_row_absmax",
];
const NORMS: &str = "splitconv.boundary.row_norms";
const OUTLIERS: &str = "splitconv.boundary.outliers";
const KL: &str = "splitconv.boundary.kl";

/// Statistics of the hidden rows at the cuts after 1, 2, … layers. Fields hold one stretch of
/// numbers per cut, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Boundary {
    /// Values in a row.
    pub width: usize,
    /// Number of cuts: layers less one.
    pub cuts: usize,
    /// Rows seen at each cut, first rows of windows not counted.
    pub rows: u64,
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub sigma: Vec<f32>,
    /// Largest magnitude of each channel.
    pub absmax: Vec<f32>,
    /// Largest magnitude of each channel in the first rows of windows.
    pub first_row_absmax: Vec<f32>,
    /// Row norms at the quantiles [`NORM_QUANTILES`].
    pub row_norms: Vec<f32>,
    /// Mean number of values of a row at or above each of [`OUTLIER_SIGMAS`].
    pub outliers: Vec<f32>,
    /// Mean KL divergence at each of [`KL_STEPS`], nats; 0 at cuts that were not measured and lie
    /// between none that were; empty when it was not measured at all.
    pub kl: Vec<f32>,
}

impl Boundary {
    /// What a pair cut after `layers` layers carries.
    pub fn at(&self, layers: usize) -> Option<CutStatistics> {
        let cut = layers.checked_sub(1).filter(|c| *c < self.cuts)?;
        let stretch = |v: &[f32], n: usize| v.get(cut * n..(cut + 1) * n).map(<[f32]>::to_vec);
        Some(CutStatistics {
            mean: stretch(&self.mean, self.width)?,
            sigma: stretch(&self.sigma, self.width)?,
            kl: stretch(&self.kl, KL_STEPS.len()).unwrap_or_default(),
        })
    }

    /// Mean of the squares of a row's values at the cut after `layers` layers.
    pub fn mean_square(&self, layers: usize) -> Option<f64> {
        let at = layers.checked_sub(1).filter(|c| *c < self.cuts)? * self.width;
        let stretch = |v: &[f32]| v.get(at..at + self.width).map(<[f32]>::to_vec);
        let (mean, sigma) = (stretch(&self.mean)?, stretch(&self.sigma)?);
        let square = |v: f32| f64::from(v) * f64::from(v);
        let sum: f64 = mean
            .iter()
            .zip(&sigma)
            .map(|(m, s)| square(*m) + square(*s))
            .sum();
        Some(sum / self.width as f64)
    }
}

pub(super) fn read(file: &Gguf) -> Result<Option<Boundary>, Kind> {
    let Some(first) = file.tensor(WIDE[0]) else {
        return Ok(None);
    };
    let (width, cuts) = (first.row_len(), first.rows());
    let values = |name: &str, row: usize| -> Result<Vec<f32>, Kind> {
        let bad = |why: String| Kind::Entry {
            tensor: name.to_owned(),
            why,
        };
        let t = file
            .tensor(name)
            .ok_or_else(|| bad("it is missing".into()))?;
        if t.row_len() != row || t.rows() != cuts {
            return Err(bad(format!(
                "its shape is {:?}, expected [{row}, {cuts}]",
                t.dims
            )));
        }
        let v = floats(file, t)?;
        match v.iter().find(|v| !v.is_finite()) {
            Some(v) => Err(bad(format!("it holds {v}"))),
            None => Ok(v),
        }
    };
    let rows = file.metadata().get(ROWS).and_then(Value::as_u64);
    Ok(Some(Boundary {
        width,
        cuts,
        rows: rows.unwrap_or(0),
        mean: values(WIDE[0], width)?,
        sigma: values(WIDE[1], width)?,
        absmax: values(WIDE[2], width)?,
        first_row_absmax: values(WIDE[3], width)?,
        row_norms: values(NORMS, NORM_QUANTILES.len())?,
        outliers: values(OUTLIERS, OUTLIER_SIGMAS.len())?,
        kl: match file.tensor(KL) {
            Some(_) => values(KL, KL_STEPS.len())?,
            None => Vec::new(),
        },
    }))
}

pub(super) fn describe<'a>(
    b: &'a Boundary,
    meta: &mut Metadata,
    tensors: &mut Tensors<'a>,
) -> Result<(), WriteError> {
    meta.set(ROWS, Value::u64(b.rows));
    meta.set(QUANTILES, Value::f32_array(&NORM_QUANTILES));
    meta.set(SIGMAS, Value::f32_array(&OUTLIER_SIGMAS));
    let wide = [&b.mean, &b.sigma, &b.absmax, &b.first_row_absmax];
    for (name, values) in WIDE.into_iter().zip(wide) {
        push(tensors, name, values, b.cuts)?;
    }
    push(tensors, NORMS, &b.row_norms, b.cuts)?;
    push(tensors, OUTLIERS, &b.outliers, b.cuts)?;
    if b.kl.is_empty() {
        return Ok(());
    }
    push(tensors, KL, &b.kl, b.cuts)
}
