//! The encoders' search, eight groups of weights at a time: a lane is a group (a block of 32
//! weights, or a sub-block of a super-block), so nothing is ever summed across lanes and a group
//! has the same result whatever its neighbours are.
//!
//! A group of weights `x` becomes small integers `l` (*levels*), `x ≈ s·l` or `x ≈ s·l + o`. For
//! given levels the best step is a matter of least squares, and the error of *any* step is a
//! quadratic in a few sums over the group ([`Moments`]). So the search enumerates levels: it
//! scales the group in many ways, rounds, and keeps the sums. What follows needs no weights any
//! more: for shared scales of a super-block, the error of every integer scale is a formula.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::simd::{Kernel, LANES, Simd, dispatch};
use super::{Effort, QK_K};

pub(super) mod affine;
pub(super) mod affine_super;
pub(super) mod scale;
pub(super) mod scale_super;

/// Larger magnitudes than any quantised type can hold; squares of it stay finite in `f32`.
const MAX_MAGNITUDE: f32 = 1e9;

/// Importance of a weight relative to the most important of its block, at the least. Keeps the
/// least squares defined where a calibration saw no activity.
const MIN_RELATIVE_IMPORTANCE: f32 = 1e-6;

/// More than any error.
const WORST: f32 = f32::MAX;

/// A batch of 256 weights, be they eight blocks or one super-block, to bytes.
pub(super) trait Batch: Pod {
    /// Weights of a block.
    const WEIGHTS: usize;

    /// Encodes 256 weights into `out`, whole blocks of which the first are wanted. Without
    /// `WEIGHTED` the importances are all 1 and need not be looked at.
    fn encode<V: Simd, const WEIGHTED: bool>(
        x: &[f32; QK_K],
        w: &[f32; QK_K],
        effort: Effort,
        out: &mut [u8],
    );
}

/// Encodes a row of whole blocks; what [`Block::encode_row`](super::Block::encode_row) does.
pub(super) fn encode_row<B: Batch>(
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) {
    dispatch(EncodeRow::<B> {
        row,
        importance,
        effort,
        out,
        format: PhantomData,
    });
}

/// Encodes one block.
pub(super) fn encode_block<B: Batch, const N: usize>(
    x: &[f32; N],
    importance: Option<&[f32; N]>,
) -> B {
    let mut block = B::zeroed();
    let w = importance.map(|w| &w[..]);
    encode_row::<B>(x, w, Effort::Normal, bytemuck::bytes_of_mut(&mut block));
    block
}

/// Encodes a row of any number of blocks.
struct EncodeRow<'a, B> {
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    effort: Effort,
    out: &'a mut [u8],
    format: PhantomData<B>,
}

impl<B: Batch> Kernel for EncodeRow<'_, B> {
    #[inline(always)]
    fn run<V: Simd>(self) {
        match self.importance {
            None => {
                for (x, out) in self
                    .row
                    .chunks(QK_K)
                    .zip(self.out.chunks_mut(batch_bytes::<B>()))
                {
                    let x = finite::<V>(&padded(x));
                    B::encode::<V, false>(&x, &[1.0; QK_K], self.effort, out);
                }
            }
            Some(w) => {
                let pairs = self.row.chunks(QK_K).zip(w.chunks(QK_K));
                for ((x, w), out) in pairs.zip(self.out.chunks_mut(batch_bytes::<B>())) {
                    let x = finite::<V>(&padded(x));
                    let mut w = padded(w);
                    for block in w.chunks_exact_mut(B::WEIGHTS) {
                        relative(block);
                    }
                    B::encode::<V, true>(&x, &w, self.effort, out);
                }
            }
        }
    }
}

const fn batch_bytes<B: Batch>() -> usize {
    QK_K / B::WEIGHTS * size_of::<B>()
}

/// The values, and zeros in place of blocks that are not there.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; QK_K] {
    let mut out = [0.0; QK_K];
    out[..values.len()].copy_from_slice(values);
    out
}

/// Replaces what cannot be quantised: NaN by 0, infinities and large magnitudes by ±1e9.
#[inline(always)]
fn finite<V: Simd>(x: &[f32; QK_K]) -> [f32; QK_K] {
    let most = V::splat(MAX_MAGNITUDE);
    let mut out = *x;
    for chunk in out.as_chunks_mut().0 {
        let v = V::load(chunk);
        let v = v.if_equal(v, v, V::zero());
        *chunk = v.min(most).max(V::zero() - most).store();
    }
    out
}

/// Scales the importances of a block to at most 1. Negative or non-finite ones count as 0, and
/// all of them are 1 when none is positive.
fn relative(w: &mut [f32]) {
    let mut largest = 0.0f32;
    for w in &mut *w {
        if !(w.is_finite() && *w > 0.0) {
            *w = 0.0;
        }
        largest = largest.max(*w);
    }
    for w in w {
        // Division, not a reciprocal: 1/w overflows for subnormal importances.
        *w = if largest == 0.0 {
            1.0
        } else {
            (*w / largest).max(MIN_RELATIVE_IMPORTANCE)
        };
    }
}

/// Eight groups of `N` weights, a group a lane, from weight `8·N·part` on.
#[inline(always)]
fn gather<V: Simd, const N: usize>(x: &[f32; QK_K], part: usize) -> [V; N] {
    let mut out = [V::zero(); N];
    let tiles = x.as_chunks::<LANES>().0;
    for tile in 0..N / LANES {
        let mut rows = [V::zero(); LANES];
        for (lane, row) in rows.iter_mut().enumerate() {
            *row = V::load(&tiles[(part * LANES + lane) * (N / LANES) + tile]);
        }
        out[tile * LANES..][..LANES].copy_from_slice(&V::transpose(rows));
    }
    out
}

/// `1/v`, and 0 for 0.
#[inline(always)]
fn inverse<V: Simd>(v: V) -> V {
    v.if_equal(V::zero(), v, V::splat(1.0) / v)
}

/// The half float nearest to `v`, saturating.
#[inline(always)]
fn nearest_half<V: Simd>(v: f32) -> f32 {
    V::splat(v).to_half().store()[0]
}

/// The sum of all lanes, in order.
#[inline(always)]
fn sum<V: Simd>(v: V) -> f32 {
    let mut out = 0.0;
    for v in v.store() {
        out += v;
    }
    out
}

/// The half floats a little below and above `v` in magnitude, `step` away; saturating.
#[inline(always)]
fn half_neighbour<V: Simd>(v: V, step: i16) -> V {
    let mut bits = v.to_half().half_bits();
    for b in &mut bits {
        let magnitude = (*b & 0x7fff) as i16 + step;
        *b = *b & 0x8000 | magnitude.clamp(0, HALF_MOST) as u16;
    }
    V::from_half_bits(bits)
}

/// The largest finite half float.
const HALF_MOST: i16 = 0x7bff;

/// A block's bytes.
#[inline(always)]
fn put<B: Pod>(block: &B, out: &mut [u8], index: usize) {
    if let Some(out) = out.chunks_exact_mut(size_of::<B>()).nth(index) {
        out.copy_from_slice(bytemuck::bytes_of(block));
    }
}
