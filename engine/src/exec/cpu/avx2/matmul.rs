//! One generic product over all block types.

use std::arch::x86_64::*;
use std::ops::Range;

use formats::blocks::BlockType;

use super::super::lanes::LANES;
use super::super::matmul::{Acts, Out};
use super::panel::{self, Registers};
use super::{block32, float, fold, grouped, super256};

/// From so many activation rows on weights are made floats once for all of them.
const fn many(registers: Registers) -> usize {
    match registers {
        Registers::Sixteen => 32,
        Registers::ThirtyTwo => 16,
    }
}

/// How a block type gives its quants to the kernel.
pub(super) trait Groups {
    /// Bytes of a block.
    const BYTES: usize;
    /// Weights of a block.
    const LEN: usize;
    /// Weights of a group: 16 or 32.
    const GROUP: usize;
    /// Whether groups have a scale (plain floats have none).
    const SCALED: bool;
    /// Whether groups have a minimum.
    const MIN: bool;
    /// What is decoded once per block.
    type Head: Copy;

    /// Decodes what the groups share.
    ///
    /// # Safety
    /// AVX2, F16C; a whole block readable at `p`.
    unsafe fn head(p: *const u8) -> Self::Head;

    /// Quants of group `g`; for groups of 16 only the first two registers count.
    ///
    /// # Safety
    /// AVX2, F16C; a whole block readable at `p`; `g < LEN / GROUP`.
    unsafe fn quants(p: *const u8, head: &Self::Head, g: usize) -> [__m256; 4];

    /// Scale of group `g`.
    fn scale(head: &Self::Head, g: usize) -> f32;

    /// Minimum of group `g`.
    fn min(head: &Self::Head, g: usize) -> f32;
}

/// Products of `W` weight rows and `R` activation rows.
///
/// # Safety
/// AVX2, FMA, F16C; `blocks` blocks at each `w`, `blocks × LEN` floats at each `x`, and as many
/// groups of sums at each `sums` when the type has minima.
#[inline(always)]
unsafe fn accumulate<T: Groups, const W: usize, const R: usize>(
    w: [*const u8; W],
    x: [*const f32; R],
    sums: [*const f32; R],
    blocks: usize,
    ahead: usize,
    acc: &mut [[__m256; R]; W],
) {
    let per_block = T::LEN / T::GROUP;
    for b in 0..blocks {
        for i in 0..W {
            // SAFETY: `b < blocks`; every pointer below stays inside what the contract promises.
            unsafe {
                let p = w[i].add(b * T::BYTES);
                if R == 1 {
                    // The next rows: short rows are too short for the hardware to see a pattern.
                    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast());
                }
                let head = T::head(p);
                for g in 0..per_block {
                    let q = T::quants(p, &head, g);
                    let scale = _mm256_set1_ps(T::scale(&head, g));
                    let at = b * per_block + g;
                    for r in 0..R {
                        let x = x[r].add(at * T::GROUP);
                        let mut t = _mm256_mul_ps(q[0], _mm256_loadu_ps(x));
                        t = _mm256_fmadd_ps(q[1], _mm256_loadu_ps(x.add(LANES)), t);
                        if T::GROUP == 32 {
                            t = _mm256_fmadd_ps(q[2], _mm256_loadu_ps(x.add(2 * LANES)), t);
                            t = _mm256_fmadd_ps(q[3], _mm256_loadu_ps(x.add(3 * LANES)), t);
                        }
                        // A scale of one would give the same bits as the plain sum.
                        acc[i][r] = if T::SCALED {
                            _mm256_fmadd_ps(scale, t, acc[i][r])
                        } else {
                            _mm256_add_ps(acc[i][r], t)
                        };
                        if T::MIN {
                            let m = _mm256_set1_ps(T::min(&head, g));
                            let s = _mm256_loadu_ps(sums[r].add(at * LANES));
                            acc[i][r] = _mm256_fmadd_ps(m, s, acc[i][r]);
                        }
                    }
                }
            }
        }
    }
}

/// `W × R` products written out, the tail of plain-float rows included.
///
/// # Safety
/// As [`accumulate`]; rows `i..i + W` and `r..r + R` exist and are this task's to write.
#[inline(always)]
unsafe fn cell<T: Groups, const W: usize, const R: usize>(
    weights: &[u8],
    row_bytes: usize,
    i: usize,
    x: &Acts<'_>,
    r: usize,
    out: Out,
) {
    let w: [*const u8; W] = std::array::from_fn(|k| weights[(i + k) * row_bytes..].as_ptr());
    let xs: [*const f32; R] = std::array::from_fn(|k| x.padded_row(r + k).as_ptr());
    let sums: [*const f32; R] = std::array::from_fn(|k| x.sums(r + k).as_ptr());
    let blocks = row_bytes / T::BYTES;
    let tail = row_bytes % T::BYTES;
    // SAFETY: rows are whole blocks (or, for plain floats, have a tail that is copied into a
    // zeroed block below); activations are padded to whole groups.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); R]; W];
        accumulate::<T, W, R>(w, xs, sums, blocks, 2 * W * row_bytes, &mut acc);
        if tail != 0 {
            let mut padded = [[0_u8; 128]; W];
            for k in 0..W {
                let start = (i + k) * row_bytes + blocks * T::BYTES;
                padded[k][..tail].copy_from_slice(&weights[start..start + tail]);
            }
            let w = std::array::from_fn(|k| padded[k].as_ptr());
            let xs = xs.map(|p| p.add(blocks * T::LEN));
            accumulate::<T, W, R>(w, xs, sums, 1, 0, &mut acc);
        }
        for (k, acc) in acc.iter().enumerate() {
            for (l, acc) in acc.iter().enumerate() {
                out.set(r + l, i + k, fold(*acc));
            }
        }
    }
}

/// All products of weight rows `rows`, for few activation rows.
///
/// # Safety
/// AVX2, FMA, F16C; `weights` holds `rows.end` rows; columns `rows` of `out` are this task's.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<T: Groups>(
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Acts<'_>,
    out: Out,
) {
    // Activation rows in blocks that stay in the first-level cache while the weights pass by.
    let mut r = 0;
    while r < x.rows() {
        let left = x.rows() - r;
        let step = match left {
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let mut i = rows.start;
        if step == 1 {
            // One activation row: several weight rows at once keep the multipliers busy.
            while i + 4 <= rows.end {
                // SAFETY: by the contract; four rows are left.
                unsafe { cell::<T, 4, 1>(weights, row_bytes, i, x, r, out) };
                i += 4;
            }
        }
        for i in i..rows.end {
            // SAFETY: by the contract; `step` activation rows are left.
            unsafe {
                match step {
                    8 => cell::<T, 1, 8>(weights, row_bytes, i, x, r, out),
                    4 => cell::<T, 1, 4>(weights, row_bytes, i, x, r, out),
                    2 => cell::<T, 1, 2>(weights, row_bytes, i, x, r, out),
                    _ => cell::<T, 1, 1>(weights, row_bytes, i, x, r, out),
                }
            }
        }
        r += step;
    }
}

/// Weight rows `rows` of type `ty` times all activation rows.
///
/// # Safety
/// AVX2, FMA, F16C, and if there are thirty-two `registers` AVX-512 F and VL; `weights` holds `rows.end`
/// rows of `row_bytes`; columns `rows` of `out` are this task's to write.
pub(crate) unsafe fn matmul(
    registers: Registers,
    ty: BlockType,
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Acts<'_>,
    out: Out,
) {
    assert!(weights.len() >= rows.end * row_bytes);
    let few = x.rows() < many(registers);
    macro_rules! products {
        ($t:ty) => {
            // SAFETY: by the contract.
            unsafe {
                if few {
                    tile::<$t>(weights, row_bytes, rows, x, out)
                } else {
                    panel::products::<$t>(registers, weights, row_bytes, rows, x, out)
                }
            }
        };
    }
    match ty {
        BlockType::F32 => products!(float::F32),
        BlockType::F16 => products!(float::F16),
        BlockType::BF16 => products!(float::Bf16),
        BlockType::Q4_0 => products!(block32::Q4_0),
        BlockType::Q4_1 => products!(block32::Q4_1),
        BlockType::Q5_0 => products!(block32::Q5_0),
        BlockType::Q5_1 => products!(block32::Q5_1),
        BlockType::Q8_0 => products!(block32::Q8_0),
        BlockType::IQ4_NL => products!(block32::Iq4Nl),
        BlockType::Q2_K => products!(super256::Q2K),
        BlockType::Q3_K => products!(super256::Q3K),
        BlockType::Q4_K => products!(super256::Q4K),
        BlockType::Q5_K => products!(super256::Q5K),
        BlockType::Q6_K => products!(super256::Q6K),
        BlockType::IQ1_S => products!(grouped::Iq1S),
        BlockType::IQ1_M => products!(grouped::Iq1M),
        BlockType::IQ2_XXS => products!(grouped::Iq2Xxs),
        BlockType::IQ2_XS => products!(grouped::Iq2Xs),
        BlockType::IQ2_S => products!(grouped::Iq2S),
        BlockType::IQ3_XXS => products!(grouped::Iq3Xxs),
        BlockType::IQ3_S => products!(grouped::Iq3S),
        BlockType::IQ4_XS => products!(grouped::Iq4Xs),
        BlockType::TQ1_0 => products!(grouped::Tq1_0),
        BlockType::TQ2_0 => products!(grouped::Tq2_0),
        BlockType::MXFP4 => products!(grouped::Mxfp4),
    }
}
