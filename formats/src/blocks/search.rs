//! What every encoder's search begins with: weights and importances that can be computed with.

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
