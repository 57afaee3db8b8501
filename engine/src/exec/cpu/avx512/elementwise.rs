//! Softmax and SwiGLU, sixteen values at a time: bit for bit those of [`super::super::avx2`].

use std::arch::x86_64::*;

use super::super::lanes::{LANES, exp, fold};
use super::super::scalar;

/// Values of a register.
const WIDE: usize = 2 * LANES;

/// [`scalar::exp`] in sixteen lanes.
///
/// # Safety
/// AVX-512 F.
#[inline(always)]
unsafe fn exp16(x: __m512) -> __m512 {
    // SAFETY: by the contract.
    unsafe {
        let live = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(exp::LO));
        let x = _mm512_min_ps(x, _mm512_set1_ps(exp::HI));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
            _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
        );
        let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-exp::LN2_HI), x);
        let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-exp::LN2_LO), r);
        let mut p = _mm512_set1_ps(exp::POLY[0]);
        for c in &exp::POLY[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
        }
        let p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
        let p = _mm512_add_ps(p, _mm512_set1_ps(1.0));
        let bits = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        let pow = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(bits));
        _mm512_maskz_mul_ps(live, p, pow)
    }
}

/// See [`scalar::softmax`].
///
/// # Safety
/// AVX-512 F and DQ, AVX2.
#[target_feature(enable = "avx512f,avx512dq,avx2")]
pub(crate) unsafe fn softmax(s: &mut [f32]) -> (f32, f32) {
    // The largest does not depend on the order; what is no number is the first operand and loses.
    let least = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut most = least;
    let (chunks, tail) = s.as_chunks::<WIDE>();
    let rest = (1_u16 << tail.len()) - 1;
    for c in chunks {
        // SAFETY: sixteen values are there.
        most = unsafe { _mm512_max_ps(_mm512_loadu_ps(c.as_ptr()), most) };
    }
    // SAFETY: as many values are there as the mask has bits.
    let last = unsafe { _mm512_mask_loadu_ps(least, rest, tail.as_ptr()) };
    let max = _mm512_reduce_max_ps(_mm512_max_ps(last, most));
    let m = _mm512_set1_ps(max);
    // Lanes are those of eight: the lower half of sixteen comes first.
    let mut acc = _mm256_setzero_ps();
    let (chunks, tail) = s.as_chunks_mut::<WIDE>();
    for c in chunks {
        // SAFETY: sixteen values are there; features are enabled here.
        unsafe {
            let e = exp16(_mm512_sub_ps(_mm512_loadu_ps(c.as_ptr()), m));
            _mm512_storeu_ps(c.as_mut_ptr(), e);
            acc = _mm256_add_ps(acc, _mm512_castps512_ps256(e));
            acc = _mm256_add_ps(acc, _mm512_extractf32x8_ps::<1>(e));
        }
    }
    if !tail.is_empty() {
        // SAFETY: as many values are there as the mask has bits; features are enabled here.
        unsafe {
            let e = exp16(_mm512_sub_ps(last, m));
            let e = _mm512_maskz_mov_ps(rest, e);
            _mm512_mask_storeu_ps(tail.as_mut_ptr(), rest, e);
            acc = _mm256_add_ps(acc, _mm512_castps512_ps256(e));
            // Adding zeros changes no lane.
            acc = _mm256_add_ps(acc, _mm512_extractf32x8_ps::<1>(e));
        }
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: eight values are there.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), acc) };
    (max, fold(&lanes))
}

/// `gate[i] = silu(gate[i]) · up[i]`.
///
/// # Safety
/// AVX-512 F and DQ.
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
    let n = gate.len().min(up.len());
    let (chunks, tail) = gate[..n].as_chunks_mut::<WIDE>();
    let (others, rest) = up[..n].as_chunks::<WIDE>();
    for (gate, up) in chunks.iter_mut().zip(others) {
        // SAFETY: sixteen values are there; features are enabled here.
        unsafe {
            let (g, u) = (_mm512_loadu_ps(gate.as_ptr()), _mm512_loadu_ps(up.as_ptr()));
            // Negation flips the sign bit, as Rust's does.
            let e = exp16(_mm512_xor_ps(g, _mm512_set1_ps(-0.0)));
            let s = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0), e));
            _mm512_storeu_ps(gate.as_mut_ptr(), _mm512_mul_ps(s, u));
        }
    }
    scalar::swiglu(tail, rest);
}
