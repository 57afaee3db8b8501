//! The search behind the IQ3_S encoder: scales, and for every four magnitudes the codebook entry
//! nearest under their importances.
//!
//! A magnitude is `step · level`, levels odd from 1 to 15. All 8⁴ combinations of four levels
//! would be one cell each around its combination; the codebook has 512 of them. A point in the
//! cell of an entry is nearest to that entry whatever the importances, since the combinations form
//! a lattice; for the other cells a list of the entries around is made once, and only these are
//! compared.

use std::sync::LazyLock;

use half::f16;

use super::QK_K;
use super::grids::IQ3_S_GRID;
use super::half_scale::saturate;
use super::search::inverse;

const SUB_BLOCKS: usize = 8;
/// Fours in a sub-block.
const FOURS: usize = 8;
/// The largest scale: `2s + 1` for `s` of four bits.
const LIMIT: f32 = 31.0;

/// Levels the largest magnitude of a sub-block is tried at. The smallest are for sub-blocks of
/// almost equal magnitudes.
const TRIES: [f32; 15] = [
    1.0, 3.0, 6.0, 8.5, 10.2, 11.6, 12.6, 13.4, 14.2, 15.0, 15.8, 16.7, 17.8, 19.5, 23.0,
];
/// Rounds of nearest entries and least squares after the best try.
const POLISH: usize = 2;
/// Shared factors to start from, relative to the one that gives the largest scale the largest
/// integer: each lays another grid over the sub-blocks' scales.
const STARTS: [f32; 6] = [1.0, 1.022, 1.045, 1.07, 1.1, 0.97];
/// Rounds of least squares and integer choice from the best start.
const ROUNDS: usize = 3;

/// What a block stores.
pub(super) struct Fit {
    pub(super) d: f16,
    /// `s` of the scales `2s + 1`.
    pub(super) scales: [u8; SUB_BLOCKS],
    pub(super) entries: [u16; QK_K / 4],
}

type Four = [f32; 4];

/// Magnitudes and importances of a sub-block.
struct Sub {
    x: [Four; FOURS],
    w: [Four; FOURS],
}

/// What a step makes of a sub-block: `Σ w·x·l` and `Σ w·l²` of the levels chosen.
#[derive(Clone, Copy)]
struct Sums {
    xl: f32,
    ll: f32,
}

impl Sums {
    /// `Σ w·(x − step·l)²`, less `Σ w·x²`.
    fn error(self, step: f32) -> f32 {
        step * (step * self.ll - 2.0 * self.xl)
    }
}

/// Entries to compare for each cell.
struct Cells {
    /// For cell `l₀ + 8·l₁ + 64·l₂ + 512·l₃`: where its entries start in `near`.
    start: [u32; CELLS + 1],
    near: Vec<u16>,
}

const CELLS: usize = 8 * 8 * 8 * 8;
/// An entry as far as this many different distances from the middle of a cell is compared.
const SHELLS: usize = 3;

static CELL_ENTRIES: LazyLock<Box<Cells>> = LazyLock::new(|| {
    let mut cells = Box::new(Cells {
        start: [0; CELLS + 1],
        near: Vec::new(),
    });
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
        let shells = if all[0].0 == 0 { 1 } else { SHELLS };
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
});

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

impl Cells {
    /// The entry nearest to `y` in `Σ w·(y − level)²`.
    #[inline]
    fn nearest(&self, y: &Four, w: &Four) -> u16 {
        let mut cell = 0;
        for (j, v) in y.iter().enumerate() {
            // The cast takes the whole part: levels are odd, so borders are even.
            cell |= ((v * 0.5).min(7.0) as usize) << (3 * j);
        }
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
            if e < least {
                (best, least) = (entry, e);
            }
        }
        best
    }

    /// What `step` makes of `sub`.
    fn sums(&self, sub: &Sub, step: f32) -> Sums {
        let inv = inverse(step);
        let (mut xl, mut ll) = ([0.0; 4], [0.0; 4]);
        for (x, w) in sub.x.iter().zip(&sub.w) {
            let y = x.map(|v| v * inv);
            let l = &LEVELS[usize::from(self.nearest(&y, w))];
            for j in 0..4 {
                let wl = w[j] * l[j];
                xl[j] += wl * x[j];
                ll[j] += wl * l[j];
            }
        }
        let fold = |v: Four| (v[0] + v[2]) + (v[1] + v[3]);
        Sums {
            xl: fold(xl),
            ll: fold(ll),
        }
    }

    /// The step that errs least, of any real number.
    fn ideal(&self, sub: &Sub) -> f32 {
        let largest = sub.x.iter().flatten().fold(0.0f32, |a, &v| a.max(v));
        let (mut best, mut step) = (0.0, 0.0);
        // Least squares over the levels explains xl²/ll of Σ w·x²: the more the better.
        let mut consider = |s: f32| {
            let Sums { xl, ll } = self.sums(sub, s);
            let better = ll > 0.0 && xl * xl > best * ll;
            if better {
                (best, step) = (xl * xl / ll, xl / ll);
            }
            better.then_some(step)
        };
        if largest == 0.0 {
            return 0.0;
        }
        let mut last = None;
        for t in TRIES {
            last = consider(largest / t).or(last);
        }
        for _ in 0..POLISH {
            let Some(s) = last else { break };
            last = consider(s);
        }
        step
    }

    /// The integer scales near the ideal ones that err least under `d`, and that error less
    /// `Σ w·x²`.
    fn choose(&self, subs: &[Sub; SUB_BLOCKS], ideal: &[f32; SUB_BLOCKS], d: f16) -> Choice {
        let d = d.to_f32();
        let inv = inverse(d);
        let mut out = Choice {
            scales: [0; SUB_BLOCKS],
            sums: [Sums { xl: 0.0, ll: 0.0 }; SUB_BLOCKS],
            error: 0.0,
        };
        for (b, sub) in subs.iter().enumerate() {
            let middle = (ideal[b] * inv - 1.0) * 0.5;
            let low = middle.clamp(0.0, 14.0) as u8;
            let mut least = f32::INFINITY;
            for s in [low, low + 1] {
                let step = d * f32::from(2 * s + 1);
                let sums = self.sums(sub, step);
                let error = sums.error(step);
                if error < least {
                    least = error;
                    (out.scales[b], out.sums[b]) = (s, sums);
                }
            }
            out.error += least;
        }
        out
    }
}

/// Integer scales, and what they make of the sub-blocks.
struct Choice {
    scales: [u8; SUB_BLOCKS],
    sums: [Sums; SUB_BLOCKS],
    error: f32,
}

impl Choice {
    /// Least squares for the shared factor with all integers fixed.
    fn refit(&self) -> Option<f16> {
        let (mut xl, mut ll) = (0.0f64, 0.0f64);
        for (s, sums) in self.scales.iter().zip(&self.sums) {
            let s = f64::from(2 * s + 1);
            xl += s * f64::from(sums.xl);
            ll += s * s * f64::from(sums.ll);
        }
        (ll > 0.0).then(|| saturate((xl / ll) as f32))
    }
}

/// The best scales and entries for magnitudes `x` of importances `w`.
pub(super) fn fit(x: &[f32; QK_K], w: &[f32; QK_K]) -> Fit {
    let cells = &**CELL_ENTRIES;
    let fours = |v: &[f32; QK_K], b: usize| -> [Four; FOURS] {
        std::array::from_fn(|e| std::array::from_fn(|j| v[(b * FOURS + e) * 4 + j]))
    };
    let subs: [Sub; SUB_BLOCKS] = std::array::from_fn(|b| Sub {
        x: fours(x, b),
        w: fours(w, b),
    });
    let ideal: [f32; SUB_BLOCKS] = std::array::from_fn(|b| cells.ideal(&subs[b]));
    let unit = ideal.iter().fold(0.0f32, |a, &b| a.max(b)) / LIMIT;
    let mut d = f16::ZERO;
    let mut best = cells.choose(&subs, &ideal, d);
    for start in STARTS {
        let candidate = saturate(unit * start);
        let found = cells.choose(&subs, &ideal, candidate);
        if found.error < best.error {
            (best, d) = (found, candidate);
        }
    }
    for _ in 0..ROUNDS {
        let Some(candidate) = best.refit() else { break };
        let found = cells.choose(&subs, &ideal, candidate);
        if found.error >= best.error {
            break;
        }
        (best, d) = (found, candidate);
    }
    let mut entries = [0; QK_K / 4];
    for (b, sub) in subs.iter().enumerate() {
        let inv = inverse(d.to_f32() * f32::from(2 * best.scales[b] + 1));
        for (e, (x, w)) in sub.x.iter().zip(&sub.w).enumerate() {
            entries[b * FOURS + e] = cells.nearest(&x.map(|v| v * inv), w);
        }
    }
    Fit {
        d,
        scales: best.scales,
        entries,
    }
}
