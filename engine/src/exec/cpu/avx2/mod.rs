//! AVX2 kernels with FMA and F16C. Bit for bit what [`super::scalar`] computes. Products of many rows in floats are also compiled
//! for the registers of AVX-512 (`panel`).
//!
//! The pattern: small `#[inline(always)]` pieces without a target feature of their own, inlined
//! into entry points that have it.

// The pieces must be inlined, or they would be compiled without the feature; intrinsics are many
// and named for what they are; an index is a lane.
#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    clippy::needless_range_loop
)]

mod attention;
mod block32;
mod float;
mod grouped;
mod integer;
mod matmul;
mod panel;
mod super256;

use std::arch::x86_64::*;

pub(crate) use attention::{join, softmax};
pub(super) use integer::four;
pub(crate) use integer::{
    encode, float_scores, float_sums, key_tile, kv_scores, kv_sums, products, soften,
};
pub(crate) use matmul::matmul;
pub(crate) use panel::Registers;

use super::lanes::{LANES, exp};
use super::scalar;

/// Asks for what is at `p`, any address, to come into the second cache.
///
/// # Safety
/// SSE.
#[inline(always)]
pub(super) unsafe fn prefetch(p: *const u8) {
    // SAFETY: by the contract; a prefetch may go anywhere.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
}

/// Folds eight lanes as [`super::lanes::fold`] does.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn fold(a: __m256) -> f32 {
    // SAFETY: AVX2 by the contract.
    unsafe {
        let b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let c = _mm_add_ps(b, _mm_movehl_ps(b, b));
        _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps::<1>(c, c)))
    }
}

/// [`scalar::exp`] in eight lanes.
///
/// # Safety
/// AVX2, FMA.
#[inline(always)]
unsafe fn exp8(x: __m256) -> __m256 {
    // SAFETY: features by the contract.
    unsafe {
        let live = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_set1_ps(exp::LO));
        let x = _mm256_min_ps(x, _mm256_set1_ps(exp::HI));
        let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
            _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E)),
        );
        let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-exp::LN2_HI), x);
        let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-exp::LN2_LO), r);
        let mut p = _mm256_set1_ps(exp::POLY[0]);
        for c in &exp::POLY[1..] {
            p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
        }
        let p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
        let p = _mm256_add_ps(p, _mm256_set1_ps(1.0));
        let bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        let pow = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits));
        _mm256_and_ps(_mm256_mul_ps(p, pow), live)
    }
}

/// Σ x².
///
/// # Safety
/// AVX2, FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn sum_squares(x: &[f32]) -> f32 {
    let mut acc = _mm256_setzero_ps();
    let (chunks, tail) = x.as_chunks::<LANES>();
    for c in chunks {
        // SAFETY: eight values are there.
        let v = unsafe { _mm256_loadu_ps(c.as_ptr()) };
        acc = _mm256_fmadd_ps(v, v, acc);
    }
    if !tail.is_empty() {
        let mut last = [0.0; LANES];
        last[..tail.len()].copy_from_slice(tail);
        // SAFETY: eight values are there; squares of the zeros add nothing.
        let v = unsafe { _mm256_loadu_ps(last.as_ptr()) };
        acc = _mm256_fmadd_ps(v, v, acc);
    }
    // SAFETY: the feature is enabled here.
    unsafe { fold(acc) }
}

/// `gate[i] = silu(gate[i]) · up[i]`.
///
/// # Safety
/// AVX2, FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
    let n = gate.len().min(up.len());
    let whole = n - n % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: `i + 8 ≤ n`; features are enabled here.
        unsafe {
            let g = _mm256_loadu_ps(gate.as_ptr().add(i));
            let u = _mm256_loadu_ps(up.as_ptr().add(i));
            // Negation flips the sign bit, as Rust's does.
            let e = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0)));
            let s = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0), e));
            _mm256_storeu_ps(gate.as_mut_ptr().add(i), _mm256_mul_ps(s, u));
        }
    }
    scalar::swiglu(&mut gate[whole..n], &up[whole..n]);
}
