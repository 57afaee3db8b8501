//! Attention over f16 keys and values: the kernels of [`super::super::avx2`] with the 32 registers
//! that a processor with AVX-512 has.

use half::f16;

use super::super::avx2::{scores_by, sums_by};

/// See [`super::super::scalar::scores_f16`].
///
/// # Safety
/// AVX-512 F and VL, AVX2, FMA, F16C.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn scores_f16(
    q: &[f32],
    keys: &[f16],
    dim: usize,
    scale: f32,
    next: *const f16,
    scores: &mut [f32],
) {
    // SAFETY: by the contract.
    unsafe { scores_by::<8>(q, keys, dim, scale, next, scores) }
}

/// See [`super::super::scalar::sums_f16`].
///
/// # Safety
/// AVX-512 F and VL, AVX2, FMA, F16C.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn sums_f16(
    weights: &[f32],
    values: &[f16],
    dim: usize,
    next: *const f16,
    sums: &mut [f32],
) {
    // SAFETY: by the contract.
    unsafe { sums_by::<8>(weights, values, dim, next, sums) }
}
