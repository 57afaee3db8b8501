//! Keys and values in f16.

use half::f16;

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

/// `acc[d] += w · v[d]`, fused.
pub(crate) fn add_scaled(acc: &mut [f32], w: f32, v: &[f16]) {
    for (a, v) in acc.iter_mut().zip(v) {
        *a = w.mul_add(v.to_f32(), *a);
    }
}
