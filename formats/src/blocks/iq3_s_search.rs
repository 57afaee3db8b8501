//! The search behind the IQ3_S encoder: scales, and for every four magnitudes the codebook entry
//! nearest under their importances.
//!
//! A magnitude is `step · level`, levels odd from 1 to 15. All 8⁴ combinations of four levels
//! would be one cell each around its combination; the codebook has 512 of them. A point in the
//! cell of an entry is nearest to that entry whatever the importances, since the combinations form
//! a lattice; for the other cells a list of the entries around is made once, and only these are
//! compared.

// The pieces must be inlined, or they would be compiled without the wider registers.
#![allow(clippy::inline_always)]

use std::sync::LazyLock;

use half::f16;

use super::grids::IQ3_S_GRID;
use super::search::inverse;
use super::shared_scale::{Integers, Kept, Search, Sums, ideal, share, wider};
use super::{Effort, QK_K};

const SUB_BLOCKS: usize = 8;
/// Fours in a sub-block.
const FOURS: usize = 8;

/// Levels that the largest magnitude of a sub-block is tried at. The smallest are for sub-blocks
/// of almost equal magnitudes.
const TRIES: [f32; 11] = [
    1.0, 3.0, 7.0, 10.2, 12.0, 13.2, 14.4, 15.6, 17.0, 19.0, 22.0,
];

const MORE_TRIES: [f32; 28] = [
    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 9.6, 10.2, 10.8, 11.4, 12.0, 12.6, 13.2, 13.8,
    14.4, 15.0, 15.6, 16.2, 17.0, 18.0, 19.0, 20.5, 22.0, 24.0, 27.0,
];

/// What a block stores.
pub(super) struct Fit {
    pub(super) d: f16,
    /// `s` of the scales `2s + 1`.
    pub(super) scales: [u8; SUB_BLOCKS],
    pub(super) entries: [u16; QK_K / 4],
}

type Four = [f32; 4];

/// Entries to compare for each cell.
struct Cells {
    /// For cell `l₀ + 8·l₁ + 64·l₂ + 512·l₃`: where its entries start in `near`.
    start: Vec<u32>,
    near: Vec<u16>,
}

const CELLS: usize = 8 * 8 * 8 * 8;

/// The lists for a quick search and for a long one.
static CELL_ENTRIES: [LazyLock<Cells>; 2] =
    [LazyLock::new(|| cells(5)), LazyLock::new(|| cells(16))];

/// Lists of the entries in the nearest `shells` different distances from the middle of each cell.
fn cells(shells: usize) -> Cells {
    let mut cells = Cells {
        start: vec![0; CELLS + 1],
        near: Vec::new(),
    };
    for cell in 0..CELLS {
        let middle: [i32; 4] = std::array::from_fn(|j| 2 * (cell >> (3 * j) & 7) as i32 + 1);
        let distance = |entry: &[i8; 4]| -> u16 {
            let each = (0..4).map(|j| (middle[j] - i32::from(entry[j])).pow(2));
            each.sum::<i32>() as u16
        };
        let mut all: Vec<(u16, u16)> = (0u16..)
            .zip(&IQ3_S_GRID)
            .map(|(n, e)| (distance(e), n))
            .collect();
        all.sort_unstable();
        let shells = if all[0].0 == 0 { 1 } else { shells };
        let (mut seen, mut last) = (0, u16::MAX);
        for (distance, entry) in all {
            if distance != last {
                (seen, last) = (seen + 1, distance);
            }
            if seen > shells {
                break;
            }
            cells.near.push(entry);
        }
        cells.start[cell + 1] = cells.near.len() as u32;
    }
    cells
}

/// The codebook as floats.
static LEVELS: [Four; 512] = {
    let mut out = [[0.0; 4]; 512];
    let mut n = 0;
    while n < 512 {
        let mut j = 0;
        while j < 4 {
            out[n][j] = IQ3_S_GRID[n][j] as f32;
            j += 1;
        }
        n += 1;
    }
    out
};

/// The cells of a sub-block whose values are `y` steps.
#[inline(always)]
fn cells_of(y: &[Four; FOURS]) -> [usize; FOURS] {
    // Adding 2²³ leaves no fraction bits, and the level in the last ones: this vectorises, which
    // a cast to an integer of any size does not.
    const SHIFT: f32 = 8_388_608.0;
    let levels = y.map(|four| {
        four.map(|v| {
            // Levels are odd: 1 is the number 0, 3 the number 1.
            let number = v * 0.5 - 0.5;
            let low = if number > 0.0 { number } else { 0.0 };
            let bound = if low < 7.0 { low } else { 7.0 };
            (bound + SHIFT).to_bits() & 7
        })
    });
    levels.map(|l| (l[0] | l[1] << 3 | l[2] << 6 | l[3] << 9) as usize)
}

impl Cells {
    /// The entry nearest to `y`, a point of `cell`, in `Σ w·(y − level)²`.
    #[inline(always)]
    fn nearest(&self, cell: usize, y: &Four, w: &Four) -> u16 {
        let near = &self.near[self.start[cell] as usize..self.start[cell + 1] as usize];
        if let [only] = near {
            return *only;
        }
        let slope: Four = std::array::from_fn(|j| 2.0 * w[j] * y[j]);
        let (mut best, mut least) = (0, f32::INFINITY);
        for &entry in near {
            let l = &LEVELS[usize::from(entry)];
            let e: Four = std::array::from_fn(|j| l[j] * (w[j] * l[j] - slope[j]));
            let e = (e[0] + e[2]) + (e[1] + e[3]);
            (best, least) = if e < least { (entry, e) } else { (best, least) };
        }
        best
    }

    /// The entries nearest to the values of a sub-block under `step`.
    #[inline(always)]
    fn entries(&self, x: &[Four; FOURS], w: &[Four; FOURS], step: f32) -> [u16; FOURS] {
        let inv = inverse(step);
        let y = x.map(|four| four.map(|v| v * inv));
        let cells = cells_of(&y);
        std::array::from_fn(|e| self.nearest(cells[e], &y[e], &w[e]))
    }

    /// The sums of the levels nearest under `step`.
    #[inline(always)]
    fn sums(&self, x: &[Four; FOURS], w: &[Four; FOURS], step: f32) -> Sums {
        let (mut xl, mut ll) = ([0.0; 4], [0.0; 4]);
        for (e, entry) in self.entries(x, w, step).into_iter().enumerate() {
            let l = &LEVELS[usize::from(entry)];
            for j in 0..4 {
                let wl = w[e][j] * l[j];
                xl[j] += wl * x[e][j];
                ll[j] += wl * l[j];
            }
        }
        let fold = |v: Four| (v[0] + v[2]) + (v[1] + v[3]);
        Sums {
            xl: fold(xl),
            ll: fold(ll),
        }
    }
}

/// Scales are `2s + 1`, `s` of four bits.
struct Scales;

impl Integers for Scales {
    const LEAST: i8 = 1;
    const MOST: i8 = 31;
    const STRIDE: i8 = 2;

    #[inline(always)]
    fn below(v: f32) -> i8 {
        // The cast takes the whole part.
        let s = ((v - 1.0) * 0.5).clamp(0.0, 14.0) as i8;
        2 * s + 1
    }
}

#[inline(always)]
fn fit_inner(x: &[f32; QK_K], w: &[f32; QK_K], effort: Effort) -> Fit {
    let (search, cells) = match effort {
        Effort::Normal => (Search::normal(&TRIES), &*CELL_ENTRIES[0]),
        Effort::High => (Search::high(&MORE_TRIES), &*CELL_ENTRIES[1]),
    };
    let x: &[[Four; FOURS]; SUB_BLOCKS] = bytemuck::cast_ref(x);
    let w: &[[Four; FOURS]; SUB_BLOCKS] = bytemuck::cast_ref(w);
    let mut kept = [Kept::default(); SUB_BLOCKS];
    for ((x, w), out) in x.iter().zip(w).zip(&mut kept) {
        let largest = x.iter().flatten().fold(0.0f32, |a, &v| a.max(v));
        *out = ideal(largest, &search, |step| cells.sums(x, w, step));
    }
    let (d, scales) = share::<Scales, SUB_BLOCKS>(&kept, &search, false, |b, step| {
        cells.sums(&x[b], &w[b], step)
    });
    let mut entries = [0; QK_K / 4];
    for (b, entries) in entries.as_chunks_mut::<FOURS>().0.iter_mut().enumerate() {
        *entries = cells.entries(&x[b], &w[b], d.to_f32() * f32::from(scales[b]));
    }
    Fit {
        d,
        scales: scales.map(|k| (k / 2) as u8),
        entries,
    }
}

wider! {
    /// The best scales and entries for magnitudes `x` of importances `w`.
    fn fit(x: &[f32; QK_K], w: &[f32; QK_K], effort: Effort) -> Fit = fit_inner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_close_to_the_nearest_and_alike_on_every_processor() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let (mut ours, mut least) = (0.0, 0.0);
        for i in 0..20 {
            let x: [f32; QK_K] = std::array::from_fn(|_| next() * next());
            let w: [f32; QK_K] = std::array::from_fn(|_| next() + 0.01);
            let effort = Effort::ALL[i % 2];
            let (wide, narrow) = (fit(&x, &w, effort), super::wider::narrow(&x, &w, effort));
            assert_eq!((wide.d, wide.scales), (narrow.d, narrow.scales));
            assert_eq!(wide.entries, narrow.entries);
            for (e, entry) in wide.entries.iter().enumerate() {
                let step = wide.d.to_f32() * f32::from(2 * wide.scales[e / 8] + 1);
                let miss = |l: &Four| -> f32 {
                    let each = (0..4).map(|j| w[4 * e + j] * (x[4 * e + j] - step * l[j]).powi(2));
                    each.sum()
                };
                ours += miss(&LEVELS[usize::from(*entry)]);
                least += LEVELS.iter().map(miss).fold(f32::INFINITY, f32::min);
            }
        }
        assert!(ours < 1.005 * least, "{ours} against {least}");
    }
}
