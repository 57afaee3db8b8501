//! Scores to weights, and spans joined.

use std::arch::x86_64::*;

use super::super::lanes::LANES;
use super::super::scalar;
use super::{exp8, fold};

/// See [`scalar::softmax`].
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn softmax(s: &mut [f32]) -> (f32, f32) {
    // The largest does not depend on the order; what is no number is the first operand and loses.
    let mut most = _mm256_set1_ps(f32::NEG_INFINITY);
    let (chunks, tail) = s.as_chunks::<LANES>();
    for c in chunks {
        // SAFETY: eight values are there; features are enabled here.
        most = unsafe { _mm256_max_ps(_mm256_loadu_ps(c.as_ptr()), most) };
    }
    let mut lanes = [0.0; LANES];
    // SAFETY: eight values are there.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), most) };
    let max = lanes
        .iter()
        .chain(tail)
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let m = _mm256_set1_ps(max);
    let mut acc = _mm256_setzero_ps();
    let (chunks, tail) = s.as_chunks_mut::<LANES>();
    for c in chunks {
        // SAFETY: eight values are there; features are enabled here.
        unsafe {
            let e = exp8(_mm256_sub_ps(_mm256_loadu_ps(c.as_ptr()), m));
            _mm256_storeu_ps(c.as_mut_ptr(), e);
            acc = _mm256_add_ps(acc, e);
        }
    }
    let mut last = [0.0; LANES];
    for (l, v) in last.iter_mut().zip(tail) {
        *v = scalar::exp(*v - max);
        *l = *v;
    }
    // SAFETY: eight values are there; adding the zeros changes no lane.
    let sum = unsafe { fold(_mm256_add_ps(acc, _mm256_loadu_ps(last.as_ptr()))) };
    (max, sum)
}

/// See [`scalar::join`].
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn join(so_far: &mut [f32], out: &mut [f32], [m, l]: [f32; 2], sums: &[f32]) {
    let most = so_far[0];
    // SAFETY: features are enabled here.
    let exp = |x: f32| unsafe { _mm256_cvtss_f32(exp8(_mm256_set1_ps(x))) };
    let (f, g) = if m > most {
        so_far[0] = m;
        (exp(most - m), 1.0)
    } else {
        (1.0, exp(m - most))
    };
    so_far[1] = g.mul_add(l, f * so_far[1]);
    let (chunks, tail) = out.as_chunks_mut::<LANES>();
    let (own, rest) = sums.as_chunks::<LANES>();
    for (o, s) in chunks.iter_mut().zip(own) {
        // SAFETY: eight values are there; features are enabled here.
        unsafe {
            let old = _mm256_mul_ps(_mm256_set1_ps(f), _mm256_loadu_ps(o.as_ptr()));
            let sum = _mm256_fmadd_ps(_mm256_set1_ps(g), _mm256_loadu_ps(s.as_ptr()), old);
            _mm256_storeu_ps(o.as_mut_ptr(), sum);
        }
    }
    for (o, s) in tail.iter_mut().zip(rest) {
        *o = g.mul_add(*s, f * *o);
    }
}
