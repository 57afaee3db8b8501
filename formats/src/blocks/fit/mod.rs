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
trait Batch {
    /// Its blocks.
    type Block: Pod;
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
fn encode_row<B: Batch>(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
    dispatch(EncodeRow::<B> {
        row,
        importance,
        effort,
        out,
        format: PhantomData,
    });
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
        let outs = self.out.chunks_mut(batch_bytes::<B>());
        let ones = [1.0; QK_K];
        for (i, (x, out)) in self.row.chunks(QK_K).zip(outs).enumerate() {
            let x = finite::<V>(&padded(x));
            // A product with 1 changes nothing, so plain arrays do without code of their own.
            let Some(w) = self.importance else {
                if V::WIDE {
                    B::encode::<V, false>(&x, &ones, self.effort, out);
                } else {
                    B::encode::<V, true>(&x, &ones, self.effort, out);
                }
                continue;
            };
            let first = i * QK_K;
            let mut w = padded(&w[first..w.len().min(first + QK_K)]);
            for block in w.chunks_exact_mut(B::WEIGHTS) {
                relative::<V>(block);
            }
            B::encode::<V, true>(&x, &w, self.effort, out);
        }
    }
}

const fn batch_bytes<B: Batch>() -> usize {
    QK_K / B::WEIGHTS * size_of::<B::Block>()
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

/// Scales the importances of a block, whole vectors of them, to at most 1. Negative or non-finite
/// ones count as 0, and all of them are 1 when none is positive.
#[inline(always)]
fn relative<V: Simd>(w: &mut [f32]) {
    let (zero, most) = (V::zero(), V::splat(f32::MAX));
    let w = w.as_chunks_mut::<LANES>().0;
    let mut largest = zero;
    for w in &mut *w {
        let v = V::load(w);
        // A NaN is not more than anything.
        let v = zero.if_less(v, v, zero);
        let v = most.if_less(v, zero, v);
        largest = largest.max(v);
        *w = v.store();
    }
    let largest = largest.store().into_iter().fold(0.0, f32::max);
    for w in w {
        let v = if largest == 0.0 {
            V::splat(1.0)
        } else {
            // Division, not a reciprocal: 1/w overflows for subnormal importances.
            (V::load(w) / V::splat(largest)).max(V::splat(MIN_RELATIVE_IMPORTANCE))
        };
        *w = v.store();
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

#[cfg(test)]
mod tests {
    use super::super::simd::dispatch_scalar;
    use super::super::*;
    use super::*;

    struct Lcg(u32);

    impl Lcg {
        fn uniform(&mut self) -> f32 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 * (-23f32).exp2() - 1.0
        }
    }

    /// Rows of two super-blocks, ordinary and awkward.
    fn rows() -> Vec<Vec<f32>> {
        let mut g = Lcg(3);
        let mut bell = || g.uniform() + g.uniform() + g.uniform();
        let mut rows: Vec<Vec<f32>> = vec![
            (0..512).map(|_| bell()).collect(),
            (0..512)
                .map(|i| if i % 13 == 0 { bell() } else { 0.0 })
                .collect(),
            (0..512)
                .map(|i| bell() * ((i / 32) as f32 - 5.0).exp2())
                .collect(),
            (0..512).map(|_| bell().abs()).collect(),
            (0..512).map(|_| 3.0 + bell() * 1e-3).collect(),
            (0..512)
                .map(|i| if i == 77 { 1e4 } else { bell() * 1e-6 })
                .collect(),
        ];
        rows.push(vec![0.0; 512]);
        rows.push(vec![-1.25; 512]);
        let bad = [
            f32::NAN,
            f32::INFINITY,
            f32::MAX,
            1e-42,
            -0.0,
            f32::NEG_INFINITY,
            1.0,
        ];
        rows.push((0..512).map(|i| bad[i % 7]).collect());
        rows
    }

    fn assert_twins<B: Batch>(name: &str) {
        let rows = rows();
        for effort in Effort::ALL {
            for (r, row) in rows.iter().enumerate() {
                for importance in [None, Some(&rows[3][..]), Some(&rows[8][..])] {
                    // A row of 32-blocks may end anywhere.
                    let whole = if B::WEIGHTS == QK_K { 512 } else { 512 - 96 };
                    let row = &row[..whole];
                    let importance = importance.map(|w| &w[..whole]);
                    let bytes = whole / B::WEIGHTS * size_of::<B::Block>();
                    let (mut widest, mut scalar) = (vec![0; bytes], vec![0; bytes]);
                    encode_row::<B>(row, importance, effort, &mut widest);
                    dispatch_scalar(EncodeRow::<B> {
                        row,
                        importance,
                        effort,
                        out: &mut scalar,
                        format: PhantomData,
                    });
                    assert_eq!(widest, scalar, "{name}, {effort}, row {r}");
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_writes_the_same_bytes() {
        assert_twins::<affine_super::Batches<BlockQ2K, 16, 2, 16>>("Q2_K");
        assert_twins::<scale_super::Batches<BlockQ3K>>("Q3_K");
        assert_twins::<affine_super::Batches<BlockQ4K, 32, 1, 8>>("Q4_K");
        assert_twins::<affine_super::Batches<BlockQ5K, 32, 1, 8>>("Q5_K");
        assert_twins::<scale_super::Batches<BlockQ6K>>("Q6_K");
        assert_twins::<scale::Batches<BlockQ4_0>>("Q4_0");
        assert_twins::<affine::Batches<BlockQ4_1>>("Q4_1");
        assert_twins::<scale::Batches<BlockQ5_0>>("Q5_0");
        assert_twins::<affine::Batches<BlockQ5_1>>("Q5_1");
        assert_twins::<scale::Batches<BlockQ8_0>>("Q8_0");
        assert_twins::<scale::Batches<BlockIq4Nl>>("IQ4_NL");
    }
}
