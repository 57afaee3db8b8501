//! Attention over keys and values in f16, or in floats already.

use half::f16;

use super::super::integer::SPAN;
use super::super::lanes::LANES;
use super::super::scalar;
use super::{Eight, exp8};

/// What keys and values are made of.
trait Value: Copy {
    /// Eight of them, as floats.
    ///
    /// # Safety
    /// NEON; eight values readable.
    unsafe fn eight(p: *const Self) -> Eight;

    /// As a float.
    fn float(self) -> f32;

    /// `q · k` in lanes.
    fn dot(q: &[f32], k: &[Self]) -> f32;
}

impl Value for f16 {
    #[inline(always)]
    unsafe fn eight(p: *const Self) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight::load_f16(p.cast()) }
    }

    fn float(self) -> f32 {
        self.to_f32()
    }

    fn dot(q: &[f32], k: &[Self]) -> f32 {
        scalar::dot_f16(q, k)
    }
}

impl Value for f32 {
    #[inline(always)]
    unsafe fn eight(p: *const Self) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight::load(p) }
    }

    fn float(self) -> f32 {
        self
    }

    fn dot(q: &[f32], k: &[Self]) -> f32 {
        scalar::dot_f32(q, k)
    }
}

/// See [`scalar::scores_f16`].
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn scores_f16(
    q: &[f32],
    keys: &[f16],
    dim: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let n = keys.len() / dim;
    for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_mut(SPAN)) {
        // SAFETY: by the contract.
        unsafe { scores_of(q, keys, dim, scale, &mut scores[..n]) }
    }
}

/// `scores[t] = (q · k[t]) × scale` over keys that are floats already.
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn scores_f32(
    q: &[f32],
    keys: &[f32],
    stride: usize,
    scale: f32,
    scores: &mut [f32],
) {
    // SAFETY: by the contract.
    unsafe { scores_of(q, keys, stride, scale, scores) }
}

/// # Safety
/// NEON.
#[inline(always)]
unsafe fn scores_of<T: Value>(
    q: &[f32],
    keys: &[T],
    stride: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let dim = q.len();
    let n = scores.len();
    assert!(dim <= stride && (n == 0 || keys.len() >= (n - 1) * stride + dim));
    if !dim.is_multiple_of(LANES) {
        for (s, k) in scores.iter_mut().zip(keys.chunks(stride)) {
            *s = T::dot(q, &k[..dim]) * scale;
        }
        return;
    }
    // Four positions at a time hide the latency of the chain of each.
    let (fours, rest) = scores.as_chunks_mut::<4>();
    for (t, out) in fours.iter_mut().enumerate() {
        // SAFETY: `d + 8 ≤ dim`, and the assertion above covers all four positions.
        unsafe {
            let mut acc = [Eight::splat(0.0); 4];
            for d in (0..dim).step_by(LANES) {
                let qv = Eight::load(q.as_ptr().add(d));
                for (i, a) in acc.iter_mut().enumerate() {
                    *a = qv.fma(T::eight(keys.as_ptr().add((4 * t + i) * stride + d)), *a);
                }
            }
            for (s, a) in out.iter_mut().zip(acc) {
                *s = a.fold() * scale;
            }
        }
    }
    for (s, t) in rest.iter_mut().zip(4 * fours.len()..) {
        // SAFETY: as above.
        unsafe {
            let mut acc = Eight::splat(0.0);
            for d in (0..dim).step_by(LANES) {
                let k = T::eight(keys.as_ptr().add(t * stride + d));
                acc = Eight::load(q.as_ptr().add(d)).fma(k, acc);
            }
            *s = acc.fold() * scale;
        }
    }
}

/// See [`scalar::softmax`].
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn softmax(s: &mut [f32]) -> (f32, f32) {
    let max = s
        .iter()
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let (chunks, tail) = s.as_chunks_mut::<LANES>();
    let mut last = [0.0; LANES];
    for (l, v) in last.iter_mut().zip(tail) {
        *v = scalar::exp(*v - max);
        *l = *v;
    }
    // SAFETY: each pointer has eight values. Adding the negated maximum subtracts it; adding the
    // zeros changes no lane.
    let sum = unsafe {
        let m = Eight::splat(-max);
        let mut acc = Eight::splat(0.0);
        for c in chunks {
            let e = exp8(Eight::load(c.as_ptr()).add(m));
            e.store(c.as_mut_ptr());
            acc = acc.add(e);
        }
        acc.add(Eight::load(last.as_ptr())).fold()
    };
    (max, sum)
}

/// See [`scalar::sums_f16`].
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn sums_f16(weights: &[f32], values: &[f16], dim: usize, sums: &mut [f32]) {
    let n = values.len() / dim;
    for (w, sums) in weights.chunks(SPAN).zip(sums.chunks_exact_mut(dim)) {
        sums.fill(0.0);
        // SAFETY: by the contract.
        unsafe { add_weighted(&w[..n], values, dim, sums) }
    }
}

/// `out[d] += Σ w[t] · v[t][d]`, ascending `t`, over values that are floats already.
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn add_weighted_f32(w: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
    // SAFETY: by the contract.
    unsafe { add_weighted(w, values, stride, out) }
}

/// # Safety
/// NEON.
#[inline(always)]
unsafe fn add_weighted<T: Value>(w: &[f32], values: &[T], stride: usize, out: &mut [f32]) {
    const WIDE: usize = 4 * LANES;
    let dim = out.len();
    assert!(dim <= stride && (w.is_empty() || values.len() >= (w.len() - 1) * stride + dim));
    let (wide, rest) = out.as_chunks_mut::<WIDE>();
    for (c, out) in wide.iter_mut().enumerate() {
        // SAFETY: this chunk ends within `dim`; the assertion above covers position `t`.
        unsafe {
            let mut acc = [Eight::splat(0.0); 4];
            for (i, a) in acc.iter_mut().enumerate() {
                *a = Eight::load(out.as_ptr().add(i * LANES));
            }
            for (t, w) in w.iter().enumerate() {
                let wv = Eight::splat(*w);
                for (i, a) in acc.iter_mut().enumerate() {
                    let v = values.as_ptr().add(t * stride + c * WIDE + i * LANES);
                    *a = wv.fma(T::eight(v), *a);
                }
            }
            for (i, a) in acc.iter().enumerate() {
                a.store(out.as_mut_ptr().add(i * LANES));
            }
        }
    }
    if !rest.is_empty() {
        let d = dim - rest.len();
        for (w, v) in w.iter().zip(values.chunks(stride)) {
            for (o, v) in rest.iter_mut().zip(&v[d..dim]) {
                *o = w.mul_add(v.float(), *o);
            }
        }
    }
}
