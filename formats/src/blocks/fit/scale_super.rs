//! K-quant super-blocks with steps alone: `x ≈ (d·scale)·l`, scales and levels small signed
//! integers, `d` a half float that the super-block shares.
//!
//! As in [`affine_super`](super::affine_super): every sub-block keeps its few best levels, a
//! formula gives their error under any `d`, and the best `d` go through rounds of rounding again.

use bytemuck::Pod;
use half::f16;

use super::super::half_scale::saturate;
use super::super::simd::{LANES, Simd};
use super::super::{Effort, QK_K};
use super::scale::{Levels, extreme, indices, scale_error, scale_moments};
use super::{WORST, gather, inverse, put};

/// What the search tries.
pub(in super::super) struct Search {
    /// The levels that the value of largest magnitude is scaled to, one try each; negative ones
    /// mean that the step has the sign of that value.
    pub(in super::super) tries: &'static [f32],
    /// How many of the levels tried a sub-block keeps, at most [`MOST_KEPT`].
    pub(in super::super) keep: usize,
    /// `d` relative to the one that gives the largest step the largest integer.
    pub(in super::super) starts: &'static [f32],
    /// How many of them are refined.
    pub(in super::super) finalists: usize,
    /// How far from the integers chosen others are looked at in every round of the refinement.
    pub(in super::super) reach: &'static [i8],
    /// Whether the integers of the other sign are looked at too.
    pub(in super::super) mirror: bool,
}

/// A block type of this kind: 16 sub-blocks of 16.
pub(in super::super) trait ScaleSuper: Pod {
    /// Its levels.
    type Levels: Levels;
    /// Integer scales are `-LIMIT..LIMIT`.
    const LIMIT: f32;
    /// The lowest level, below zero.
    const BOTTOM: f32;

    fn search(effort: Effort) -> &'static Search;

    /// The block; levels are counted from the lowest.
    fn pack(d: f16, scales: [i8; 16], levels: &[u8; QK_K]) -> Self;
}

/// Room for the levels that a sub-block keeps.
pub(in super::super) const MOST_KEPT: usize = 16;

/// Weights in a sub-block, and in how many vectors the sub-blocks are.
const N: usize = 16;
const G: usize = 2;

/// The best levels found for each lane, best first.
struct Kept<V> {
    /// The best step.
    step: [V; MOST_KEPT],
    /// How much of `Σ w·x²` that explains.
    gain: [V; MOST_KEPT],
    xl: [V; MOST_KEPT],
    ll: [V; MOST_KEPT],
}

impl<V: Simd> Kept<V> {
    #[inline(always)]
    fn insert(&mut self, xl: V, ll: V, keep: usize) {
        let (mut xl, mut ll) = (xl, ll);
        let mut step = xl * inverse(ll);
        let mut gain = step * xl;
        for kept in &self.step[..keep] {
            // The same step means the same levels again.
            gain = step.if_equal(*kept, V::zero(), gain);
        }
        for k in 0..keep {
            let (old_step, old_gain) = (self.step[k], self.gain[k]);
            let (old_xl, old_ll) = (self.xl[k], self.ll[k]);
            self.step[k] = old_gain.if_less(gain, step, old_step);
            self.gain[k] = old_gain.max(gain);
            self.xl[k] = old_gain.if_less(gain, xl, old_xl);
            self.ll[k] = old_gain.if_less(gain, ll, old_ll);
            step = old_gain.if_less(gain, old_step, step);
            xl = old_gain.if_less(gain, old_xl, xl);
            ll = old_gain.if_less(gain, old_ll, ll);
            gain = old_gain.min(gain);
        }
    }
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

/// Encodes a super-block.
#[inline(always)]
pub(in super::super) fn encode<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    values: &[f32; QK_K],
    importances: &[f32; QK_K],
    effort: Effort,
    out: &mut [u8],
) {
    let search = F::search(effort);
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
        try_levels::<F, V, WEIGHTED>(&groups[0], search),
        try_levels::<F, V, WEIGHTED>(&groups[1], search),
    ];
    let finalists = first_choice::<F, V>(&groups, &kept, search);
    let mut best = (finalists[0].1, [Choice::none(); G], f32::INFINITY);
    for &(_, start) in finalists.iter().take(search.finalists) {
        let found = refine::<F, V, WEIGHTED>(&groups, &kept, start, search);
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
        let inv = inverse(V::splat(d.to_f32() * f32::from(scales[b])));
        *levels = indices::<F::Levels, V, N>(x, inv);
    }
    put(&F::pack(d, scales, &all), out, 0);
}

/// The best levels for each lane of `g`, without regard to its neighbours.
#[inline(always)]
fn try_levels<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    g: &Group<V>,
    search: &Search,
) -> Kept<V> {
    let none = [V::zero(); MOST_KEPT];
    let mut kept = Kept {
        step: none,
        gain: none,
        xl: none,
        ll: none,
    };
    let unit = inverse(extreme(&g.x));
    for i in 0..search.tries.len() + 2 {
        let inv = match search.tries.get(i) {
            Some(t) => unit * V::splat(*t),
            None => inverse(kept.step[0]),
        };
        let [xl, ll] = scale_moments::<F::Levels, V, N, WEIGHTED>(&g.x, &g.w, inv);
        kept.insert(xl, ll, search.keep);
    }
    kept
}

/// The shared scales to refine, best first.
#[inline(always)]
fn first_choice<F: ScaleSuper, V: Simd>(
    groups: &[Group<V>; G],
    kept: &[Kept<V>; G],
    search: &Search,
) -> [(f32, f16); FINALISTS] {
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
    let mut finalists = [(f32::INFINITY, saturate(unit)); FINALISTS];
    for unit in [unit, span] {
        for start in search.starts {
            let d = saturate(unit * start);
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

/// Room for the shared scales to be refined.
const FINALISTS: usize = 4;

/// The integers with which the kept levels err least.
#[inline(always)]
fn choose<F: ScaleSuper, V: Simd>(kept: &Kept<V>, d: f16, keep: usize) -> Choice<V> {
    let d = V::splat(d.to_f32());
    let inv_d = inverse(d);
    let mut best = Choice::none();
    for k in 0..keep {
        let scale = (kept.step[k] * inv_d).round_to(-F::LIMIT, F::LIMIT - 1.0);
        let step = d * scale;
        best = best.or(
            scale,
            step * (step * kept.ll[k] - V::splat(2.0) * kept.xl[k]),
        );
    }
    best
}

/// Rounds of integer choice with new levels, and least squares for the shared scale.
#[inline(always)]
fn refine<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    groups: &[Group<V>; G],
    kept: &[Kept<V>; G],
    start: f16,
    search: &Search,
) -> (f16, [Choice<V>; G], f32) {
    let mut best = (start, [Choice::none(); G], f32::INFINITY);
    let mut shared = start;
    let mut choices = [Choice::none(); G];
    for g in 0..G {
        choices[g] = choose::<F, V>(&kept[g], shared, search.keep);
    }
    for _ in 0..ROUNDS {
        let d = V::splat(shared.to_f32());
        let mut total = 0.0;
        for g in 0..G {
            let Group { x, w } = &groups[g];
            let centre = choices[g].scale;
            let mut chosen = Choice::none();
            for &away in search.reach {
                let scale =
                    (centre + V::splat(f32::from(away))).round_to(-F::LIMIT, F::LIMIT - 1.0);
                let s = d * scale;
                chosen = chosen.or(
                    scale,
                    scale_error::<F::Levels, V, N, WEIGHTED>(x, w, s, inverse(s)),
                );
                if search.mirror {
                    let scale = (V::zero() - scale).round_to(-F::LIMIT, F::LIMIT - 1.0);
                    let s = d * scale;
                    chosen = chosen.or(
                        scale,
                        scale_error::<F::Levels, V, N, WEIGHTED>(x, w, s, inverse(s)),
                    );
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

/// Rounds of the refinement, at most.
const ROUNDS: usize = 4;

/// Least squares for the shared scale with all integers held.
#[inline(always)]
fn refit<F: ScaleSuper, V: Simd, const WEIGHTED: bool>(
    groups: &[Group<V>; G],
    shared: f16,
    choices: &[Choice<V>; G],
) -> f16 {
    let d = V::splat(shared.to_f32());
    let (mut xa, mut aa) = (0.0f64, 0.0f64);
    for (g, c) in groups.iter().zip(choices) {
        let [xl, ll] = scale_moments::<F::Levels, V, N, WEIGHTED>(&g.x, &g.w, inverse(d * c.scale));
        let (xl, ll, scale) = (xl.store(), ll.store(), c.scale.store());
        for lane in 0..LANES {
            let s = f64::from(scale[lane]);
            xa += s * f64::from(xl[lane]);
            aa += s * s * f64::from(ll[lane]);
        }
    }
    if aa > 0.0 {
        saturate((xa / aa) as f32)
    } else {
        shared
    }
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
