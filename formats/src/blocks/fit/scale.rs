//! Blocks of 32 weights with one half float: `x ≈ d·l`.

use half::f16;

use super::super::simd::{LANES, Simd};
use super::super::{Effort, QK_K};
use super::{WORST, gather, half_neighbour, inverse, put};
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

/// `Σ w·(x − s·l)²`, `l` the levels of `x·inv`.
#[inline(always)]
pub(super) fn scale_error<L: Levels, V: Simd, const N: usize, const WEIGHTED: bool>(
    x: &[V; N],
    w: &[V; N],
    s: V,
    inv: V,
) -> V {
    let mut e = V::zero();
    for i in 0..N {
        let miss = x[i] - s * L::snap(x[i] * inv);
        let miss2 = miss * miss;
        e = e + if WEIGHTED { w[i] * miss2 } else { miss2 };
    }
    e
}

/// `[Σ w·l·x, Σ w·l²]`, `l` the levels of `x·inv`.
#[inline(always)]
pub(super) fn scale_moments<L: Levels, V: Simd, const N: usize, const WEIGHTED: bool>(
    x: &[V; N],
    w: &[V; N],
    inv: V,
) -> [V; 2] {
    let (mut xl, mut ll) = (V::zero(), V::zero());
    for i in 0..N {
        let l = L::snap(x[i] * inv);
        let wl = if WEIGHTED { w[i] * l } else { l };
        xl = xl + wl * x[i];
        ll = ll + wl * l;
    }
    [xl, ll]
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

/// Encodes eight blocks.
#[inline(always)]
pub(in super::super) fn encode<B: ScaleBlock, V: Simd, const WEIGHTED: bool>(
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
    for i in 0..tries.len() + POLISH {
        let inv = match tries.get(i) {
            Some(t) => unit * V::splat(*t),
            None => inverse(step),
        };
        let [xl, ll] = scale_moments::<L, V, 32, WEIGHTED>(x, w, inv);
        let s = xl * inverse(ll);
        // Least squares over the levels explains xl²/ll of Σ w·x²: the more the better.
        let gain = s * xl;
        step = best.if_less(gain, s, step);
        best = best.max(gain);
    }
    let mut least = V::splat(WORST);
    let mut chosen = V::zero();
    for n in [0, -1, 1] {
        let d = half_neighbour(step, n);
        let e = scale_error::<L, V, 32, WEIGHTED>(x, w, d, inverse(d));
        chosen = e.if_less(least, d, chosen);
        least = e.min(least);
    }
    chosen
}

/// Rounds of rounding and least squares after the best candidate is known.
const POLISH: usize = 2;
