//! Heads turned by a Hadamard matrix before they are kept in few bits.
//!
//! Some dimensions of keys are much larger than the rest, and a block of 32 has one scale. An
//! orthogonal matrix spreads them over all dimensions, and changes no product of a query with a
//! key as long as both are turned; a sum of turned values is turned back. (Ashkboos et al.,
//! QuaRot, 2024.) Only sums and differences in a fixed order: all processors get the same bits.

/// Turns each head of `x` in pieces of the largest power of two that divides it: `H·x / √n`. Done
/// twice it changes nothing (but for rounding).
pub(super) fn turn(x: &mut [f32], head_dim: usize) {
    let n = 1 << head_dim.trailing_zeros();
    let scale = 1.0 / (n as f32).sqrt();
    for x in x.chunks_exact_mut(n) {
        let mut half = 1;
        while half < n {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        for v in x {
            *v *= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::noise::Noise;

    #[test]
    fn products_stay_and_twice_is_nothing() {
        let mut noise = Noise::new(31);
        for dim in [32, 64, 96, 128] {
            let (a, b) = (noise.take(2 * dim), noise.take(2 * dim));
            let (mut c, mut d) = (a.clone(), b.clone());
            turn(&mut c, dim);
            turn(&mut d, dim);
            let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let size = dot(&a, &a).sqrt() * dot(&b, &b).sqrt();
            assert!((dot(&a, &b) - dot(&c, &d)).abs() < 1e-5 * size, "{dim}");
            // One that stands out no longer does.
            let mut one = vec![0.0; dim];
            one[5] = 1.0;
            turn(&mut one, dim);
            assert!(one.iter().all(|v| v.abs() < 0.18), "{dim}: {one:?}");
            turn(&mut c, dim);
            for (a, c) in a.iter().zip(&c) {
                assert!((a - c).abs() < 1e-5 * size);
            }
        }
    }
}
