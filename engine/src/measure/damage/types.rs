//! Matrices in other types.

use formats::blocks::{BlockType, Effort, dequantize_row, quantize_row};
use formats::imatrix::KINDS;
use formats::measured::TypeDamage;

use super::{TYPES, finite, fit};
use crate::measure::sensitivity::{Undisturbed, each, matrix_mut};
use crate::model::{LayerTensors, Tensor};
use crate::role::RunError;

/// The kind whose errors count the same for all weights, as in splitconv without importances.
const EVEN: &str = "ffn_down";

/// One matrix, one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) layer: usize,
    /// Index in [`KINDS`].
    pub(super) kind: usize,
    pub(super) ty: BlockType,
}

impl Job {
    pub(super) fn key(&self) -> String {
        format!("type/{}/{}/{}", self.layer, KINDS[self.kind], self.ty)
    }

    /// Divergence with this matrix in this type, all else as it is.
    pub(super) fn measure(&self, model: &mut Undisturbed<'_>) -> Result<f64, RunError> {
        let own = model.layers[self.layer].1;
        let mut weights = own.clone();
        retype(&mut weights, self.kind, self.ty, model.threads())?;
        let mut rows = model.before[self.layer].clone();
        model.layer(self.layer, &weights, &mut rows)?;
        model.behind(self.layer + 1, rows)
    }
}

/// All that can be measured of a model, layers in an order that halves the gaps.
pub(super) fn jobs(model: &Undisturbed<'_>) -> Vec<Job> {
    let mut out = Vec::new();
    for layer in fit::spread(model.layers.len()) {
        let matrices = model.layers[layer].1.matrices().enumerate();
        for (kind, t) in matrices {
            // splitconv copies a matrix that costs no more than its target.
            let smaller = |ty: &&BlockType| {
                ty.bits_per_weight() < t.block_type.bits_per_weight()
                    && t.cols.is_multiple_of(ty.block_len())
            };
            out.extend(TYPES.iter().filter(smaller).map(|ty| Job {
                layer,
                kind,
                ty: *ty,
            }));
        }
    }
    out
}

/// Takes the matrix `kind` to `ty`, as splitconv does without importances.
fn retype(
    weights: &mut LayerTensors,
    kind: usize,
    ty: BlockType,
    threads: usize,
) -> Result<(), RunError> {
    let Some(tensor) = matrix_mut(weights, kind) else {
        return Ok(());
    };
    let encoded = encode(tensor, ty, KINDS[kind] == EVEN, threads);
    *tensor = encoded.ok_or_else(|| {
        RunError::Request(format!("tensor `{}` cannot be taken to {ty}", tensor.name))
    })?;
    Ok(())
}

fn encode(t: &Tensor, ty: BlockType, even: bool, threads: usize) -> Option<Tensor> {
    let row_bytes = ty.row_bytes(t.cols)?;
    let mut bytes = vec![0; row_bytes.checked_mul(t.rows)?];
    if bytes.is_empty() {
        return None;
    }
    let rows = t
        .data()
        .chunks(t.row_bytes())
        .zip(bytes.chunks_mut(row_bytes));
    let done = each(rows, threads, |(from, to)| {
        let mut row = vec![0.0; t.cols];
        if dequantize_row(t.block_type, from, &mut row).is_err() {
            return false;
        }
        let weighing = (!even).then(|| by_size(&row));
        quantize_row(ty, &row, weighing.as_deref(), Effort::Normal, to).is_ok()
    });
    if done.contains(&false) {
        return None;
    }
    Some(Tensor::owned(&t.name, ty, t.rows, t.cols, bytes))
}

/// What an error in each weight costs where nothing is known: 4·rms + |x| (docs/importance.md).
fn by_size(row: &[f32]) -> Vec<f32> {
    let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len().max(1) as f32;
    let base = 4.0 * mean.sqrt();
    row.iter().map(|x| base + x.abs()).collect()
}

/// The divergence of many matrices changed together by the sum of their own ones: the geometric
/// mean over the first third, the first two thirds and the last third of the layers, each matrix
/// in the cheapest and in the dearest type that was measured of it.
pub(super) fn additivity(
    model: &mut Undisturbed<'_>,
    damages: &[TypeDamage],
) -> Result<f64, RunError> {
    let n = model.layers.len();
    let (mut ln, mut count) = (0.0, 0);
    for (layers, cheapest) in [
        (0..n.div_ceil(3), true),
        (0..(2 * n).div_ceil(3), false),
        (n - n / 3..n, true),
    ] {
        let Some(first) = layers.clone().next() else {
            continue;
        };
        let mut rows = model.before[first].clone();
        let mut sum = 0.0;
        for l in layers.clone() {
            let mut weights = model.layers[l].1.clone();
            for (kind, name) in KINDS.iter().enumerate() {
                let own = damages
                    .iter()
                    .filter(|d| d.layer as usize == l && d.kind == *name)
                    .filter_map(|d| Some((d.block_type.parse::<BlockType>().ok()?, d.kl)));
                let order = |a: &(BlockType, f64), b: &(BlockType, f64)| {
                    a.0.bits_per_weight().total_cmp(&b.0.bits_per_weight())
                };
                let picked = if cheapest {
                    own.min_by(order)
                } else {
                    own.max_by(order)
                };
                if let Some((ty, kl)) = picked {
                    retype(&mut weights, kind, ty, model.threads())?;
                    sum += kl;
                }
            }
            model.layer(l, &weights, &mut rows)?;
        }
        let together = finite(model.behind(layers.end, rows)?, "many matrices at once")?;
        if sum > 0.0 && together > 0.0 {
            ln += (together / sum).ln();
            count += 1;
        }
    }
    Ok(if count == 0 {
        1.0
    } else {
        (ln / f64::from(count)).exp()
    })
}
