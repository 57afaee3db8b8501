//! The search for the best scales of one group of weights.
//!
//! A group of `N` weights `x` is stored as small integers `l` (*levels*) with `x ≈ s·l`
//! ([`fit_scale`]) or `x ≈ s·l + o` ([`fit_affine`]). Both minimise the weighted squared error
//! `Σ w·(x − x̂)²`: many candidate steps are tried; for each, rounding gives the levels and least
//! squares gives the best step for those levels; the winner is polished by repeating the two
//! until nothing improves.
//!
//! Inputs are finite, moderate in size and the weights positive: [`sanitise`] sees to that.

use super::lanes::{Lanes, map, sums};

/// Larger magnitudes than any quantised type can hold; squares of it stay finite in `f32`.
const MAX_MAGNITUDE: f32 = 1e9;

/// Importance of a weight relative to the most important of its block, at the least. Keeps the
/// least squares defined where a calibration saw no activity.
const MIN_RELATIVE_IMPORTANCE: f32 = 1e-6;

/// Replaces what cannot be quantised: NaN by 0, infinities and magnitudes over 1e9 by ±1e9.
/// Importances are scaled to at most 1; negative or non-finite ones count as 0, and all of them
/// are 1 when none is positive.
pub(super) fn sanitise<const N: usize>(
    x: &[f32; N],
    importance: Option<&[f32; N]>,
) -> ([f32; N], [f32; N]) {
    let values = x.map(|v| {
        if v.is_nan() {
            0.0
        } else {
            v.clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE)
        }
    });
    let Some(importance) = importance else {
        return (values, [1.0; N]);
    };
    let clean = importance.map(|w| if w.is_finite() && w > 0.0 { w } else { 0.0 });
    let largest = clean.iter().fold(0.0f32, |a, &b| a.max(b));
    if largest == 0.0 {
        return (values, [1.0; N]);
    }
    // Division, not a reciprocal: 1/w overflows for subnormal importances.
    (
        values,
        clean.map(|w| (w / largest).max(MIN_RELATIVE_IMPORTANCE)),
    )
}

/// `1/s`, or 0 for a step of 0 (whose levels do not matter).
#[inline]
pub(super) fn inverse(s: f32) -> f32 {
    if s == 0.0 { 0.0 } else { 1.0 / s }
}

/// `Σ w·(x − s·l)²` with `l = snap(x/s)`.
#[inline]
pub(super) fn scale_error<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    s: f32,
    snap: impl Fn(Lanes) -> Lanes,
) -> f32 {
    let (inv, s) = (Lanes::splat(inverse(s)), Lanes::splat(s));
    let [e] = sums(x, w, |x, w| {
        let miss = x - s * snap(x * inv);
        [w * miss * miss]
    });
    e
}

/// The step `s` that minimises `Σ w·(x − s·l)²`, `l = snap(x/s)`; 0 for a group of zeros.
///
/// `tries` are the levels (in `snap`'s units) that the largest magnitude is scaled to; every one
/// is tried with both signs, since a range of levels may be longer on one side.
#[inline]
pub(super) fn fit_scale<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    tries: &[f32],
    snap: impl Fn(Lanes) -> Lanes,
) -> f32 {
    let largest = x.iter().fold(0.0f32, |a, &b| a.max(b.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let moments = |inv: f32| {
        let inv = Lanes::splat(inv);
        sums(x, w, |x, w| {
            let l = snap(x * inv);
            let wl = w * l;
            [wl * x, wl * l]
        })
    };
    // Least squares over the levels explains xl²/ll of Σ w·x²: the more the better.
    let (mut best, mut scale) = (0.0f32, 0.0f32);
    let unit = 1.0 / largest;
    for &t in tries {
        for inv in [t * unit, -t * unit] {
            let [xl, ll] = moments(inv);
            if ll > 0.0 && xl * xl > best * ll {
                best = xl * xl / ll;
                scale = xl / ll;
            }
        }
    }
    for _ in 0..POLISH {
        let [xl, ll] = moments(inverse(scale));
        if ll > 0.0 && xl * xl > best * ll {
            best = xl * xl / ll;
            scale = xl / ll;
        } else {
            break;
        }
    }
    scale
}

/// Rounds of rounding and least squares after the best candidate is known.
const POLISH: usize = 3;

/// `x ≈ scale·l + offset`, `scale ≥ 0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

impl Affine {
    /// The levels of `x`: the nearest integers to `(x − offset)/scale` in `0..=top`.
    #[inline]
    pub(super) fn levels<const N: usize>(self, x: &[f32; N], top: f32) -> [f32; N] {
        let (offset, inv) = (Lanes::splat(self.offset), Lanes::splat(inverse(self.scale)));
        map(x, |x| ((x - offset) * inv).round_to(0.0, top))
    }
}

/// The levels of `x` for step `s`.
#[inline]
pub(super) fn scale_levels<const N: usize>(
    x: &[f32; N],
    s: f32,
    snap: impl Fn(Lanes) -> Lanes,
) -> [f32; N] {
    let inv = Lanes::splat(inverse(s));
    map(x, |x| snap(x * inv))
}

/// `Σ w·(x − x̂)²` of an affine fit with levels `0..=top`.
#[inline]
pub(super) fn affine_error<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    fit: Affine,
    top: f32,
) -> f32 {
    let (scale, offset) = (Lanes::splat(fit.scale), Lanes::splat(fit.offset));
    let inv = Lanes::splat(inverse(fit.scale));
    let [e] = sums(x, w, |x, w| {
        let above = x - offset;
        let miss = above - scale * (above * inv).round_to(0.0, top);
        [w * miss * miss]
    });
    e
}

/// The best offset when the step is given and the levels are those of `fit`.
#[inline]
pub(super) fn refit_offset<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    fit: Affine,
    top: f32,
) -> f32 {
    let (scale, offset) = (Lanes::splat(fit.scale), Lanes::splat(fit.offset));
    let inv = Lanes::splat(inverse(fit.scale));
    let [sw, residue] = sums(x, w, |x, w| {
        let l = ((x - offset) * inv).round_to(0.0, top);
        [w, w * (x - scale * l)]
    });
    residue / sw
}

/// Smallest and largest of a group.
#[inline]
pub(super) fn range<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    x.iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| {
            (if v < lo { v } else { lo }, if v > hi { v } else { hi })
        })
}

/// The affine fit with levels `0..=top` that minimises `Σ w·(x − x̂)²`.
///
/// `trims` are the parts of the range cut off at either end, all pairs of which are tried. With
/// `sink` the offset stays at or below zero, as the K-quants store it.
#[inline]
pub(super) fn fit_affine<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    top: f32,
    trims: &[f32],
    sink: bool,
) -> Affine {
    let (mut low, high) = range(x);
    let grounded = sink && low > 0.0;
    if grounded {
        low = 0.0;
    }
    let width = high - low;
    if width <= 0.0 {
        return Affine {
            scale: 0.0,
            offset: low,
        };
    }
    // Deviations from the mean: the sums below then lose nothing to a large common offset.
    let [sw, swx] = sums(x, w, |x, w| [w, w * x]);
    let mean = swx / sw;
    let dev: [f32; N] = x.map(|v| v - mean);
    let [total] = sums(&dev, w, |x, w| [w * x * x]);
    let refit = |offset: f32, inv: f32| -> Option<(Affine, f32)> {
        let (base, inv) = (Lanes::splat(offset - mean), Lanes::splat(inv));
        let [sl, sll, sxl] = sums(&dev, w, |x, w| {
            let l = ((x - base) * inv).round_to(0.0, top);
            let wl = w * l;
            [wl, wl * l, wl * x]
        });
        let spread = sw * sll - sl * sl;
        if spread <= 0.0 || sxl <= 0.0 {
            return None;
        }
        let scale = sw * sxl / spread;
        let offset = mean - scale * sl / sw;
        if sink && offset > 0.0 {
            let sxl = sxl + mean * sl;
            let scale = sxl / sll;
            let fit = Affine { scale, offset: 0.0 };
            return Some((fit, total + mean * mean * sw - scale * sxl));
        }
        Some((Affine { scale, offset }, total - scale * sxl))
    };
    let mut best = (
        Affine {
            scale: width / top,
            offset: low,
        },
        f32::INFINITY,
    );
    let mut consider = |below: f32, above: f32| {
        let inner = width * (1.0 - below - above);
        if inner > 0.0
            && let Some(found) = refit(low + below * width, top / inner)
            && found.1 < best.1
        {
            best = found;
        }
    };
    if grounded {
        // Only the step is left to choose, so it is tried in finer grades.
        for grade in -6i16..=12 {
            consider(0.0, f32::from(grade) * 0.005);
        }
    } else {
        for &below in trims {
            for &above in trims {
                consider(below, above);
            }
        }
    }
    for _ in 0..POLISH {
        match refit(best.0.offset, inverse(best.0.scale)) {
            Some(found) if found.1 < best.1 => best = found,
            _ => break,
        }
    }
    best.0
}
