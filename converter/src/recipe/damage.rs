//! What a type is expected to spoil in a tensor.
//!
//! Damage is the squared error of the matrix relative to its size, its columns weighed by the
//! square roots of their importances, times what such an error costs there. The error is measured
//! on a sample of rows, encoded (under the importances themselves) and decoded; without an
//! importance matrix it is the type's typical one. The cost is measured too if the importance
//! matrix has sensitivities, and else a figure for the kind of matrix.
//!
//! Square roots, because importances are dominated by few columns that meet huge values at few
//! tokens: weighed by them as they are, a matrix looks nearly unharmed while ordinary tokens
//! suffer. `docs/importance.md` has the figures.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use formats::blocks::{BlockType, Effort, dequantize_row, quantize_row};
use formats::imatrix::Sensitivity;

use crate::source::{Place, Source};

/// Rows of a tensor that are tried.
const SAMPLE: usize = 48;

/// A tensor in a type, to be tried.
#[derive(Clone, Copy)]
pub(super) struct Trial<'a> {
    /// The tensor in the source.
    pub(super) tensor: &'a str,
    /// The type it might get.
    pub(super) to: BlockType,
    /// What an error in each column costs.
    pub(super) columns: Option<&'a [f32]>,
}

/// What has been tried already, so that no other plan of the same source and importances tries it
/// again, and the threads to try with.
#[derive(Debug)]
pub struct Tried {
    threads: usize,
    known: Mutex<HashMap<(String, BlockType), f64>>,
}

impl Tried {
    /// Nothing yet; `threads` will try.
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            known: Mutex::default(),
        }
    }

    fn get(&self, trial: &Trial<'_>) -> Option<f64> {
        // Nothing has to be tried for a type's typical error.
        if trial.columns.is_none() {
            return Some(typical(trial.to));
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(trial.tensor.to_owned(), trial.to)).copied()
    }

    /// Squared relative error of each trial.
    pub(super) fn errors(&self, source: &Source, trials: &[Trial<'_>]) -> Vec<f64> {
        let found: Vec<Option<f64>> = trials.iter().map(|t| self.get(t)).collect();
        let missing: Vec<Trial<'_>> = (trials.iter().zip(&found))
            .filter(|(_, f)| f.is_none())
            .map(|(t, _)| *t)
            .collect();
        let mut new = measure(source, &missing, self.threads).into_iter();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        (trials.iter().zip(found))
            .map(|(t, found)| {
                found.unwrap_or_else(|| {
                    // As many results as were missing.
                    let error = new.next().unwrap_or_else(|| typical(t.to));
                    known.insert((t.tensor.to_owned(), t.to), error);
                    error
                })
            })
            .collect()
    }
}

/// Squared relative error of each trial, on `threads` threads.
fn measure(source: &Source, trials: &[Trial<'_>], threads: usize) -> Vec<f64> {
    if trials.is_empty() {
        return Vec::new();
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![0.0; trials.len()]);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(trial) = trials.get(i) else {
                    return;
                };
                let error = relative_error(source, trial);
                results.lock().unwrap_or_else(PoisonError::into_inner)[i] = error;
            }
        };
        for _ in 1..threads.clamp(1, trials.len().max(1)) {
            // One thread fewer than asked for is no reason to fail.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// `Σ √c·(x − x̂)² / Σ √c·x²` over a sample of rows, evenly spaced.
fn relative_error(source: &Source, trial: &Trial<'_>) -> f64 {
    let Some(columns) = trial.columns else {
        return typical(trial.to);
    };
    let Some((info, data)) = source.tensor(trial.tensor) else {
        return typical(trial.to);
    };
    let (n, rows) = (info.row_len(), info.rows());
    let Some(bytes) = trial.to.row_bytes(n) else {
        return f64::INFINITY;
    };
    let tempered: Vec<f64> = columns.iter().map(|c| f64::from(*c).sqrt()).collect();
    let (mut x, mut back) = (vec![0.0; n], vec![0.0; n]);
    let (mut from, mut encoded) = (Vec::new(), vec![0; bytes]);
    let (mut error, mut energy) = (0.0_f64, 0.0_f64);
    let sample = rows.min(SAMPLE);
    for i in 0..sample {
        let row = (2 * i + 1) * rows / (2 * sample);
        let done = data.read(row..row + 1, &mut from).is_ok()
            && dequantize_row(info.block_type, &from, &mut x).is_ok()
            && quantize_row(trial.to, &x, Some(columns), Effort::Normal, &mut encoded).is_ok()
            && dequantize_row(trial.to, &encoded, &mut back).is_ok();
        // What cannot be encoded is an error later, with a name.
        if !done {
            return typical(trial.to);
        }
        for ((x, b), c) in x.iter().zip(&back).zip(&tempered) {
            let (x, b) = (f64::from(*x), f64::from(*b));
            error += c * (x - b) * (x - b);
            energy += c * x * x;
        }
    }
    if energy > 0.0 && error.is_finite() && energy.is_finite() {
        error / energy
    } else {
        typical(trial.to)
    }
}

/// Squared relative error of a type on weights like those of a trained model, as
/// `formats/examples/block_error.rs` measures it.
pub(crate) fn typical(ty: BlockType) -> f64 {
    let relative: f64 = match ty {
        BlockType::Q2_K => 0.258,
        BlockType::Q3_K => 0.1434,
        BlockType::IQ3_S => 0.1285,
        BlockType::Q4_0 => 0.0808,
        BlockType::IQ4_XS => 0.0736,
        BlockType::IQ4_NL => 0.0734,
        BlockType::Q4_K => 0.0696,
        BlockType::Q4_1 => 0.0691,
        BlockType::Q5_0 => 0.04,
        BlockType::Q5_K => 0.0342,
        BlockType::Q5_1 => 0.0337,
        BlockType::Q6_K => 0.0165,
        BlockType::Q8_0 => 0.0049,
        BlockType::F16 | BlockType::BF16 | BlockType::F32 => 0.0,
        // Each bit halves it; the factor is that of the types above.
        other => 1.65 * (-other.bits_per_weight()).exp2(),
    };
    relative * relative
}

/// What an error in the products of a matrix costs.
#[derive(Clone, Copy)]
pub(super) enum Cost<'a> {
    /// Nats of divergence per unit of squared relative error, measured on the model.
    Measured(&'a Sensitivity),
    /// One figure for each kind of matrix, whatever the model.
    Stated,
}

impl Cost<'_> {
    /// That of the matrix called `name`. Only comparable with others of the same [`Cost`].
    pub(super) fn of(self, name: &str) -> f64 {
        let kind = name.split('.').nth(2).unwrap_or("");
        match self {
            Self::Measured(s) => match Place::of(name) {
                // A checked file knows all matrices that a layer can have.
                Some(Place::Layer(l)) => s.of(l as usize, kind).map_or(0.0, f64::from),
                _ => 0.0,
            },
            Self::Stated => stated(kind),
        }
    }
}

/// Relative to `ffn_gate`, at equal relative errors: the divergence measured with one kind of
/// matrix at a time in two bits, in the first ten layers of a model of 28 (`docs/importance.md`
/// has the figures).
pub(crate) fn stated(kind: &str) -> f64 {
    match kind {
        "attn_q" | "attn_k" => 0.15,
        "attn_v" => 0.4,
        "attn_output" => 0.6,
        "ffn_down" => 1.2,
        _ => 1.0,
    }
}
