//! Keys and values in f16.

use half::f16;

use super::super::integer::SPAN;
use super::super::lanes::{LANES, fold};

/// `q · k` in lanes.
pub(crate) fn dot_f16(q: &[f32], k: &[f16]) -> f32 {
    let mut acc = [0.0; LANES];
    for (q, k) in q.chunks(LANES).zip(k.chunks(LANES)) {
        for ((a, q), k) in acc.iter_mut().zip(q).zip(k) {
            *a = q.mul_add(k.to_f32(), *a);
        }
    }
    fold(&acc)
}

/// `q · k` in lanes, `k` in floats.
pub(crate) fn dot_f32(q: &[f32], k: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    for (q, k) in q.chunks(LANES).zip(k.chunks(LANES)) {
        for ((a, q), k) in acc.iter_mut().zip(q).zip(k) {
            *a = q.mul_add(*k, *a);
        }
    }
    fold(&acc)
}

/// `scores[r·SPAN + t] = (q[r] · k[t]) × scale`.
pub(crate) fn scores_f16(q: &[f32], keys: &[f16], dim: usize, scale: f32, scores: &mut [f32]) {
    for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_mut(SPAN)) {
        for (s, k) in scores.iter_mut().zip(keys.chunks_exact(dim)) {
            *s = dot_f16(q, k) * scale;
        }
    }
}

/// `sums[r][d] = Σ weights[r·SPAN + t] · v[t][d]`, ascending `t`, fused.
pub(crate) fn sums_f16(weights: &[f32], values: &[f16], dim: usize, sums: &mut [f32]) {
    for (w, sums) in weights.chunks(SPAN).zip(sums.chunks_exact_mut(dim)) {
        sums.fill(0.0);
        for (w, v) in w.iter().zip(values.chunks_exact(dim)) {
            for (a, v) in sums.iter_mut().zip(v) {
                *a = w.mul_add(v.to_f32(), *a);
            }
        }
    }
}
