//! Matrices in other types.

use std::ops::Range;

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

/// All that can be measured of a model, in the order in which it is.
pub(super) fn jobs(model: &Undisturbed<'_>) -> Vec<Job> {
    let allowed = |t: &Tensor| {
        // splitconv copies a matrix that costs no more than its target.
        let smaller = |ty: &BlockType| {
            ty.bits_per_weight() < t.block_type.bits_per_weight()
                && t.cols.is_multiple_of(ty.block_len())
        };
        TYPES.into_iter().filter(smaller).collect()
    };
    let layers = model.layers.iter();
    let table: Vec<Vec<Vec<BlockType>>> = layers
        .map(|(_, weights)| weights.matrices().map(allowed).collect())
        .collect();
    fit::order(&table)
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

/// Weights that are encoded to see what errors types make, all together, and rows of a matrix.
const SAMPLED: usize = 1 << 23;
const SAMPLED_ROWS: [usize; 2] = [2, 64];

/// The logarithm of the squared relative error that each job makes in its matrix, over some rows;
/// minus infinity where it changes nothing.
pub(super) fn errors(model: &Undisturbed<'_>, jobs: &[Job]) -> Vec<f64> {
    let tensors: Vec<(BlockType, bool, Option<&Tensor>)> = jobs
        .iter()
        .map(|j| {
            let tensor = model.layers[j.layer].1.matrices().nth(j.kind);
            (j.ty, KINDS[j.kind] == EVEN, tensor)
        })
        .collect();
    let columns: usize = tensors.iter().filter_map(|t| Some(t.2?.cols)).sum();
    let rows = (SAMPLED / columns.max(1)).clamp(SAMPLED_ROWS[0], SAMPLED_ROWS[1]);
    each(
        tensors.into_iter(),
        model.threads(),
        |(ty, even, tensor)| {
            let found = tensor.and_then(|t| error(t, ty, rows, even));
            found.unwrap_or_else(|| fit::by_bits(ty))
        },
    )
}

fn error(t: &Tensor, ty: BlockType, n: usize, even: bool) -> Option<f64> {
    // Nothing is more exact than this, as far as divergences go.
    const LEAST: f64 = 1e-7;
    let mut bytes = vec![0; ty.row_bytes(t.cols)?];
    let (mut row, mut back) = (vec![0.0_f32; t.cols], vec![0.0_f32; t.cols]);
    let (mut off, mut all) = (0.0_f64, 0.0_f64);
    for from in some(t.data().chunks(t.row_bytes()), n) {
        dequantize_row(t.block_type, from, &mut row).ok()?;
        let weighing = (!even).then(|| by_size(&row));
        quantize_row(ty, &row, weighing.as_deref(), Effort::Normal, &mut bytes).ok()?;
        dequantize_row(ty, &bytes, &mut back).ok()?;
        for (x, y) in row.iter().zip(&back) {
            off += f64::from(x - y).powi(2);
            all += f64::from(*x).powi(2);
        }
    }
    Some(if off > 0.0 {
        (off / all).max(LEAST).ln()
    } else {
        f64::NEG_INFINITY
    })
}

/// `n` of `items`, evenly spaced, or all when there are no more.
fn some<T>(items: impl ExactSizeIterator<Item = T>, n: usize) -> impl Iterator<Item = T> {
    let all = items.len();
    let taken = move |i: usize| (i + 1) * n / all > i * n / all;
    let items = items.enumerate();
    items.filter_map(move |(i, item)| (n >= all || taken(i)).then_some(item))
}

/// What an error in each weight costs where nothing is known: 4·rms + |x| (docs/importance.md).
fn by_size(row: &[f32]) -> Vec<f32> {
    let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len().max(1) as f32;
    let base = 4.0 * mean.sqrt();
    row.iter().map(|x| base + x.abs()).collect()
}

/// Bits per weight that matrices of a group have at most, if they can: about four, as plans have them.
const GROUP_BITS: f64 = 5.0;

/// Layers whose matrices are changed together: the front of a model or what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) layers: Range<usize>,
}

/// Layers of the front, which adds up in its own way.
pub(super) fn front(n_layer: usize) -> usize {
    n_layer.div_ceil(3)
}

/// The groups of a model of `n_layer` layers: the front, and the rest, if there is one.
pub(super) fn groups(n_layer: usize) -> Vec<Group> {
    let front = front(n_layer);
    let all = [0..front, front..n_layer].into_iter();
    all.filter(|layers| !layers.is_empty())
        .map(|layers| Group { layers })
        .collect()
}

impl Group {
    pub(super) fn key(&self) -> String {
        format!("group/{}-{}", self.layers.start, self.layers.end)
    }

    /// The job of each matrix of the group that can be changed: of the most bits up to
    /// [`GROUP_BITS`], else of the fewest.
    fn jobs<'a>(&self, jobs: &'a [Job]) -> Vec<&'a Job> {
        let mut out = Vec::new();
        for layer in self.layers.clone() {
            for kind in 0..KINDS.len() {
                let own = jobs.iter().filter(|j| j.layer == layer && j.kind == kind);
                let order = |a: &&Job, b: &&Job| {
                    let bits = a.ty.bits_per_weight().total_cmp(&b.ty.bits_per_weight());
                    bits.then(a.ty.id().cmp(&b.ty.id()))
                };
                let few = own.clone().filter(|j| j.ty.bits_per_weight() <= GROUP_BITS);
                out.extend(few.max_by(order).or_else(|| own.min_by(order)));
            }
        }
        out
    }

    /// The sum of their own divergences.
    pub(super) fn sum(&self, jobs: &[Job], damages: &[TypeDamage]) -> f64 {
        let all = self.jobs(jobs);
        let own = damages.iter().filter(|d| {
            all.iter().any(|j| {
                j.layer == d.layer as usize
                    && KINDS[j.kind] == d.kind
                    && j.ty.name() == d.block_type
            })
        });
        own.map(|d| d.kl).sum()
    }

    /// The rows behind the group when all are changed together; `None` when it gets `late` on the way.
    pub(super) fn rows(
        &self,
        model: &mut Undisturbed<'_>,
        jobs: &[Job],
        late: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>, RunError> {
        let all = self.jobs(jobs);
        let mut rows = model.before[self.layers.start].clone();
        for l in self.layers.clone() {
            let mut weights = model.layers[l].1.clone();
            for job in all.iter().filter(|j| j.layer == l) {
                if late() {
                    return Ok(None);
                }
                retype(&mut weights, job.kind, job.ty, model.threads())?;
            }
            model.layer(l, &weights, &mut rows)?;
        }
        Ok(Some(rows))
    }

    /// Their divergence when all are changed together; `None` when it gets `late` on the way.
    pub(super) fn measure(
        &self,
        model: &mut Undisturbed<'_>,
        jobs: &[Job],
        late: &dyn Fn() -> bool,
    ) -> Result<Option<f64>, RunError> {
        let Some(rows) = self.rows(model, jobs, late)? else {
            return Ok(None);
        };
        finite(model.behind(self.layers.end, rows)?, &self.key()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_parts_of_a_model() {
        let all = groups(31);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].key(), "group/0-11");
        assert_eq!(all[1].layers, 11..31);
        assert_eq!(groups(1).len(), 1);
        assert!(groups(0).is_empty());
        let job = |layer, ty| Job { layer, kind: 1, ty };
        let jobs = [
            job(0, BlockType::Q4_K),
            job(0, BlockType::Q6_K),
            job(0, BlockType::Q2_K),
            job(1, BlockType::Q8_0),
            job(1, BlockType::Q6_K),
            job(12, BlockType::Q2_K),
        ];
        assert_eq!(all[0].jobs(&jobs), [&jobs[0], &jobs[4]]);
        assert_eq!(all[1].jobs(&jobs), [&jobs[5]]);
        let damages = [
            (0, "Q2_K", 0.5),
            (0, "Q4_K", 0.1),
            (1, "Q6_K", 0.25),
            (12, "Q2_K", 1.0),
        ];
        let damages = damages.map(|(layer, ty, kl)| TypeDamage {
            layer,
            kind: KINDS[1].into(),
            block_type: ty.into(),
            kl,
            fitted: false,
        });
        assert_eq!(all[0].sum(&jobs, &damages), 0.35);
    }

    #[test]
    fn no_more_rows_are_sampled_than_said() {
        for all in [0, 1, 2, 63, 64, 65, 100, 127, 576] {
            for n in [1, 2, 64] {
                let taken: Vec<usize> = some(0..all, n).collect();
                assert_eq!(taken.len(), n.min(all), "{n} of {all}");
            }
        }
        assert_eq!(some(0..9, 3).collect::<Vec<_>>(), [2, 5, 8]);
    }
}
