//! Products of many activation rows: a panel of weights is made floats once and meets all of them.
//!
//! The order of every sum is that of [`super::super::lanes`]; which columns lie in a panel does not show, since sums go on
//! from one to the next.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::lanes::LANES;
use super::super::matmul::{Acts, Out};
use super::fold;
use super::matmul::Groups;
use Registers::{Sixteen, ThirtyTwo};

/// Weight rows of a panel.
const ROWS: usize = 16;
/// Columns of a panel: whole super-blocks, and eight activation rows of it fit into the first cache.
const COLS: usize = 768;
/// Activation rows that meet a panel while it lasts.
const ACTS: usize = 128;
/// The widest plain block, in bytes.
const PLAIN: usize = 128;

/// How many registers there are for vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registers {
    /// As AVX2 has.
    Sixteen,
    /// As AVX-512 has, also for its narrower vectors (VL).
    ThirtyTwo,
}

/// Weights as floats: quants, scales, minima. What is not used is not written.
#[repr(C, align(64))]
struct Panel {
    quants: [MaybeUninit<f32>; ROWS * COLS],
    scales: [MaybeUninit<f32>; ROWS * COLS / 16],
    mins: [MaybeUninit<f32>; ROWS * COLS / 16],
    /// Sums in eight lanes: activation row after activation row, of each all weight rows.
    sums: [MaybeUninit<f32>; ACTS * ROWS * LANES],
}

impl Panel {
    // A sixteenth of a thread's stack, and nothing to allocate or to clear.
    #[allow(clippy::large_stack_arrays)]
    const NEW: Self = Self {
        quants: [const { MaybeUninit::uninit() }; ROWS * COLS],
        scales: [const { MaybeUninit::uninit() }; ROWS * COLS / 16],
        mins: [const { MaybeUninit::uninit() }; ROWS * COLS / 16],
        sums: [const { MaybeUninit::uninit() }; ACTS * ROWS * LANES],
    };

    /// Makes a block of row `i` floats, those of column `at` and after.
    ///
    /// # Safety
    /// AVX2, F16C; a whole block readable at `p`; `i < ROWS`, and the block ends within `COLS`.
    #[inline(always)]
    unsafe fn block<T: Groups>(&mut self, i: usize, at: usize, p: *const u8) {
        // SAFETY: by the contract.
        unsafe {
            let head = T::head(p);
            for g in 0..T::LEN / T::GROUP {
                let q = T::quants(p, &head, g);
                let to = &mut self.quants[i * COLS + at + g * T::GROUP..][..T::GROUP];
                for (to, q) in to.chunks_exact_mut(LANES).zip(q) {
                    _mm256_storeu_ps(to.as_mut_ptr().cast(), q);
                }
                let group = i * (COLS / 16) + at / T::GROUP + g;
                // A scale of one gives the same bits as the plain sum.
                let scale = if T::SCALED { T::scale(&head, g) } else { 1.0 };
                self.scales[group].write(scale);
                self.mins[group].write(T::min(&head, g));
            }
        }
    }
}

/// What a panel meets.
struct Meeting<'a> {
    /// Weight rows that are there.
    rows: usize,
    /// Groups of each.
    groups: usize,
    /// Activations, from this group on.
    x: Acts<'a>,
    from: usize,
    acts: Range<usize>,
    /// Whether sums begin here.
    first: bool,
}

/// `W × R` sums with the groups of a panel: weight rows from `i` on, activation rows from `r` on.
///
/// # Safety
/// AVX2, FMA; the panel was filled for the meeting, and both have the rows.
#[inline(always)]
unsafe fn cell<const GROUP: usize, const MIN: bool, const W: usize, const R: usize>(
    panel: &mut Panel,
    m: &Meeting<'_>,
    i: usize,
    r: usize,
) {
    let x: [*const f32; R] =
        std::array::from_fn(|k| m.x.padded_row(r + k)[m.from * GROUP..].as_ptr());
    let sums: [*const f32; R] = std::array::from_fn(|k| {
        let sums = m.x.sums(r + k);
        sums[if MIN { m.from * LANES } else { 0 }..].as_ptr()
    });
    let quants: *const f32 = panel.quants.as_ptr().cast();
    let scales: *const f32 = panel.scales.as_ptr().cast();
    let mins: *const f32 = panel.mins.as_ptr().cast();
    let place: *mut f32 = panel.sums.as_mut_ptr().cast();
    let place =
        |w: usize, k: usize| place.wrapping_add(((r + k - m.acts.start) * ROWS + i + w) * LANES);
    // SAFETY: by the contract.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); R]; W];
        if !m.first {
            for w in 0..W {
                for k in 0..R {
                    acc[w][k] = _mm256_loadu_ps(place(w, k));
                }
            }
        }
        for g in 0..m.groups {
            let mut q = [[_mm256_setzero_ps(); 4]; W];
            let mut scale = [_mm256_setzero_ps(); W];
            let mut min = scale;
            for w in 0..W {
                let p = quants.add((i + w) * COLS + g * GROUP);
                for j in 0..GROUP / LANES {
                    q[w][j] = _mm256_loadu_ps(p.add(j * LANES));
                }
                let group = (i + w) * (COLS / 16) + g;
                scale[w] = _mm256_broadcast_ss(&*scales.add(group));
                if MIN {
                    min[w] = _mm256_broadcast_ss(&*mins.add(group));
                }
            }
            for k in 0..R {
                let p = x[k].add(g * GROUP);
                let first = _mm256_loadu_ps(p);
                let mut t = [first; W];
                for w in 0..W {
                    t[w] = _mm256_mul_ps(q[w][0], first);
                }
                for j in 1..GROUP / LANES {
                    let x = _mm256_loadu_ps(p.add(j * LANES));
                    for w in 0..W {
                        t[w] = _mm256_fmadd_ps(q[w][j], x, t[w]);
                    }
                }
                for w in 0..W {
                    acc[w][k] = _mm256_fmadd_ps(scale[w], t[w], acc[w][k]);
                }
                if MIN {
                    let s = _mm256_loadu_ps(sums[k].add(g * LANES));
                    for w in 0..W {
                        acc[w][k] = _mm256_fmadd_ps(min[w], s, acc[w][k]);
                    }
                }
            }
        }
        for w in 0..W {
            for k in 0..R {
                _mm256_storeu_ps(place(w, k), acc[w][k]);
            }
        }
    }
}

/// All sums of a meeting, `W` weight rows at a time.
///
/// # Safety
/// AVX2, FMA; the panel was filled for the meeting.
#[inline(always)]
unsafe fn meet<const GROUP: usize, const MIN: bool, const W: usize>(
    panel: &mut Panel,
    m: &Meeting<'_>,
) {
    let mut r = m.acts.start;
    while r < m.acts.end {
        let step = match m.acts.end - r {
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        // SAFETY: by the contract; as many rows are left.
        unsafe {
            let pairs = m.rows / W * W;
            for i in (0..pairs).step_by(W) {
                match step {
                    8 => cell::<GROUP, MIN, W, 8>(panel, m, i, r),
                    4 => cell::<GROUP, MIN, W, 4>(panel, m, i, r),
                    2 => cell::<GROUP, MIN, W, 2>(panel, m, i, r),
                    _ => cell::<GROUP, MIN, W, 1>(panel, m, i, r),
                }
            }
            for i in pairs..m.rows {
                for r in r..r + step {
                    cell::<GROUP, MIN, 1, 1>(panel, m, i, r);
                }
            }
        }
        r += step;
    }
}

/// [`meet`] with sixteen registers: one weight row, eight activation rows.
///
/// # Safety
/// AVX2, FMA, F16C; else as there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn meet_16<const GROUP: usize, const MIN: bool>(panel: &mut Panel, m: &Meeting<'_>) {
    // SAFETY: by the contract.
    unsafe { meet::<GROUP, MIN, 1>(panel, m) }
}

/// [`meet`] with thirty-two: two weight rows, so that half as much is read for each product.
///
/// # Safety
/// AVX-512 F and VL beside AVX2, FMA, F16C; else as there.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl")]
unsafe fn meet_32<const GROUP: usize, const MIN: bool>(panel: &mut Panel, m: &Meeting<'_>) {
    // SAFETY: by the contract.
    unsafe { meet::<GROUP, MIN, 2>(panel, m) }
}

/// All products of weight rows `rows`.
///
/// # Safety
/// AVX2, FMA, F16C, and if there are thirty-two `registers` AVX-512 F and VL; `weights` holds `rows.end` rows, which are whole
/// blocks or, of plain floats, have a tail; columns `rows` of `out` are this task's.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn products<T: Groups>(
    registers: Registers,
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Acts<'_>,
    out: Out,
) {
    let mut panel = Panel::NEW;
    let blocks = row_bytes.div_ceil(T::BYTES);
    let per_panel = COLS / T::LEN;
    for start in (0..x.rows()).step_by(ACTS) {
        let acts = start..x.rows().min(start + ACTS);
        for i in rows.clone().step_by(ROWS) {
            let n = ROWS.min(rows.end - i);
            for b in (0..blocks).step_by(per_panel) {
                let here = b..blocks.min(b + per_panel);
                for k in 0..n {
                    let row = &weights[(i + k) * row_bytes..(i + k + 1) * row_bytes];
                    for c in here.clone() {
                        let bytes = &row[c * T::BYTES..];
                        let at = (c - b) * T::LEN;
                        // SAFETY: a whole block is there, or what there is of it and zeros.
                        unsafe {
                            if bytes.len() < T::BYTES {
                                assert!(T::BYTES <= PLAIN);
                                let mut padded = [0; PLAIN];
                                padded[..bytes.len()].copy_from_slice(bytes);
                                panel.block::<T>(k, at, padded.as_ptr());
                            } else {
                                panel.block::<T>(k, at, bytes.as_ptr());
                            }
                        }
                    }
                }
                let m = Meeting {
                    rows: n,
                    groups: here.len() * (T::LEN / T::GROUP),
                    x: *x,
                    from: b * (T::LEN / T::GROUP),
                    acts: acts.clone(),
                    first: b == 0,
                };
                // SAFETY: by the contract; the panel has just been filled.
                unsafe {
                    match (registers, T::GROUP, T::MIN) {
                        (Sixteen, 16, false) => meet_16::<16, false>(&mut panel, &m),
                        (Sixteen, 16, true) => meet_16::<16, true>(&mut panel, &m),
                        (Sixteen, _, false) => meet_16::<32, false>(&mut panel, &m),
                        (Sixteen, _, true) => meet_16::<32, true>(&mut panel, &m),
                        (ThirtyTwo, 16, false) => meet_32::<16, false>(&mut panel, &m),
                        (ThirtyTwo, 16, true) => meet_32::<16, true>(&mut panel, &m),
                        (ThirtyTwo, _, false) => meet_32::<32, false>(&mut panel, &m),
                        (ThirtyTwo, _, true) => meet_32::<32, true>(&mut panel, &m),
                    }
                }
            }
            for (k, r) in acts.clone().enumerate() {
                for j in 0..n {
                    // SAFETY: the sums of these rows were written, if there was a column; the columns of `out` are
                    // this task's.
                    unsafe {
                        let p = panel.sums.as_ptr().add((k * ROWS + j) * LANES);
                        let sum = if blocks == 0 {
                            0.0
                        } else {
                            fold(_mm256_loadu_ps(p.cast()))
                        };
                        out.set(r, i + j, sum);
                    }
                }
            }
        }
    }
}
