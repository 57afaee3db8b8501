//! Attention over f16 keys and values.

use std::arch::x86_64::*;

use half::f16;

use super::super::integer::SPAN;
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

/// Asks for the `n` halves at `p`, which may be any address, to come into the second cache.
///
/// # Safety
/// SSE.
#[inline(always)]
unsafe fn ask(p: *const f16, n: usize) {
    for line in (0..2 * n).step_by(64) {
        // SAFETY: by the contract; a prefetch may go anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast::<i8>().wrapping_add(line)) };
    }
}

/// Four sums, as [`fold`] makes each.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn fold4(a: &[__m256; 4]) -> __m128 {
    // SAFETY: by the contract.
    unsafe {
        let half = |a| _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let b = [half(a[0]), half(a[1]), half(a[2]), half(a[3])];
        let c = _mm_add_ps(_mm_movelh_ps(b[0], b[1]), _mm_movehl_ps(b[1], b[0]));
        let d = _mm_add_ps(_mm_movelh_ps(b[2], b[3]), _mm_movehl_ps(b[3], b[2]));
        let even = _mm_shuffle_ps::<0b10_00_10_00>(c, d);
        let odd = _mm_shuffle_ps::<0b11_01_11_01>(c, d);
        _mm_add_ps(even, odd)
    }
}

/// `H` queries against all keys, `P` (4 or 8) positions at a time, so that a key is read once.
///
/// # Safety
/// AVX2, FMA, F16C; `dim` a multiple of 8, `n` keys of it readable, a span of scores writable for
/// each query.
#[inline(always)]
unsafe fn scores_of<const H: usize, const P: usize>(
    q: *const f32,
    keys: *const f16,
    dim: usize,
    n: usize,
    scale: f32,
    next: *const f16,
    scores: *mut f32,
) {
    // SAFETY: by the contract.
    unsafe {
        let whole = n - n % P;
        for t in (0..whole).step_by(P) {
            let k = keys.add(t * dim);
            ask(next.wrapping_add(t * dim), P * dim);
            let mut acc = [[_mm256_setzero_ps(); 8]; H];
            for d in (0..dim).step_by(LANES) {
                let mut qv = [_mm256_setzero_ps(); H];
                for (h, qv) in qv.iter_mut().enumerate() {
                    *qv = _mm256_loadu_ps(q.add(h * dim + d));
                }
                for i in 0..P {
                    let k = load8(k.add(i * dim + d));
                    for h in 0..H {
                        acc[h][i] = _mm256_fmadd_ps(qv[h], k, acc[h][i]);
                    }
                }
            }
            for (h, acc) in acc.iter().enumerate() {
                let out = scores.add(h * SPAN + t);
                if P == 8 {
                    let sums = _mm256_mul_ps(fold8(acc), _mm256_set1_ps(scale));
                    _mm256_storeu_ps(out, sums);
                } else {
                    let sums = fold4(&[acc[0], acc[1], acc[2], acc[3]]);
                    _mm_storeu_ps(out, _mm_mul_ps(sums, _mm_set1_ps(scale)));
                }
            }
        }
        for t in whole..n {
            for h in 0..H {
                let mut acc = _mm256_setzero_ps();
                for d in (0..dim).step_by(LANES) {
                    let qv = _mm256_loadu_ps(q.add(h * dim + d));
                    acc = _mm256_fmadd_ps(qv, load8(keys.add(t * dim + d)), acc);
                }
                *scores.add(h * SPAN + t) = fold(acc) * scale;
            }
        }
    }
}

/// [`scalar::scores_f16`], `P` (4 or 8) positions at a time.
///
/// # Safety
/// AVX2, FMA, F16C.
#[inline(always)]
pub(in super::super) unsafe fn scores_by<const P: usize>(
    q: &[f32],
    keys: &[f16],
    dim: usize,
    scale: f32,
    next: *const f16,
    scores: &mut [f32],
) {
    let (rows, n) = (q.len() / dim, keys.len() / dim);
    if !dim.is_multiple_of(LANES) {
        return scalar::scores_f16(q, keys, dim, scale, scores);
    }
    assert!(n <= SPAN && scores.len() >= rows * SPAN);
    let mut r = 0;
    while r < rows {
        // SAFETY: by the contract and the assertion.
        unsafe {
            let (q, s) = (q.as_ptr().add(r * dim), scores.as_mut_ptr().add(r * SPAN));
            let k = keys.as_ptr();
            match together(rows - r) {
                1 => scores_of::<1, P>(q, k, dim, n, scale, next, s),
                2 => scores_of::<2, P>(q, k, dim, n, scale, next, s),
                _ => scores_of::<3, P>(q, k, dim, n, scale, next, s),
            }
        }
        r += together(rows - r);
    }
}

/// See [`scalar::scores_f16`].
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn scores_f16(
    q: &[f32],
    keys: &[f16],
    dim: usize,
    scale: f32,
    next: *const f16,
    scores: &mut [f32],
) {
    // SAFETY: by the contract.
    unsafe { scores_by::<4>(q, keys, dim, scale, next, scores) }
}

/// Rows that go together while `left` are left.
fn together(left: usize) -> usize {
    match left {
        1 => 1,
        2 | 4 => 2,
        _ => 3,
    }
}

/// `8·W` dimensions of the sums of `H` rows.
///
/// # Safety
/// AVX2, FMA, F16C; `n` values of `dim`, `n` weights and the sums within reach.
#[inline(always)]
unsafe fn sums_of<const H: usize, const W: usize>(
    weights: *const f32,
    values: *const f16,
    dim: usize,
    n: usize,
    next: *const f16,
    sums: *mut f32,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); W]; H];
        for t in 0..n {
            let mut w = [_mm256_setzero_ps(); H];
            for (h, w) in w.iter_mut().enumerate() {
                *w = _mm256_set1_ps(*weights.add(h * SPAN + t));
            }
            ask(next.wrapping_add(t * dim), W * LANES);
            for i in 0..W {
                let v = load8(values.add(t * dim + i * LANES));
                for h in 0..H {
                    acc[h][i] = _mm256_fmadd_ps(w[h], v, acc[h][i]);
                }
            }
        }
        for (h, acc) in acc.iter().enumerate() {
            for (i, a) in acc.iter().enumerate() {
                _mm256_storeu_ps(sums.add(h * dim + i * LANES), *a);
            }
        }
    }
}

/// [`scalar::sums_f16`], `8·W` dimensions at a time where they are whole, else 32, else 8.
///
/// # Safety
/// AVX2, FMA, F16C.
#[inline(always)]
pub(in super::super) unsafe fn sums_by<const W: usize>(
    weights: &[f32],
    values: &[f16],
    dim: usize,
    next: *const f16,
    sums: &mut [f32],
) {
    if !dim.is_multiple_of(W * LANES) {
        if W > 4 {
            // SAFETY: by the contract.
            unsafe { sums_by::<4>(weights, values, dim, next, sums) }
        } else if W > 1 {
            // SAFETY: by the contract.
            unsafe { sums_by::<1>(weights, values, dim, next, sums) }
        } else {
            scalar::sums_f16(weights, values, dim, sums);
        }
        return;
    }
    let (rows, n) = (sums.len() / dim, values.len() / dim);
    assert!(n <= SPAN && (rows == 0 || weights.len() >= (rows - 1) * SPAN + n));
    let mut r = 0;
    while r < rows {
        for d in (0..dim).step_by(W * LANES) {
            // SAFETY: by the contract and the assertion.
            unsafe {
                let w = weights.as_ptr().add(r * SPAN);
                let (v, s) = (values.as_ptr().add(d), sums.as_mut_ptr().add(r * dim + d));
                let next = next.wrapping_add(d);
                match together(rows - r) {
                    1 => sums_of::<1, W>(w, v, dim, n, next, s),
                    2 => sums_of::<2, W>(w, v, dim, n, next, s),
                    _ => sums_of::<3, W>(w, v, dim, n, next, s),
                }
            }
        }
        r += together(rows - r);
    }
}

/// See [`scalar::sums_f16`].
///
/// # Safety
/// AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn sums_f16(
    weights: &[f32],
    values: &[f16],
    dim: usize,
    next: *const f16,
    sums: &mut [f32],
) {
    // SAFETY: by the contract.
    unsafe { sums_by::<4>(weights, values, dim, next, sums) }
}

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

/// `scores[t] = (q · k[t]) × scale` over keys that are floats already.
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
