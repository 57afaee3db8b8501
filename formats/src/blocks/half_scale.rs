//! Scales stored as IEEE half floats: saturating conversion and the choice among neighbours.

use half::f16;

use super::lanes::Lanes;
use super::search::{Affine, affine_error, fit_affine, range, refit_offset, scale_error};

/// The half nearest to `v`, saturating at ±65504 so that no scale is ever infinite; NaN gives 0.
pub(super) fn saturate(v: f32) -> f16 {
    if v.is_nan() {
        return f16::ZERO;
    }
    f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// `v` rounded to half, and the halves just below and above it in magnitude (saturating).
pub(super) fn neighbours(v: f32) -> [f16; 3] {
    let centre = saturate(v);
    let bits = centre.to_bits();
    let (sign, magnitude) = (bits & 0x8000, bits & 0x7fff);
    let up = (magnitude + 1).min(f16::MAX.to_bits());
    let down = magnitude.saturating_sub(1);
    [
        centre,
        f16::from_bits(sign | down),
        f16::from_bits(sign | up),
    ]
}

/// The half near one of `scales` with the smallest [`scale_error`].
pub(super) fn best_scale<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    scales: &[f32],
    snap: impl Fn(Lanes) -> Lanes,
) -> f16 {
    let mut best = (f16::ZERO, f32::INFINITY);
    for &s in scales {
        for d in neighbours(s) {
            let e = scale_error(x, w, d.to_f32(), &snap);
            if e < best.1 {
                best = (d, e);
            }
        }
    }
    best.0
}

/// The best step and offset, both as halves, for levels `0..=top`.
pub(super) fn best_affine<const N: usize>(
    x: &[f32; N],
    w: &[f32; N],
    top: f32,
    trims: &[f32],
) -> (f16, f16) {
    let fit = fit_affine(x, w, top, trims, false);
    let (low, high) = range(x);
    let plain = Affine {
        scale: (high - low) / top,
        offset: low,
    };
    let mut best = (f16::ZERO, f16::ZERO, f32::INFINITY);
    let mut consider = |d: f16, m: f16| {
        let stored = Affine {
            scale: d.to_f32(),
            offset: m.to_f32(),
        };
        let e = affine_error(x, w, stored, top);
        if e < best.2 {
            best = (d, m, e);
        }
    };
    // The offset is fitted again because the rounded step moved every level.
    for d in neighbours(fit.scale) {
        let rounded = Affine {
            scale: d.to_f32(),
            offset: fit.offset,
        };
        for m in neighbours(refit_offset(x, w, rounded, top)) {
            consider(d, m);
        }
    }
    consider(saturate(plain.scale), saturate(plain.offset));
    (best.0, best.1)
}
