//! K-quant super-blocks with steps alone: `x ≈ (d·scale)·l`, scales and levels small signed
//! integers, `d` a half float that the super-block shares.
//!
//! As in [`affine_super`](super::affine_super): every sub-block keeps its few best levels, a
//! formula gives their error under any `d`, and the best `d` go through rounds of rounding again.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::f16;

use super::super::simd::{LANES, Simd};
use super::super::{Effort, QK_K};
use super::scale::{Levels, Moments, extreme, indices, scale_error, scale_moments};
use super::{Batch, WORST, gather, inverse, nearest_half, put, sum};

/// What the search tries.
pub(in super::super) struct Search {
    /// The levels that the value of largest magnitude is scaled to, one try each; negative ones
    /// mean that the step has the sign of that value.
    tries: &'static [f32],
    /// How many of the levels tried a sub-block keeps, at most [`MOST_KEPT`].
    keep: usize,
    /// `d` relative to the one that gives the largest step the largest integer.
    starts: &'static [f32],
    /// How many of them are refined.
    finalists: usize,
    /// How far from the integers chosen others are looked at in every round of the refinement.
    reach: &'static [i8],
    /// Rounds of the refinement, at most.
    rounds: usize,
}

impl Search {
    /// A quick one.
    pub(in super::super) const fn normal(tries: &'static [f32]) -> Self {
        Self {
            tries,
            keep: 3,
            starts: &STARTS,
            finalists: 1,
            reach: &[0, -1, 1],
            rounds: 2,
        }
    }

    /// A long one.
    pub(in super::super) const fn high(tries: &'static [f32]) -> Self {
        Self {
            tries,
            keep: 6,
            starts: &MORE_STARTS,
            finalists: FINALISTS,
            reach: &[0, -1, 1, -2, 2, 3],
            rounds: 4,
        }
    }
}

/// A block type of this kind: 16 sub-blocks of 16.
pub(in super::super) trait ScaleSuper: Pod {
    /// Its levels.
    type Levels: Levels;
    /// Integer scales are `-LIMIT..LIMIT`.
    const LIMIT: f32;
    /// The lowest level, below zero.
    const BOTTOM: f32;

    /// What a quick search tries.
    const NORMAL: Search;
    /// What a long one tries.
    const HIGH: Search;

    /// The block; levels are counted from the lowest.
    fn pack(d: f16, scales: [i8; 16], levels: &[u8; QK_K]) -> Self;
}

/// Room for the levels that a sub-block keeps.
const MOST_KEPT: usize = 12;

/// Room for tries, and for the polish that follows them.
const MOST_TRIED: usize = 40;

/// Weights in a sub-block, and in how many vectors the sub-blocks are.
const N: usize = 16;
const G: usize = 2;

/// The best levels found for each lane, best first.
#[derive(Clone, Copy)]
struct Kept<V> {
    /// The best steps.
    step: [V; MOST_KEPT],
    moments: [Moments<V>; MOST_KEPT],
}

/// Integers for eight sub-blocks, as floats, and the errors under them (less `Σ w·x²` where a
/// formula gave them).
#[derive(Clone, Copy)]
struct Choice<V> {
    scale: V,
    error: V,
}

impl<V: Simd> Choice<V> {
    #[inline(always)]
    fn none() -> Self {
        Self {
            scale: V::zero(),
            error: V::splat(WORST),
        }
    }

    #[inline(always)]
    fn or(self, scale: V, error: V) -> Self {
        Self {
            scale: error.if_less(self.error, scale, self.scale),
            error: error.min(self.error),
        }
    }
}

/// Eight sub-blocks.
#[derive(Clone, Copy)]
struct Group<V> {
    x: [V; N],
    w: [V; N],
}

/// Encodes a row of whole blocks.
pub(in super::super) fn encode_row<B: ScaleSuper>(
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) {
    super::encode_row::<Batches<B>>(row, importance, effort, out);
}

/// A super-block at a time.
pub(super) struct Batches<B>(PhantomData<B>);

impl<B: ScaleSuper> Batch for Batches<B> {
    type Block = B;
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn encode<V: Simd, const WEIGHTED: bool>(
        values: &[f32; QK_K],
        importances: &[f32; QK_K],
        effort: Effort,
        out: &mut [u8],
    ) {
        let search = &match effort {
            Effort::Normal => B::NORMAL,
            Effort::High => B::HIGH,
        };
        let zero = V::zero();
        let mut groups = [Group {
            x: [zero; N],
            w: [zero; N],
        }; G];
        for (part, g) in groups.iter_mut().enumerate() {
            g.x = gather(values, part);
            if WEIGHTED {
                g.w = gather(importances, part);
            }
        }
        let kept = [
            try_levels::<B, V, WEIGHTED>(&groups[0], search),
            try_levels::<B, V, WEIGHTED>(&groups[1], search),
        ];
        let finalists = first_choice::<B, V>(&groups, &kept, search);
        let mut best = (finalists[0].1, [Choice::none(); G], f32::INFINITY);
        for &(_, start) in finalists.iter().take(search.finalists) {
            let found = refine::<B, V, WEIGHTED>(&groups, &kept, start, search);
            if found.2 < best.2 {
                best = found;
            }
        }
        let (d, choices, _) = best;
        let mut scales = [0; 16];
        for (c, scales) in choices.iter().zip(scales.as_chunks_mut::<LANES>().0) {
            *scales = c.scale.low_bytes().map(|b| b as i8);
        }
        let mut all = [0; QK_K];
        let subs = values.as_chunks::<N>().0.iter();
        for (b, (x, levels)) in subs.zip(all.as_chunks_mut::<N>().0).enumerate() {
            let inv = inverse(V::splat(d * f32::from(scales[b])));
            *levels = indices::<B::Levels, V, N>(x, inv);
        }
        put(&B::pack(f16::from_f32(d), scales, &all), out, 0);
    }
}

/// The best levels for each lane of `g`, without regard to its neighbours.
#[inline(always)]
fn try_levels<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    g: &Group<V>,
    search: &Search,
) -> Kept<V> {
    let zero = V::zero();
    let unit = inverse(extreme(&g.x));
    let tries = &search.tries[..search.tries.len().min(MOST_TRIED - 4)];
    let mut tried = [[[0.0; LANES]; 3]; MOST_TRIED];
    // Less Σ w·x². What each keeps is known by a number in the last bits of its error.
    let mut errors = [zero; MOST_KEPT];
    let (mut step, mut least, mut last) = (zero, zero, zero);
    let mut i = 0;
    while i < tries.len() + 1 {
        let mut inv = [inverse(step); 2];
        for (inv, t) in inv.iter_mut().zip(tries.iter().skip(i)) {
            *inv = unit * V::splat(*t);
        }
        for m in scale_moments::<F::Levels, V, N, WEIGHTED, 2>(&g.x, &g.w, inv) {
            i += 1;
            let s = m.xl * inverse(m.ll);
            let error = zero - s * m.xl;
            step = error.if_less(least, s, step);
            least = error.min(least);
            tried[i] = [s, m.xl, m.ll].map(V::store);
            // The same step as with the try before means the same levels again.
            let mut error = s.if_equal(last, zero, error.tagged(i as u8));
            last = s;
            for kept in &mut errors[..search.keep] {
                let old = *kept;
                *kept = error.min(old);
                error = error.max(old);
            }
        }
    }
    let none = Moments { xl: zero, ll: zero };
    let mut kept = Kept {
        step: [zero; MOST_KEPT],
        moments: [none; MOST_KEPT],
    };
    for (k, errors) in errors.iter().enumerate().take(search.keep) {
        let mut found = [[0.0; LANES]; 3];
        for (lane, tag) in errors.tags().into_iter().enumerate() {
            // Number 0 is that of nothing: a step of zero.
            for (f, t) in found.iter_mut().zip(&tried[usize::from(tag)]) {
                f[lane] = t[lane];
            }
        }
        kept.step[k] = V::load(&found[0]);
        kept.moments[k] = Moments {
            xl: V::load(&found[1]),
            ll: V::load(&found[2]),
        };
    }
    kept
}

/// The shared scales to refine, best first.
#[inline(always)]
fn first_choice<F: ScaleSuper, V: Simd>(
    groups: &[Group<V>; G],
    kept: &[Kept<V>; G],
    search: &Search,
) -> [(f32, f32); FINALISTS] {
    let (mut step, mut span) = (0.0f32, 0.0f32);
    for (g, kept) in groups.iter().zip(kept) {
        for s in kept.step[0].store() {
            step = if s.abs() > step.abs() { s } else { step };
        }
        for v in extreme(&g.x).store() {
            span = if v.abs() > span.abs() { v } else { span };
        }
    }
    let unit = step / -F::LIMIT;
    let span = span / (F::BOTTOM * -F::LIMIT);
    let mut finalists = [(f32::INFINITY, nearest_half::<V>(unit)); FINALISTS];
    for unit in [unit, span] {
        for start in search.starts {
            let d = nearest_half::<V>(unit * start);
            let mut candidate = (0.0, d);
            for kept in kept {
                candidate.0 += sum(choose::<F, V>(kept, d, search.keep).error);
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

/// Shared scales for a quick search.
const STARTS: [f32; 6] = [1.0, 1.015, 1.03, 1.05, 1.075, 0.97];

/// Shared scales for a long one.
const MORE_STARTS: [f32; 40] = {
    let mut out = [0.0; 40];
    let mut i = 0;
    while i < 40 {
        out[i] = 0.94 + 0.005 * i as f32;
        i += 1;
    }
    out
};

/// Room for the shared scales to be refined.
const FINALISTS: usize = 4;

/// The integers with which the kept levels err least.
#[inline(always)]
fn choose<F: ScaleSuper, V: Simd>(kept: &Kept<V>, d: f32, keep: usize) -> Choice<V> {
    let d = V::splat(d);
    let inv_d = inverse(d);
    let mut best = Choice::none();
    for k in 0..keep {
        let scale = (kept.step[k] * inv_d).round_to(-F::LIMIT, F::LIMIT - 1.0);
        let step = d * scale;
        best = best.or(
            scale,
            step * (step * kept.moments[k].ll - V::splat(2.0) * kept.moments[k].xl),
        );
    }
    best
}

/// Rounds of integer choice with new levels, and least squares for the shared scale.
#[inline(always)]
fn refine<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    groups: &[Group<V>; G],
    kept: &[Kept<V>; G],
    start: f32,
    search: &Search,
) -> (f32, [Choice<V>; G], f32) {
    let mut best = (start, [Choice::none(); G], f32::INFINITY);
    let mut shared = start;
    let mut choices = [Choice::none(); G];
    for g in 0..G {
        choices[g] = choose::<F, V>(&kept[g], shared, search.keep);
    }
    for _ in 0..search.rounds {
        let d = V::splat(shared);
        let mut total = 0.0;
        for g in 0..G {
            let Group { x, w } = &groups[g];
            let centre = choices[g].scale;
            let mut chosen = Choice::none();
            for &reach in search.reach.as_chunks::<3>().0 {
                let (mut near, mut steps) = ([centre; 3], [d; 3]);
                for i in 0..3 {
                    let away = V::splat(f32::from(reach[i]));
                    near[i] = (centre + away).round_to(-F::LIMIT, F::LIMIT - 1.0);
                    steps[i] = d * near[i];
                }
                let errors = scale_error::<F::Levels, V, N, WEIGHTED, 3>(x, w, steps);
                for i in 0..3 {
                    chosen = chosen.or(near[i], errors[i]);
                }
            }
            choices[g] = chosen;
            total += sum(chosen.error);
        }
        if total >= best.2 {
            break;
        }
        best = (shared, choices, total);
        let next = refit::<F, V, WEIGHTED>(groups, shared, &choices);
        if next == shared {
            break;
        }
        shared = next;
    }
    best
}

/// Least squares for the shared scale with all integers held.
#[inline(always)]
fn refit<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    groups: &[Group<V>; G],
    shared: f32,
    choices: &[Choice<V>; G],
) -> f32 {
    let d = V::splat(shared);
    let (mut xa, mut aa) = (0.0f64, 0.0f64);
    for (g, c) in groups.iter().zip(choices) {
        let inv = [inverse(d * c.scale)];
        let [m] = scale_moments::<F::Levels, V, N, WEIGHTED, 1>(&g.x, &g.w, inv);
        let (xl, ll, scale) = (m.xl.store(), m.ll.store(), c.scale.store());
        for lane in 0..LANES {
            let s = f64::from(scale[lane]);
            xa += s * f64::from(xl[lane]);
            aa += s * s * f64::from(ll[lane]);
        }
    }
    if aa > 0.0 {
        nearest_half::<V>((xa / aa) as f32)
    } else {
        shared
    }
}
