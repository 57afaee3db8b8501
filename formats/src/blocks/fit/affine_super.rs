//! K-quant super-blocks with steps and minima: `x ≈ (d·scale)·l − (dmin·min)`, the scales and
//! minima small integers, `d` and `dmin` half floats that the super-block shares.
//!
//! Every sub-block keeps the few best of the levels tried. For any `d` and `dmin` the error of
//! every kept one, under the integers nearest to its least squares, is a formula: so many pairs
//! are tried, and the best go through rounds of *rounding again* under neighbouring integers and
//! least squares for `d` and `dmin`.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::f16;

use super::super::simd::{LANES, Simd};
use super::super::{Effort, QK_K};
use super::affine::{Fit, Group, Moments, levels};
use super::{Batch, WORST, gather, inverse, nearest_half, put, sum};

/// What the search tries.
pub(in super::super) struct Search {
    /// Parts of a sub-block's range cut off at the lower and the upper end, one try each.
    trims: &'static [(f32, f32)],
    /// How many of the levels tried a sub-block keeps, at most [`MOST_KEPT`].
    keep: usize,
    /// `d` and `dmin`, relative to those that give the largest scale and minimum the largest
    /// integers.
    starts: &'static [(f32, f32)],
    /// How many of the pairs are refined.
    finalists: usize,
    /// How far from the integers chosen others are looked at, scale and minimum, in every round
    /// of the refinement.
    reach: &'static [(i8, i8)],
    /// Rounds of the refinement, at most.
    rounds: usize,
}

impl Search {
    /// A quick one.
    pub(in super::super) const fn normal(trims: &'static [(f32, f32)], keep: usize) -> Self {
        Self {
            trims,
            keep,
            starts: &STARTS,
            finalists: 1,
            reach: &NEAR,
            rounds: 3,
        }
    }

    /// A long one.
    pub(in super::super) const fn high(trims: &'static [(f32, f32)]) -> Self {
        Self {
            trims,
            keep: 3,
            starts: &MORE_STARTS,
            finalists: FINALISTS,
            reach: &FAR,
            rounds: 4,
        }
    }
}

/// A block type of this kind, of `B` sub-blocks.
pub(in super::super) trait AffineSuper<const B: usize>: Pod {
    /// The highest level.
    const TOP: f32;
    /// The highest integer for scales and minima.
    const LIMIT: f32;

    /// What a quick search tries.
    const NORMAL: Search;
    /// What a long one tries.
    const HIGH: Search;

    fn pack(d: f16, dmin: f16, scales: [u8; B], mins: [u8; B], levels: &[u8; QK_K]) -> Self;
}

/// Room for the levels that a sub-block keeps.
const MOST_KEPT: usize = 12;

/// Room for tries, and for the polish that follows them.
const MOST_TRIED: usize = 56;

/// The best levels found for each lane, best first.
#[derive(Clone, Copy)]
struct Kept<V> {
    best: Fit<V>,
    /// The best steps.
    scale: [V; MOST_KEPT],
    moments: [Moments<V>; MOST_KEPT],
}

impl<V: Simd> Kept<V> {
    #[inline(always)]
    fn none() -> Self {
        let zero = V::zero();
        Self {
            best: Fit {
                scale: zero,
                offset: zero,
                error: zero,
            },
            scale: [zero; MOST_KEPT],
            moments: [Moments::none(); MOST_KEPT],
        }
    }
}

/// Integers for eight sub-blocks, as floats, and the errors under them.
#[derive(Clone, Copy)]
struct Choice<V> {
    scale: V,
    min: V,
    error: V,
}

impl<V: Simd> Choice<V> {
    #[inline(always)]
    fn none() -> Self {
        Self {
            scale: V::zero(),
            min: V::zero(),
            error: V::splat(WORST),
        }
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self {
            scale: other.error.if_less(self.error, other.scale, self.scale),
            min: other.error.if_less(self.error, other.min, self.min),
            error: other.error.min(self.error),
        }
    }
}

/// `d` and `dmin`, rounded to half floats.
#[derive(Clone, Copy, PartialEq)]
struct Shared {
    d: f32,
    dmin: f32,
}

/// Encodes a row of whole blocks, super-blocks of `B = 8·G` sub-blocks of `N` weights.
pub(in super::super) fn encode_row<F, const N: usize, const G: usize, const B: usize>(
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) where
    F: AffineSuper<B>,
{
    super::encode_row::<Batches<F, N, G, B>>(row, importance, effort, out);
}

/// A super-block at a time.
pub(super) struct Batches<F, const N: usize, const G: usize, const B: usize>(PhantomData<F>);

impl<F: AffineSuper<B>, const N: usize, const G: usize, const B: usize> Batch
    for Batches<F, N, G, B>
{
    type Block = F;
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn encode<V: Simd, const WEIGHTED: bool>(
        values: &[f32; QK_K],
        importances: &[f32; QK_K],
        effort: Effort,
        out: &mut [u8],
    ) {
        let search = &match effort {
            Effort::Normal => F::NORMAL,
            Effort::High => F::HIGH,
        };
        let mut groups = [Group::<V, N>::none(); G];
        let mut kept = [Kept::<V>::none(); G];
        for part in 0..G {
            let x = gather(values, part);
            let w = if WEIGHTED {
                gather(importances, part)
            } else {
                [V::zero(); N]
            };
            groups[part] = Group::new::<WEIGHTED, true>(&x, &w);
            kept[part] = try_levels::<V, WEIGHTED, N>(&groups[part], search, F::TOP);
        }
        let finalists = first_choice::<V, N, G>(&groups, &kept, search, F::TOP, F::LIMIT);
        let mut best = (finalists[0].1, [Choice::none(); G], f32::INFINITY);
        for &(_, start) in finalists.iter().take(search.finalists) {
            let found =
                refine::<V, WEIGHTED, N, G>(&groups, &kept, start, search, F::TOP, F::LIMIT);
            if found.2 < best.2 {
                best = found;
            }
        }
        let (shared, choices, _) = best;
        let (d, dmin) = (shared.d, shared.dmin);
        let (mut scales, mut mins) = ([0; B], [0; B]);
        for (g, c) in choices.iter().enumerate() {
            scales[g * LANES..][..LANES].copy_from_slice(&c.scale.low_bytes());
            mins[g * LANES..][..LANES].copy_from_slice(&c.min.low_bytes());
        }
        let mut all = [0; QK_K];
        let subs = values.as_chunks::<N>().0.iter();
        for (b, (x, l)) in subs.zip(all.as_chunks_mut::<N>().0).enumerate() {
            let (scale, offset) = (d * f32::from(scales[b]), -(dmin * f32::from(mins[b])));
            *l = levels::<V, N>(x, scale, offset, F::TOP);
        }
        put(
            &F::pack(f16::from_f32(d), f16::from_f32(dmin), scales, mins, &all),
            out,
            0,
        );
    }
}

/// The best levels for each lane of `g`, without regard to its neighbours.
#[inline(always)]
fn try_levels<V: Simd, const WEIGHTED: bool, const N: usize>(
    g: &Group<V, N>,
    search: &Search,
    top: f32,
) -> Kept<V> {
    let (zero, worst) = (V::zero(), V::splat(WORST));
    let ceiling = zero - g.mean;
    let unit = inverse(g.width);
    let mut tried = [[[0.0; LANES]; 4]; MOST_TRIED];
    // What each keeps is known by a number in the last bits of its error.
    let mut errors = [worst; MOST_KEPT];
    let mut best = Fit {
        scale: zero,
        offset: zero,
        error: worst,
    };
    let trims = &search.trims[..search.trims.len().min(MOST_TRIED - 4)];
    let mut i = 0;
    while i < trims.len() + 1 {
        let (mut offset, mut inv) = ([best.offset; 2], [inverse(best.scale); 2]);
        for (c, &(below, above)) in trims.iter().skip(i).take(2).enumerate() {
            offset[c] = g.low + g.play * V::splat(below);
            // Where the start cannot move, the step alone is left to choose: in wider grades.
            let cut = below + above;
            let free = V::splat(top / (1.0 - cut));
            let grounded = V::splat(top / (1.0 - 2.0 * cut).max(0.25));
            inv[c] = unit * V::zero().if_less(g.play, free, grounded);
        }
        for m in g.moments::<WEIGHTED, 2>(offset, inv, top) {
            i += 1;
            let fit = g.fit(&m, ceiling);
            best.scale = fit.error.if_less(best.error, fit.scale, best.scale);
            best.offset = fit.error.if_less(best.error, fit.offset, best.offset);
            best.error = fit.error.min(best.error);
            tried[i] = [fit.scale, m.l, m.ll, m.xl].map(V::store);
            let mut error = fit.error.tagged(i as u8);
            for kept in &errors[..search.keep] {
                // Nearly the same error means the same levels again.
                let apart = (error - *kept).abs();
                error = apart.if_less(*kept * V::splat(SAME), worst, error);
            }
            for kept in &mut errors[..search.keep] {
                let old = *kept;
                *kept = error.min(old);
                error = error.max(old);
            }
        }
    }
    let mut kept = Kept {
        best,
        scale: [zero; MOST_KEPT],
        moments: [Moments::none(); MOST_KEPT],
    };
    for (k, errors) in errors.iter().enumerate().take(search.keep) {
        let mut found = [[0.0; LANES]; 4];
        let (error, tags) = (errors.store(), errors.tags());
        for (lane, tag) in tags.into_iter().enumerate() {
            if error[lane] < TAKEN {
                for (f, t) in found.iter_mut().zip(&tried[usize::from(tag)]) {
                    f[lane] = t[lane];
                }
            }
        }
        // Where nothing was found: levels of zero with a step of zero, a constant.
        let [scale, l, ll, xl] = [
            V::load(&found[0]),
            V::load(&found[1]),
            V::load(&found[2]),
            V::load(&found[3]),
        ];
        kept.scale[k] = scale;
        kept.moments[k] = Moments { l, ll, xl };
    }
    kept
}

/// Errors this close, relative to themselves, are of the same levels.
const SAME: f32 = 1e-4;

/// Less than what stands for nothing found.
const TAKEN: f32 = 1e38;

/// The pairs to refine, best first.
#[inline(always)]
fn first_choice<V: Simd, const N: usize, const G: usize>(
    groups: &[Group<V, N>; G],
    kept: &[Kept<V>; G],
    search: &Search,
    top: f32,
    limit: f32,
) -> [(f32, Shared); FINALISTS] {
    let (mut scale, mut low, mut span) = (V::zero(), V::zero(), V::zero());
    for (g, kept) in groups.iter().zip(kept) {
        scale = kept.best.scale.max(scale);
        low = (kept.best.offset + g.mean).min(low);
        span = g.width.max(span);
    }
    let scale = largest(scale) / limit;
    let min = largest(V::zero() - low) / limit;
    let span = largest(span) / (top * limit);
    let none = Shared {
        d: nearest_half::<V>(scale),
        dmin: nearest_half::<V>(min),
    };
    let mut finalists = [(f32::INFINITY, none); FINALISTS];
    for unit in [scale, span] {
        for &(d, dmin) in search.starts {
            let shared = Shared {
                d: nearest_half::<V>(unit * d),
                dmin: nearest_half::<V>(min * dmin),
            };
            let mut candidate = (0.0, shared);
            for g in 0..G {
                candidate.0 += sum(choose(&groups[g], &kept[g], shared, search.keep, limit).error);
            }
            for place in &mut finalists {
                if candidate.0 < place.0 {
                    std::mem::swap(place, &mut candidate);
                }
            }
        }
    }
    finalists
}

/// Room for the pairs to be refined.
const FINALISTS: usize = 4;

/// The integers with which the kept levels err least.
#[inline(always)]
fn choose<V: Simd, const N: usize>(
    g: &Group<V, N>,
    kept: &Kept<V>,
    shared: Shared,
    keep: usize,
    limit: f32,
) -> Choice<V> {
    let (d, dmin) = (V::splat(shared.d), V::splat(shared.dmin));
    let (inv_d, inv_dmin) = (inverse(d), inverse(dmin));
    let per_weight = V::splat(1.0) / g.sw;
    let mut best = Choice::none();
    for k in 0..keep {
        let m = kept.moments[k];
        let below = kept.scale[k] * inv_d - V::splat(0.5);
        for up in [0.0, 1.0] {
            let scale = (below + V::splat(up)).round_to(0.0, limit);
            let step = d * scale;
            // Least squares for the minimum under that step.
            let ideal = step * m.l * per_weight - g.mean;
            let min = (ideal * inv_dmin).round_to(0.0, limit);
            let offset = V::zero() - dmin * min - g.mean;
            let by_offset = offset * (offset * g.sw + V::splat(2.0) * step * m.l);
            let by_step = step * (step * m.ll - V::splat(2.0) * m.xl);
            best = best.or(Choice {
                scale,
                min,
                error: g.total + by_offset + by_step,
            });
        }
    }
    best
}

/// Rounds of integer choice with new levels, and least squares for the shared scales.
#[inline(always)]
fn refine<V: Simd, const WEIGHTED: bool, const N: usize, const G: usize>(
    groups: &[Group<V, N>; G],
    kept: &[Kept<V>; G],
    start: Shared,
    search: &Search,
    top: f32,
    limit: f32,
) -> (Shared, [Choice<V>; G], f32) {
    let mut best = (start, [Choice::none(); G], f32::INFINITY);
    let mut shared = start;
    let mut choices = [Choice::none(); G];
    for g in 0..G {
        choices[g] = choose(&groups[g], &kept[g], shared, search.keep, limit);
    }
    for _ in 0..search.rounds {
        let (d, dmin) = (V::splat(shared.d), V::splat(shared.dmin));
        let mut total = 0.0;
        for g in 0..G {
            let centre = choices[g];
            let mut chosen = Choice::none();
            for &[a, b, c] in search.reach.as_chunks::<3>().0 {
                let mut near = [Choice::none(); 3];
                let (mut offset, mut step) = ([d; 3], [d; 3]);
                for (i, &(ds, dm)) in [a, b, c].iter().enumerate() {
                    near[i].scale = (centre.scale + V::splat(f32::from(ds))).round_to(0.0, limit);
                    near[i].min = (centre.min + V::splat(f32::from(dm))).round_to(0.0, limit);
                    step[i] = d * near[i].scale;
                    offset[i] = V::zero() - dmin * near[i].min - groups[g].mean;
                }
                let errors = groups[g].error::<WEIGHTED, 3>(offset, step, top);
                for i in 0..3 {
                    near[i].error = errors[i];
                    chosen = chosen.or(near[i]);
                }
            }
            choices[g] = chosen;
            total += sum(chosen.error);
        }
        if total >= best.2 {
            break;
        }
        best = (shared, choices, total);
        let next = refit::<V, WEIGHTED, N, G>(groups, shared, &choices, top);
        if next == shared {
            break;
        }
        shared = next;
    }
    best
}

/// Least squares for `d` and `dmin` with all integers held.
#[inline(always)]
fn refit<V: Simd, const WEIGHTED: bool, const N: usize, const G: usize>(
    groups: &[Group<V, N>; G],
    shared: Shared,
    choices: &[Choice<V>; G],
    top: f32,
) -> Shared {
    let (d, dmin) = (V::splat(shared.d), V::splat(shared.dmin));
    let (mut aa, mut ac, mut cc, mut xa, mut xc) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for (g, c) in groups.iter().zip(choices) {
        let offset = V::zero() - dmin * c.min - g.mean;
        let [m] = g.moments::<WEIGHTED, 1>([offset], [inverse(d * c.scale)], top);
        let sums = [g.sw, m.l, m.ll, g.mean, m.xl, c.scale, c.min].map(Simd::store);
        for lane in 0..LANES {
            let [sw, sl, sll, mean, sxl, s, m] = sums.map(|v| f64::from(v[lane]));
            aa += s * s * sll;
            ac -= s * m * sl;
            cc += m * m * sw;
            xa += s * (sxl + mean * sl);
            xc -= m * mean * sw;
        }
    }
    let det = aa * cc - ac * ac;
    if det > 1e-9 * aa * cc {
        let d = (xa * cc - xc * ac) / det;
        let dmin = (xc * aa - xa * ac) / det;
        if d > 0.0 && dmin >= 0.0 {
            return Shared {
                d: nearest_half::<V>(d as f32),
                dmin: nearest_half::<V>(dmin as f32),
            };
        }
    } else if aa > 0.0 && cc == 0.0 {
        return Shared {
            d: nearest_half::<V>((xa / aa) as f32),
            dmin: shared.dmin,
        };
    }
    shared
}

/// The largest lane that is not negative.
#[inline(always)]
fn largest<V: Simd>(v: V) -> f32 {
    let mut out = 0.0f32;
    for v in v.store() {
        out = out.max(v);
    }
    out
}

/// Shared scales for a quick search.
const STARTS: [(f32, f32); 5] = [
    (1.0, 1.0),
    (1.03, 1.01),
    (1.01, 1.04),
    (1.06, 1.06),
    (0.98, 1.02),
];

/// Shared scales for a long one: a grid.
const MORE_STARTS: [(f32, f32); 36] = {
    let mut out = [(0.0, 0.0); 36];
    let mut i = 0;
    while i < 36 {
        let (a, b) = ((i / 6) as f32, (i % 6) as f32);
        out[i] = (0.97 + 0.02 * a, 0.97 + 0.02 * b);
        i += 1;
    }
    out
};

/// The integers chosen, and those beside them.
const NEAR: [(i8, i8); 9] = [
    (0, 0),
    (1, 1),
    (-1, -1),
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 2),
    (-1, -2),
];

/// All integers not far away.
const FAR: [(i8, i8); 27] = {
    let mut out = [(0, 0); 27];
    let mut i = 0;
    while i < 25 {
        out[i] = (i as i8 / 5 - 2, i as i8 % 5 - 2);
        i += 1;
    }
    out
};
