//! Scales stored as IEEE half floats.

use half::f16;

/// The half nearest to `v`, saturating at ±65504 so that no scale is ever infinite; NaN gives 0.
pub(super) fn saturate(v: f32) -> f16 {
    if v.is_nan() {
        return f16::ZERO;
    }
    f16::from_f32(v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}
