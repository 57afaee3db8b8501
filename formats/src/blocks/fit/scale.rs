//! Blocks of 32 weights with one half float: `x ≈ d·l`.

use std::marker::PhantomData;

use half::f16;

use super::super::simd::{LANES, Simd};
use super::super::{Effort, QK_K};
use super::{Batch, WORST, gather, half_neighbour, inverse, put};
use bytemuck::Pod;

/// The levels of a type, in units of its step.
pub(in super::super) trait Levels {
    /// The level nearest to each lane.
    fn snap<V: Simd>(v: V) -> V;

    /// The number of that level, counted from the lowest.
    fn index<V: Simd>(v: V) -> V;
}

/// All integers of a range.
pub(in super::super) struct Integers<const LOW: i16, const HIGH: i16>;

impl<const LOW: i16, const HIGH: i16> Levels for Integers<LOW, HIGH> {
    #[inline(always)]
    fn snap<V: Simd>(v: V) -> V {
        v.round_to(f32::from(LOW), f32::from(HIGH))
    }

    #[inline(always)]
    fn index<V: Simd>(v: V) -> V {
        Self::snap(v) - V::splat(f32::from(LOW))
    }
}

/// A block type of this kind.
pub(in super::super) trait ScaleBlock: Pod {
    /// Its levels.
    type Levels: Levels;

    /// The levels that the value of largest magnitude is scaled to, one try each; negative ones
    /// mean that the step has the other sign than that value.
    fn tries(effort: Effort) -> &'static [f32];

    /// The block of a step and the numbers of the levels.
    fn pack(d: f16, levels: &[u8; 32]) -> Self;
}

/// Tries of a long search.
pub(in super::super) const MANY: usize = 128;

/// Two ladders of tries, each evenly from the first number to the second.
pub(in super::super) const fn ladders(one: [f32; 2], other: [f32; 2]) -> [f32; MANY] {
    const RUNGS: usize = MANY / 2;
    let mut out = [0.0; MANY];
    let mut i = 0;
    while i < RUNGS {
        let part = i as f32 / (RUNGS - 1) as f32;
        out[i] = one[0] + part * (one[1] - one[0]);
        out[RUNGS + i] = other[0] + part * (other[1] - other[0]);
        i += 1;
    }
    out
}

/// `Σ w·(x − s·l)²`, `l` the levels of `x/s`, for several steps.
#[inline(always)]
pub(super) fn scale_error<L, V, const N: usize, const WEIGHTED: bool, const C: usize>(
    x: &[V; N],
    w: &[V; N],
    s: [V; C],
) -> [V; C]
where
    L: Levels,
    V: Simd,
{
    let mut inv = s;
    let mut e = [V::zero(); C];
    for c in 0..C {
        inv[c] = inverse(s[c]);
    }
    for i in 0..N {
        for c in 0..C {
            let miss = x[i] - s[c] * L::snap(x[i] * inv[c]);
            let square = miss * miss;
            e[c] = e[c] + if WEIGHTED { w[i] * square } else { square };
        }
    }
    e
}

/// `Σ w·l·x` and `Σ w·l²` of a group's levels.
#[derive(Clone, Copy)]
pub(super) struct Moments<V> {
    pub(super) xl: V,
    pub(super) ll: V,
}

/// The sums over the levels of `x·inv`, for several factors.
#[inline(always)]
pub(super) fn scale_moments<L, V, const N: usize, const WEIGHTED: bool, const C: usize>(
    x: &[V; N],
    w: &[V; N],
    inv: [V; C],
) -> [Moments<V>; C]
where
    L: Levels,
    V: Simd,
{
    let none = Moments {
        xl: V::zero(),
        ll: V::zero(),
    };
    let mut sums = [none; C];
    for i in 0..N {
        for c in 0..C {
            let l = L::snap(x[i] * inv[c]);
            let wl = if WEIGHTED { w[i] * l } else { l };
            sums[c].xl = sums[c].xl + wl * x[i];
            sums[c].ll = sums[c].ll + wl * l;
        }
    }
    sums
}

/// The value of largest magnitude, with its sign.
#[inline(always)]
pub(super) fn extreme<V: Simd, const N: usize>(x: &[V; N]) -> V {
    let (mut out, mut most) = (V::zero(), V::zero());
    for v in x {
        out = most.if_less(v.abs(), *v, out);
        most = v.abs().max(most);
    }
    out
}

/// Encodes a row of whole blocks.
pub(in super::super) fn encode_row<B: ScaleBlock>(
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) {
    super::encode_row::<Batches<B>>(row, importance, effort, out);
}

/// Eight blocks at a time.
pub(super) struct Batches<B>(PhantomData<B>);

impl<B: ScaleBlock> Batch for Batches<B> {
    type Block = B;
    const WEIGHTS: usize = 32;

    #[inline(always)]
    fn encode<V: Simd, const WEIGHTED: bool>(
        values: &[f32; QK_K],
        importances: &[f32; QK_K],
        effort: Effort,
        out: &mut [u8],
    ) {
        let x: [V; 32] = gather(values, 0);
        let w: [V; 32] = if WEIGHTED {
            gather(importances, 0)
        } else {
            [V::zero(); 32]
        };
        let d = best_step::<B::Levels, V, WEIGHTED>(&x, &w, B::tries(effort));
        let bits = d.half_bits();
        let steps = d.store();
        let chunks = values.as_chunks::<32>().0;
        for lane in 0..LANES {
            let inv = inverse(V::splat(steps[lane]));
            let levels = indices::<B::Levels, V, 32>(&chunks[lane], inv);
            put(&B::pack(f16::from_bits(bits[lane]), &levels), out, lane);
        }
    }
}

/// The numbers of the levels of `x·inv`.
#[inline(always)]
pub(super) fn indices<L: Levels, V: Simd, const N: usize>(x: &[f32; N], inv: V) -> [u8; N] {
    let mut out = [0; N];
    for (l, x) in out
        .as_chunks_mut::<LANES>()
        .0
        .iter_mut()
        .zip(x.as_chunks().0)
    {
        *l = L::index(V::load(x) * inv).low_bytes();
    }
    out
}

/// The half float that errs least as the step of `x`.
#[inline(always)]
fn best_step<L: Levels, V: Simd, const WEIGHTED: bool>(
    x: &[V; 32],
    w: &[V; 32],
    tries: &[f32],
) -> V {
    let unit = inverse(extreme(x));
    let (mut best, mut step) = (V::zero(), V::zero());
    let mut i = 0;
    while i < tries.len() + POLISH {
        let mut inv = [inverse(step); 2];
        for (inv, t) in inv.iter_mut().zip(tries.iter().skip(i)) {
            *inv = unit * V::splat(*t);
        }
        for m in scale_moments::<L, V, 32, WEIGHTED, 2>(x, w, inv) {
            i += 1;
            let s = m.xl * inverse(m.ll);
            // Least squares over the levels explains xl²/ll of Σ w·x²: the more the better.
            let gain = s * m.xl;
            step = best.if_less(gain, s, step);
            best = best.max(gain);
        }
    }
    let mut near = [step; 3];
    for (near, n) in near.iter_mut().zip([0, -1, 1]) {
        *near = half_neighbour(step, n);
    }
    let mut least = V::splat(WORST);
    let mut chosen = V::zero();
    for (e, d) in scale_error::<L, V, 32, WEIGHTED, 3>(x, w, near)
        .into_iter()
        .zip(near)
    {
        chosen = e.if_less(least, d, chosen);
        least = e.min(least);
    }
    chosen
}

/// Rounds of rounding and least squares after the best candidate is known.
const POLISH: usize = 2;
