//! Groups with a step and an offset, `x ≈ s·l + o`; blocks of 32 weights that store both as half
//! floats.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::f16;

use super::super::simd::{LANES, Simd};
use super::super::{Effort, QK_K};
use super::{Batch, WORST, gather, half_neighbour, inverse, put};

/// Eight groups, as deviations from their means: sums over them lose nothing to a large common
/// offset. All offsets here are relative to the mean too.
#[derive(Clone, Copy)]
pub(super) struct Group<V, const N: usize> {
    /// The deviations.
    pub(super) dev: [V; N],
    w: [V; N],
    /// Σ w.
    pub(super) sw: V,
    /// Σ w·x / Σ w.
    pub(super) mean: V,
    /// Σ w·dev².
    pub(super) total: V,
    /// Where the levels would start, and how far they would reach, without trimming.
    pub(super) low: V,
    pub(super) width: V,
    /// How far the start may move: `width`, but 0 where the levels start at zero because no
    /// weight is below it.
    pub(super) play: V,
}

/// What least squares needs to know of the levels of a group.
#[derive(Clone, Copy)]
pub(super) struct Moments<V> {
    /// Σ w·l.
    pub(super) l: V,
    /// Σ w·l².
    pub(super) ll: V,
    /// Σ w·l·dev.
    pub(super) xl: V,
}

impl<V: Simd> Moments<V> {
    #[inline(always)]
    pub(super) fn none() -> Self {
        Self {
            l: V::zero(),
            ll: V::zero(),
            xl: V::zero(),
        }
    }
}

/// A step, an offset, and the error that remains.
#[derive(Clone, Copy)]
pub(super) struct Fit<V> {
    pub(super) scale: V,
    pub(super) offset: V,
    pub(super) error: V,
}

impl<V: Simd, const N: usize> Group<V, N> {
    /// Room for groups.
    #[inline(always)]
    pub(super) fn none() -> Self {
        let zero = V::zero();
        Self {
            dev: [zero; N],
            w: [zero; N],
            sw: zero,
            mean: zero,
            total: zero,
            low: zero,
            width: zero,
            play: zero,
        }
    }

    /// Groups of `x`. With `SINK` levels start at or below zero, as the K-quants store it.
    #[inline(always)]
    pub(super) fn new<const WEIGHTED: bool, const SINK: bool>(x: &[V; N], w: &[V; N]) -> Self {
        let (mut sw, mut swx) = (V::zero(), V::zero());
        let (mut low, mut high) = (x[0], x[0]);
        for i in 0..N {
            low = x[i].min(low);
            high = x[i].max(high);
            if WEIGHTED {
                sw = sw + w[i];
                swx = swx + w[i] * x[i];
            } else {
                swx = swx + x[i];
            }
        }
        if !WEIGHTED {
            sw = V::splat(N as f32);
        }
        let mut grounded = low;
        if SINK {
            low = low.min(V::zero());
        } else {
            grounded = V::splat(-1.0);
        }
        let mean = swx / sw;
        let mut dev = *x;
        let mut total = V::zero();
        for i in 0..N {
            dev[i] = x[i] - mean;
            let square = dev[i] * dev[i];
            total = total + if WEIGHTED { w[i] * square } else { square };
        }
        Self {
            dev,
            w: *w,
            sw,
            mean,
            total,
            low: low - mean,
            width: high - low,
            play: grounded.if_less(V::zero(), high - low, V::zero()),
        }
    }

    /// The sums over levels `0..=top` of `(dev − offset)·inv`, for several pairs of them.
    #[inline(always)]
    pub(super) fn moments<const WEIGHTED: bool, const C: usize>(
        &self,
        offset: [V; C],
        inv: [V; C],
        top: f32,
    ) -> [Moments<V>; C] {
        let mut sums = [Moments::none(); C];
        for i in 0..N {
            let x = self.dev[i];
            for c in 0..C {
                let l = ((x - offset[c]) * inv[c]).round_to(0.0, top);
                let wl = if WEIGHTED { self.w[i] * l } else { l };
                sums[c].l = sums[c].l + wl;
                sums[c].ll = sums[c].ll + wl * l;
                sums[c].xl = sums[c].xl + wl * x;
            }
        }
        sums
    }

    /// `Σ w·(dev − s·l − offset)²` with the best levels for exactly this step and offset.
    #[inline(always)]
    pub(super) fn error<const WEIGHTED: bool, const C: usize>(
        &self,
        offset: [V; C],
        scale: [V; C],
        top: f32,
    ) -> [V; C] {
        let mut inv = scale;
        let mut e = [V::zero(); C];
        for c in 0..C {
            inv[c] = inverse(scale[c]);
        }
        for i in 0..N {
            for c in 0..C {
                let above = self.dev[i] - offset[c];
                let miss = above - scale[c] * (above * inv[c]).round_to(0.0, top);
                let square = miss * miss;
                e[c] = e[c] + if WEIGHTED { self.w[i] * square } else { square };
            }
        }
        e
    }

    /// The best step and offset for levels with these sums; the offset stays at or below
    /// `ceiling`. The error is [`WORST`] when no positive step helps.
    #[inline(always)]
    pub(super) fn fit(&self, m: &Moments<V>, ceiling: V) -> Fit<V> {
        let spread = self.sw * m.ll - m.l * m.l;
        let free = self.sw * m.xl * inverse(spread);
        let ideal = V::zero() - free * m.l / self.sw;
        let offset = ideal.min(ceiling);
        // With the offset held, the deviations above it are a matter of the step alone.
        let above = m.xl - offset * m.l;
        let held = above * inverse(m.ll);
        let held_error = self.total + offset * offset * self.sw - held * above;
        let scale = ceiling.if_less(ideal, held, free);
        let worst = V::splat(WORST);
        let free_error = V::zero().if_less(spread, self.total - free * m.xl, worst);
        let error = ceiling.if_less(ideal, held_error, free_error);
        Fit {
            scale,
            offset,
            error: V::zero().if_less(scale, error, worst),
        }
    }
}

/// A block type of this kind.
pub(in super::super) trait AffineBlock: Pod {
    /// The highest level.
    const TOP: f32;

    /// Parts of the range cut off at the lower and the upper end, one try each.
    fn trims(effort: Effort) -> &'static [(f32, f32)];

    /// The block of a step, an offset and the levels.
    fn pack(d: f16, m: f16, levels: &[u8; 32]) -> Self;
}

/// Tries of a long search.
pub(in super::super) const MANY: usize = SIDE * SIDE;
const SIDE: usize = 14;

/// Every trimming of both ends from `least` to `most`, in even steps.
pub(in super::super) const fn grid(least: f32, most: f32) -> [(f32, f32); MANY] {
    let mut out = [(0.0, 0.0); MANY];
    let step = (most - least) / (SIDE - 1) as f32;
    let mut i = 0;
    while i < MANY {
        let (below, above) = ((i / SIDE) as f32, (i % SIDE) as f32);
        out[i] = (least + step * below, least + step * above);
        i += 1;
    }
    out
}

/// Encodes a row of whole blocks.
pub(in super::super) fn encode_row<B: AffineBlock>(
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) {
    super::encode_row::<Batches<B>>(row, importance, effort, out);
}

/// Eight blocks at a time.
pub(super) struct Batches<B>(PhantomData<B>);

impl<B: AffineBlock> Batch for Batches<B> {
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
        let g = Group::<V, 32>::new::<WEIGHTED, false>(&x, &w);
        let top = B::TOP;
        let ceiling = V::splat(f32::MAX);
        let mut best = Fit {
            scale: V::zero(),
            offset: V::zero(),
            error: V::splat(WORST),
        };
        let trims = B::trims(effort);
        for i in 0..trims.len() + 2 {
            let (offset, inv) = match trims.get(i) {
                Some(&(below, above)) => (
                    g.low + g.play * V::splat(below),
                    inverse(g.width) * V::splat(top / (1.0 - below - above)),
                ),
                None => (best.offset, inverse(best.scale)),
            };
            let fit = g.fit(&g.moments::<WEIGHTED, 1>([offset], [inv], top)[0], ceiling);
            best.scale = fit.error.if_less(best.error, fit.scale, best.scale);
            best.offset = fit.error.if_less(best.error, fit.offset, best.offset);
            best.error = fit.error.min(best.error);
        }
        let (mut d, mut m, mut least) = (V::zero(), V::zero(), V::splat(WORST));
        // The offset is fitted again because the rounded step moved every level.
        for step in [0, -1, 1] {
            let scale = half_neighbour(best.scale, step);
            let [sums] = g.moments::<WEIGHTED, 1>([best.offset], [inverse(scale)], top);
            let ideal = g.mean - scale * sums.l / g.sw;
            for step in [0, -1, 1] {
                let offset = half_neighbour(ideal, step);
                let [e] = g.error::<WEIGHTED, 1>([offset - g.mean], [scale], top);
                d = e.if_less(least, scale, d);
                m = e.if_less(least, offset, m);
                least = e.min(least);
            }
        }
        // The plain range, which is exact for few values.
        let scale = (g.width * V::splat(1.0 / top)).to_half();
        let offset = (g.low + g.mean).to_half();
        let [e] = g.error::<WEIGHTED, 1>([offset - g.mean], [scale], top);
        let scales = e.if_less(least, scale, d);
        let offsets = e.if_less(least, offset, m);
        let (d, m) = (scales.half_bits(), offsets.half_bits());
        let (scales, offsets) = (scales.store(), offsets.store());
        for (lane, x) in values.as_chunks::<32>().0.iter().enumerate().take(LANES) {
            let levels = levels::<V, 32>(x, scales[lane], offsets[lane], top);
            let block = B::pack(f16::from_bits(d[lane]), f16::from_bits(m[lane]), &levels);
            put(&block, out, lane);
        }
    }
}

/// The levels `0..=top` nearest to `(x − offset)/scale`.
#[inline(always)]
pub(super) fn levels<V: Simd, const N: usize>(
    x: &[f32; N],
    scale: f32,
    offset: f32,
    top: f32,
) -> [u8; N] {
    let (inv, offset) = (inverse(V::splat(scale)), V::splat(offset));
    let mut out = [0; N];
    for (l, x) in out
        .as_chunks_mut::<LANES>()
        .0
        .iter_mut()
        .zip(x.as_chunks().0)
    {
        *l = ((V::load(x) - offset) * inv).round_to(0.0, top).low_bytes();
    }
    out
}
