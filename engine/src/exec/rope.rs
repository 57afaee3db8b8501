//! Rotary position embedding: two dimensions of a head are a pair, and pair `i` is turned by
//! `position × frequency[i]`. Which two, the architecture says ([`RopeStyle`]).
//!
//! Angles are computed in f64 with the `libm` crate, not the system's library, so that every
//! machine turns by the same bits.

use crate::model::{Rope, RopeStyle};

/// Frequencies of the pairs.
#[derive(Debug)]
pub(in crate::exec) struct RopeTable {
    freqs: Vec<f64>,
    style: RopeStyle,
}

impl RopeTable {
    /// `base^(−2i/dims)`, divided by the factor of the pair and the linear scale.
    pub(in crate::exec) fn new(rope: &Rope) -> Self {
        let freqs = (0..rope.dims / 2)
            .map(|i| {
                let exponent = -2.0 * i as f64 / rope.dims as f64;
                let freq = libm::pow(f64::from(rope.base), exponent);
                let factor = rope.factors.as_ref().map_or(1.0, |f| f64::from(f[i]));
                freq / factor / f64::from(rope.linear_scale)
            })
            .collect();
        Self {
            freqs,
            style: rope.style,
        }
    }

    /// Appends cosine and sine of every pair at `position`.
    pub(in crate::exec) fn fill(&self, position: usize, out: &mut Vec<(f32, f32)>) {
        out.extend(self.freqs.iter().map(|f| {
            let angle = position as f64 * f;
            (libm::cos(angle) as f32, libm::sin(angle) as f32)
        }));
    }

    /// Turns every head of `row` (heads of `head_dim`) by what [`Self::fill`] gave for its
    /// position; dimensions past the table stay.
    pub(in crate::exec) fn rotate(&self, row: &mut [f32], head_dim: usize, turns: &[(f32, f32)]) {
        let turn = |a: f32, b: f32, (cos, sin): (f32, f32)| (a * cos - b * sin, a * sin + b * cos);
        for head in row.chunks_exact_mut(head_dim) {
            match self.style {
                RopeStyle::Interleaved => {
                    for ([a, b], by) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                        (*a, *b) = turn(*a, *b, *by);
                    }
                }
                RopeStyle::HalfSplit => {
                    let Some((first, rest)) = head.split_at_mut_checked(turns.len()) else {
                        continue;
                    };
                    for ((a, b), by) in first.iter_mut().zip(rest).zip(turns) {
                        (*a, *b) = turn(*a, *b, *by);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pairs of a head of six: which values move, and by how much.
    #[test]
    fn styles_pair_other_values() {
        let table = |style| {
            RopeTable::new(&Rope {
                dims: 4,
                base: 100.0,
                linear_scale: 1.0,
                factors: None,
                style,
            })
        };
        let (x, angles) = ([1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3.0_f32, 0.3]);
        for (style, pairs) in [
            (RopeStyle::Interleaved, [(0, 1), (2, 3)]),
            (RopeStyle::HalfSplit, [(0, 2), (1, 3)]),
        ] {
            let table = table(style);
            let mut turns = Vec::new();
            table.fill(3, &mut turns);
            let mut row = [x, x].concat();
            table.rotate(&mut row, 6, &turns);
            let mut want = x;
            for ((a, b), angle) in pairs.into_iter().zip(angles) {
                want[a] = x[a] * angle.cos() - x[b] * angle.sin();
                want[b] = x[a] * angle.sin() + x[b] * angle.cos();
            }
            for (got, want) in row.iter().zip([want, want].concat()) {
                assert!((got - want).abs() < 1e-5, "{style:?}: {row:?}");
            }
        }
    }
}
