//! Scales of a K-quant super-block: `B` sub-blocks of `N` weights whose own scales are small
//! integers times one half float.
//!
//! First every sub-block gets its best real-valued scale. Then, for a few choices of the shared
//! half float, every sub-block takes the integer scale that errs least *with its weights rounded
//! again under exactly that scale*, and least squares over the whole super-block moves the
//! shared half float to where it fits these integers best.

use std::ops::RangeInclusive;

use half::f16;

use super::half_scale::saturate;
use super::lanes::{Lanes, sums};
use super::search::{
    Affine, affine_error, fit_affine, fit_scale, inverse, range, refit_offset, scale_error,
};

/// `x ≈ (d·scale)·l − (dmin·min)` for the sub-block's `scale` and `min`.
pub(super) struct AffineSuper<const B: usize> {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; B],
    pub(super) mins: [u8; B],
}

impl<const B: usize> AffineSuper<B> {
    /// The step and offset a decoder will see in sub-block `b`.
    pub(super) fn effective(&self, b: usize) -> Affine {
        stored(
            self.d.to_f32(),
            self.dmin.to_f32(),
            self.scales[b],
            self.mins[b],
        )
    }

    /// The levels of sub-block `b`, each `0..=top`.
    pub(super) fn levels<const N: usize>(&self, b: usize, x: &[f32; N], top: f32) -> [u8; N] {
        self.effective(b).levels(x, top).map(|l| l as u8)
    }
}

#[inline]
fn stored(d: f32, dmin: f32, scale: u8, min: u8) -> Affine {
    Affine {
        scale: d * f32::from(scale),
        offset: -(dmin * f32::from(min)),
    }
}

/// Shared scales to start from, relative to the one that maps the largest to the top integer: each
/// lays another grid over the sub-blocks' scales.
const STARTS: [f32; 5] = [1.0, 1.033, 1.07, 1.12, 0.94];

/// Further starts, relative to the scale with which the levels just span the largest values. A
/// nearly empty sub-block may fit best with few, large levels; these keep it from leaving a coarse
/// grid to the others.
const SPANNING: [f32; 2] = [1.0, 1.1];

/// Integers over more than this resolve a sub-block's scale well enough to try few.
const FINE: f32 = 32.0;

/// Rounds of least squares and integer choice from the best start.
const ROUNDS: usize = 3;

/// Best scales for levels `0..=top` and integers `0..=limit` (for scales and minima).
pub(super) fn fit_affine_super<const B: usize, const N: usize>(
    x: &[[f32; N]; B],
    w: &[[f32; N]; B],
    top: f32,
    limit: f32,
    trims: &[f32],
) -> AffineSuper<B> {
    let fits: [Affine; B] = std::array::from_fn(|b| fit_affine(&x[b], &w[b], top, trims, true));
    let scale = fits.iter().fold(0.0f32, |a, f| a.max(f.scale)) / limit;
    let min = fits.iter().fold(0.0f32, |a, f| a.max(-f.offset)) / limit;
    let mut best = AffineSuper {
        d: f16::ZERO,
        dmin: f16::ZERO,
        scales: [0; B],
        mins: [0; B],
    };
    let mut least = f32::INFINITY;
    let span = x.iter().fold(0.0f32, |a, x| {
        let (low, high) = range(x);
        a.max(high - low.min(0.0))
    });
    let span = span / (top * limit);
    let starts = STARTS.iter().map(|s| s * scale);
    for start in starts.chain(SPANNING.iter().map(|s| s * span)) {
        let (d, dmin) = (saturate(start), saturate(min));
        let (found, error) = choose_affine(x, w, &fits, d, dmin, top, limit);
        if error < least {
            (best, least) = (found, error);
        }
    }
    for _ in 0..ROUNDS {
        let (d, dmin) = refit_affine_super(x, w, &best, top);
        let (found, error) = choose_affine(x, w, &fits, d, dmin, top, limit);
        if error >= least {
            break;
        }
        (best, least) = (found, error);
    }
    best
}

/// The two integers around `v` within `0..=limit`.
#[inline]
fn around(v: f32, limit: f32) -> RangeInclusive<u8> {
    // The cast takes the whole part; nothing here is negative.
    let low = v.min(limit) as u8;
    low..=(f32::from(low) + 1.0).min(limit) as u8
}

/// The integer scales and minima near the ideal ones that err least under `d` and `dmin`.
fn choose_affine<const B: usize, const N: usize>(
    x: &[[f32; N]; B],
    w: &[[f32; N]; B],
    fits: &[Affine; B],
    d: f16,
    dmin: f16,
    top: f32,
    limit: f32,
) -> (AffineSuper<B>, f32) {
    let mut out = AffineSuper {
        d,
        dmin,
        scales: [0; B],
        mins: [0; B],
    };
    let mut total = 0.0;
    let (d, dmin) = (d.to_f32(), dmin.to_f32());
    let (inv_d, inv_dmin) = (inverse(d), inverse(dmin));
    for b in 0..B {
        let mut best = f32::INFINITY;
        for scale in around(fits[b].scale * inv_d, limit) {
            // The minimum follows the step that was really chosen, not the ideal one.
            let ideal = Affine {
                scale: d * f32::from(scale),
                offset: fits[b].offset,
            };
            let offset = refit_offset(&x[b], &w[b], ideal, top).min(0.0);
            for min in around(-offset * inv_dmin, limit) {
                let e = affine_error(&x[b], &w[b], stored(d, dmin, scale, min), top);
                if e < best {
                    best = e;
                    (out.scales[b], out.mins[b]) = (scale, min);
                }
            }
        }
        total += best;
    }
    (out, total)
}

/// Least squares for `d` and `dmin` with all integers fixed.
fn refit_affine_super<const B: usize, const N: usize>(
    x: &[[f32; N]; B],
    w: &[[f32; N]; B],
    fit: &AffineSuper<B>,
    top: f32,
) -> (f16, f16) {
    let (mut aa, mut ac, mut cc, mut xa, mut xc) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for b in 0..B {
        let (s, m) = (f64::from(fit.scales[b]), f64::from(fit.mins[b]));
        let effective = fit.effective(b);
        let offset = Lanes::splat(effective.offset);
        let inv = Lanes::splat(inverse(effective.scale));
        let [sw, sl, sll, sx, sxl] = sums(&x[b], &w[b], |x, w| {
            let l = ((x - offset) * inv).round_to(0.0, top);
            let wl = w * l;
            [w, wl, wl * l, w * x, wl * x]
        });
        aa += s * s * f64::from(sll);
        ac -= s * m * f64::from(sl);
        cc += m * m * f64::from(sw);
        xa += s * f64::from(sxl);
        xc -= m * f64::from(sx);
    }
    let det = aa * cc - ac * ac;
    if det > 1e-9 * aa * cc {
        let d = (xa * cc - xc * ac) / det;
        let dmin = (xc * aa - xa * ac) / det;
        if d > 0.0 && dmin >= 0.0 {
            return (saturate(d as f32), saturate(dmin as f32));
        }
    } else if cc == 0.0 && aa > 0.0 && xa > 0.0 {
        return (saturate((xa / aa) as f32), fit.dmin);
    }
    (fit.d, fit.dmin)
}

/// `x ≈ (d·scale)·l` with signed `scale` and `l`.
pub(super) struct ScaleSuper<const B: usize> {
    pub(super) d: f16,
    pub(super) scales: [i8; B],
}

impl<const B: usize> ScaleSuper<B> {
    /// The step a decoder will see in sub-block `b`.
    pub(super) fn effective(&self, b: usize) -> f32 {
        self.d.to_f32() * f32::from(self.scales[b])
    }
}

/// Best scales for integers `-limit..limit` and levels given by `snap`, the lowest of which is
/// `bottom`; `tries` as in [`fit_scale`].
pub(super) fn fit_scale_super<const B: usize, const N: usize>(
    x: &[[f32; N]; B],
    w: &[[f32; N]; B],
    limit: f32,
    bottom: f32,
    tries: &[f32],
    snap: impl Fn(Lanes) -> Lanes + Copy,
) -> ScaleSuper<B> {
    let fits: [f32; B] = std::array::from_fn(|b| fit_scale(&x[b], &w[b], tries, snap));
    let largest = fits
        .iter()
        .fold(0.0f32, |a, &b| if b.abs() > a.abs() { b } else { a });
    let mut best = ScaleSuper {
        d: f16::ZERO,
        scales: [0; B],
    };
    let mut least = f32::INFINITY;
    let span = x
        .iter()
        .flatten()
        .fold(0.0f32, |a, &v| if v.abs() > a.abs() { v } else { a });
    let (unit, span) = (largest / -limit, span / (bottom * -limit));
    let sparse = limit <= FINE && unit.abs() > 1.5 * span.abs();
    let starts = STARTS.iter().map(|s| s * unit);
    for start in starts.chain(SPANNING.iter().map(|s| s * span)) {
        let d = saturate(start);
        let (scales, error) = choose_scales(x, w, &fits, d, limit, sparse, snap);
        if error < least {
            (best, least) = (ScaleSuper { d, scales }, error);
        }
    }
    for _ in 0..ROUNDS {
        let d = refit_scale_super(x, w, &best, snap);
        let (scales, error) = choose_scales(x, w, &fits, d, limit, sparse, snap);
        if error >= least {
            break;
        }
        (best, least) = (ScaleSuper { d, scales }, error);
    }
    best
}

/// The integer scales that err least under `d`: near the ideal ones, or among all of them when
/// `every` is set (a sub-block of a few values has good scales far apart).
fn choose_scales<const B: usize, const N: usize>(
    x: &[[f32; N]; B],
    w: &[[f32; N]; B],
    fits: &[f32; B],
    d: f16,
    limit: f32,
    every: bool,
    snap: impl Fn(Lanes) -> Lanes + Copy,
) -> ([i8; B], f32) {
    let d = d.to_f32();
    let inv = inverse(d);
    let mut scales = [0i8; B];
    let mut total = 0.0;
    for b in 0..B {
        let middle = (fits[b] * inv).round();
        let mut best = f32::INFINITY;
        let mut consider = |scale: f32| {
            let scale = scale.clamp(-limit, limit - 1.0);
            let e = scale_error(&x[b], &w[b], d * scale, snap);
            if e < best {
                best = e;
                scales[b] = scale as i8;
            }
        };
        for step in [0.0, -1.0, 1.0] {
            consider(middle + step);
            // Under coarse integers the ideal sign may not be the best any more.
            if limit <= FINE {
                consider(-middle + step);
            }
        }
        if every {
            for scale in 0..limit as i16 {
                consider(f32::from(scale));
                consider(f32::from(!scale));
            }
        }
        total += best;
    }
    (scales, total)
}

/// Least squares for `d` with all integers fixed.
fn refit_scale_super<const B: usize, const N: usize>(
    x: &[[f32; N]; B],
    w: &[[f32; N]; B],
    fit: &ScaleSuper<B>,
    snap: impl Fn(Lanes) -> Lanes,
) -> f16 {
    let (mut xa, mut aa) = (0.0f64, 0.0f64);
    for b in 0..B {
        let inv = Lanes::splat(inverse(fit.effective(b)));
        let [sxl, sll] = sums(&x[b], &w[b], |x, w| {
            let l = snap(x * inv);
            let wl = w * l;
            [wl * x, wl * l]
        });
        let s = f64::from(fit.scales[b]);
        xa += s * f64::from(sxl);
        aa += s * s * f64::from(sll);
    }
    if aa > 0.0 {
        saturate((xa / aa) as f32)
    } else {
        fit.d
    }
}
