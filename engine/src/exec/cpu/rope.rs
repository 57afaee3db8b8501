//! Rotary position embedding in GGUF's Llama layout: dimensions `2i` and `2i + 1` of a head are
//! a pair, turned by `position × frequency[i]`.
//!
//! Angles are computed in f64 with the `libm` crate, not the system's library, so that every
//! machine turns by the same bits.

use crate::model::Rope;

/// Frequencies of the pairs.
pub(super) struct RopeTable {
    freqs: Vec<f64>,
}

impl RopeTable {
    /// `base^(−2i/dims)`, divided by the factor of the pair and the linear scale.
    pub(super) fn new(rope: &Rope) -> Self {
        let freqs = (0..rope.dims / 2)
            .map(|i| {
                let exponent = -2.0 * i as f64 / rope.dims as f64;
                let freq = libm::pow(f64::from(rope.base), exponent);
                let factor = rope.factors.as_ref().map_or(1.0, |f| f64::from(f[i]));
                freq / factor / f64::from(rope.linear_scale)
            })
            .collect();
        Self { freqs }
    }

    /// Appends cosine and sine of every pair at `position`.
    pub(super) fn fill(&self, position: usize, out: &mut Vec<(f32, f32)>) {
        out.extend(self.freqs.iter().map(|f| {
            let angle = position as f64 * f;
            (libm::cos(angle) as f32, libm::sin(angle) as f32)
        }));
    }
}

/// Turns every head of `row` (heads of `head_dim`); dimensions past the table stay.
pub(super) fn rotate(row: &mut [f32], head_dim: usize, table: &[(f32, f32)]) {
    for head in row.chunks_exact_mut(head_dim) {
        for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(table) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}
