//! Scores to weights.

use super::super::lanes::LANES;
use super::super::scalar;
use super::{Eight, exp8};

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
