//! Attention over f16 keys and values.

use std::arch::x86_64::*;

use half::f16;

use super::super::lanes::LANES;
use super::super::scalar;
use super::{exp8, fold};

/// Eight halves as floats.
///
/// # Safety
/// F16C; eight halves readable at `p`.
#[inline(always)]
unsafe fn load8(p: *const f16) -> __m256 {
    // SAFETY: by the contract.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// `scores[t] = (q · k[t]) × scale`.
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn scores(
    q: &[f32],
    keys: &[f16],
    stride: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let dim = q.len();
    let n = scores.len();
    assert!(dim <= stride && (n == 0 || keys.len() >= (n - 1) * stride + dim));
    if !dim.is_multiple_of(LANES) {
        for (s, k) in scores.iter_mut().zip(keys.chunks(stride)) {
            *s = scalar::dot_f16(q, &k[..dim]) * scale;
        }
        return;
    }
    // Four positions at a time hide the latency of the chain of each.
    let mut t = 0;
    while t + 4 <= n {
        let mut acc = [_mm256_setzero_ps(); 4];
        for d in (0..dim).step_by(LANES) {
            // SAFETY: `d + 8 ≤ dim`, and the assertion above covers position `t + 3`.
            unsafe {
                let qv = _mm256_loadu_ps(q.as_ptr().add(d));
                for (i, a) in acc.iter_mut().enumerate() {
                    *a = _mm256_fmadd_ps(qv, load8(keys.as_ptr().add((t + i) * stride + d)), *a);
                }
            }
        }
        for (i, a) in acc.iter().enumerate() {
            // SAFETY: the feature is enabled here.
            scores[t + i] = unsafe { fold(*a) } * scale;
        }
        t += 4;
    }
    for t in t..n {
        let mut acc = _mm256_setzero_ps();
        for d in (0..dim).step_by(LANES) {
            // SAFETY: as above.
            unsafe {
                let qv = _mm256_loadu_ps(q.as_ptr().add(d));
                acc = _mm256_fmadd_ps(qv, load8(keys.as_ptr().add(t * stride + d)), acc);
            }
        }
        // SAFETY: the feature is enabled here.
        scores[t] = unsafe { fold(acc) } * scale;
    }
}

/// `s[t] = e^(s[t] − max s)`; returns the sum, lane `t mod 8`.
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn softmax(s: &mut [f32]) -> f32 {
    let max = s
        .iter()
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
    unsafe { fold(_mm256_add_ps(acc, _mm256_loadu_ps(last.as_ptr()))) }
}

/// `out[d] = Σ w[t] · v[t][d]`, ascending `t`.
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn weighted_sum(w: &[f32], values: &[f16], stride: usize, out: &mut [f32]) {
    const WIDE: usize = 4 * LANES;
    let dim = out.len();
    assert!(dim <= stride && (w.is_empty() || values.len() >= (w.len() - 1) * stride + dim));
    let mut d = 0;
    while d + WIDE <= dim {
        let mut acc = [_mm256_setzero_ps(); 4];
        for (t, w) in w.iter().enumerate() {
            let wv = _mm256_set1_ps(*w);
            for (i, a) in acc.iter_mut().enumerate() {
                // SAFETY: `d + 32 ≤ dim`; the assertion above covers position `t`.
                let v = unsafe { load8(values.as_ptr().add(t * stride + d + i * LANES)) };
                *a = _mm256_fmadd_ps(wv, v, *a);
            }
        }
        for (i, a) in acc.iter().enumerate() {
            // SAFETY: `d + 32 ≤ dim`.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(d + i * LANES), *a) };
        }
        d += WIDE;
    }
    let rest = &mut out[d..];
    rest.fill(0.0);
    if !rest.is_empty() {
        for (t, w) in w.iter().enumerate() {
            let at = t * stride + d;
            scalar::add_scaled(rest, *w, &values[at..at + dim - d]);
        }
    }
}

/// Folds eight registers as [`fold`] does each; sum `i` is of register `i`.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn fold8(a: &[__m256; 8]) -> __m256 {
    // SAFETY: by the contract.
    unsafe {
        // Halves: register `i` in the low half, `i + 4` in the high one.
        let mut b = [_mm256_setzero_ps(); 4];
        for i in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(a[i], a[i + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(a[i], a[i + 4]);
            b[i] = _mm256_add_ps(low, high);
        }
        // Lanes 0 + 2 and 1 + 3, of two registers at once.
        let mut c = [_mm256_setzero_ps(); 2];
        for i in 0..2 {
            let front = _mm256_shuffle_ps::<0b01_00_01_00>(b[2 * i], b[2 * i + 1]);
            let back = _mm256_shuffle_ps::<0b11_10_11_10>(b[2 * i], b[2 * i + 1]);
            c[i] = _mm256_add_ps(front, back);
        }
        let even = _mm256_shuffle_ps::<0b10_00_10_00>(c[0], c[1]);
        let odd = _mm256_shuffle_ps::<0b11_01_11_01>(c[0], c[1]);
        _mm256_add_ps(even, odd)
    }
}

/// [`scores`] over keys that are floats already.
///
/// # Safety
/// AVX2, FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn scores_f32(
    q: &[f32],
    keys: &[f32],
    stride: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let dim = q.len();
    let n = scores.len();
    assert!(dim <= stride && (n == 0 || keys.len() >= (n - 1) * stride + dim));
    if !dim.is_multiple_of(LANES) {
        for (s, k) in scores.iter_mut().zip(keys.chunks(stride)) {
            *s = scalar::dot_f32(q, &k[..dim]) * scale;
        }
        return;
    }
    let mut t = 0;
    while t + 8 <= n {
        let mut acc = [_mm256_setzero_ps(); 8];
        for d in (0..dim).step_by(LANES) {
            // SAFETY: `d + 8 ≤ dim`, and the assertion above covers position `t + 7`.
            unsafe {
                let qv = _mm256_loadu_ps(q.as_ptr().add(d));
                for (i, a) in acc.iter_mut().enumerate() {
                    let k = _mm256_loadu_ps(keys.as_ptr().add((t + i) * stride + d));
                    *a = _mm256_fmadd_ps(qv, k, *a);
                }
            }
        }
        // SAFETY: eight scores are left.
        unsafe {
            let sums = _mm256_mul_ps(fold8(&acc), _mm256_set1_ps(scale));
            _mm256_storeu_ps(scores.as_mut_ptr().add(t), sums);
        }
        t += 8;
    }
    for t in t..n {
        let mut acc = _mm256_setzero_ps();
        for d in (0..dim).step_by(LANES) {
            // SAFETY: as above.
            unsafe {
                let qv = _mm256_loadu_ps(q.as_ptr().add(d));
                let k = _mm256_loadu_ps(keys.as_ptr().add(t * stride + d));
                acc = _mm256_fmadd_ps(qv, k, acc);
            }
        }
        // SAFETY: the feature is enabled here.
        scores[t] = unsafe { fold(acc) } * scale;
    }
}

/// `out[d] += Σ w[t] · v[t][d]`, ascending `t`, over values that are floats already.
///
/// # Safety
/// AVX2, FMA.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn add_weighted_f32(w: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
    const WIDE: usize = 8 * LANES;
    let dim = out.len();
    assert!(dim <= stride && (w.is_empty() || values.len() >= (w.len() - 1) * stride + dim));
    let mut d = 0;
    while d + WIDE <= dim {
        let mut acc = [_mm256_setzero_ps(); 8];
        // SAFETY: `d + 64 ≤ dim`; the assertion above covers every position.
        unsafe {
            for (i, a) in acc.iter_mut().enumerate() {
                *a = _mm256_loadu_ps(out.as_ptr().add(d + i * LANES));
            }
            for (t, w) in w.iter().enumerate() {
                let wv = _mm256_set1_ps(*w);
                for (i, a) in acc.iter_mut().enumerate() {
                    let v = _mm256_loadu_ps(values.as_ptr().add(t * stride + d + i * LANES));
                    *a = _mm256_fmadd_ps(wv, v, *a);
                }
            }
            for (i, a) in acc.iter().enumerate() {
                _mm256_storeu_ps(out.as_mut_ptr().add(d + i * LANES), *a);
            }
        }
        d += WIDE;
    }
    if d < dim {
        for (w, v) in w.iter().zip(values.chunks(stride)) {
            for (o, v) in out[d..].iter_mut().zip(&v[d..dim]) {
                *o = w.mul_add(*v, *o);
            }
        }
    }
}
