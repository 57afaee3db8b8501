//! One generic product over all block types.

use std::ops::Range;

use formats::blocks::BlockType;

use super::super::lanes::LANES;
use super::super::matmul::{Acts, Out};
use super::{Eight, block32, float, grouped, prefetch, super256};

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
    /// NEON; a whole block readable at `p`.
    unsafe fn head(p: *const u8) -> Self::Head;

    /// Quants of group `g`; for groups of 16 only the first two count.
    ///
    /// # Safety
    /// NEON; a whole block readable at `p`; `g < LEN / GROUP`.
    unsafe fn quants(p: *const u8, head: &Self::Head, g: usize) -> [Eight; 4];

    /// Scale of group `g`.
    fn scale(head: &Self::Head, g: usize) -> f32;

    /// Minimum of group `g`.
    fn min(head: &Self::Head, g: usize) -> f32;
}

/// Products of `W` weight rows and `R` activation rows.
///
/// # Safety
/// NEON; `blocks` blocks at each `w`, `blocks × LEN` floats at each `x`, and as many
/// groups of sums at each `sums` when the type has minima.
#[inline(always)]
unsafe fn accumulate<T: Groups, const W: usize, const R: usize>(
    w: [*const u8; W],
    x: [*const f32; R],
    sums: [*const f32; R],
    blocks: usize,
    ahead: usize,
    acc: &mut [[Eight; R]; W],
) {
    let per_block = T::LEN / T::GROUP;
    for b in 0..blocks {
        for i in 0..W {
            // SAFETY: `b < blocks`; every pointer below stays inside what the contract promises.
            unsafe {
                let p = w[i].add(b * T::BYTES);
                if R == 1 {
                    // The next rows: short rows are too short for the hardware to see a pattern.
                    prefetch::<false>(p.wrapping_add(ahead));
                }
                let head = T::head(p);
                for g in 0..per_block {
                    let q = T::quants(p, &head, g);
                    let scale = Eight::splat(T::scale(&head, g));
                    let at = b * per_block + g;
                    for r in 0..R {
                        let x = x[r].add(at * T::GROUP);
                        let mut t = q[0].mul(Eight::load(x));
                        t = q[1].fma(Eight::load(x.add(LANES)), t);
                        if T::GROUP == 32 {
                            t = q[2].fma(Eight::load(x.add(2 * LANES)), t);
                            t = q[3].fma(Eight::load(x.add(3 * LANES)), t);
                        }
                        // A scale of one would give the same bits as the plain sum.
                        acc[i][r] = if T::SCALED {
                            scale.fma(t, acc[i][r])
                        } else {
                            acc[i][r].add(t)
                        };
                        if T::MIN {
                            let m = Eight::splat(T::min(&head, g));
                            let s = Eight::load(sums[r].add(at * LANES));
                            acc[i][r] = m.fma(s, acc[i][r]);
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
        let mut acc = [[Eight::splat(0.0); R]; W];
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
                out.set(r + l, i + k, acc.fold());
            }
        }
    }
}

/// All products of weight rows `rows`.
///
/// # Safety
/// NEON; `weights` holds `rows.end` rows; columns `rows` of `out` are this task's.
#[target_feature(enable = "neon")]
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
/// NEON; `weights` holds `rows.end` rows of `row_bytes`; columns `rows` of `out` are
/// this task's to write.
pub(crate) unsafe fn matmul(
    ty: BlockType,
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Acts<'_>,
    out: Out,
) {
    assert!(weights.len() >= rows.end * row_bytes);
    // SAFETY: by the contract.
    unsafe {
        match ty {
            BlockType::F32 => tile::<float::F32>(weights, row_bytes, rows, x, out),
            BlockType::F16 => tile::<float::F16>(weights, row_bytes, rows, x, out),
            BlockType::BF16 => tile::<float::Bf16>(weights, row_bytes, rows, x, out),
            BlockType::Q4_0 => tile::<block32::Q4_0>(weights, row_bytes, rows, x, out),
            BlockType::Q4_1 => tile::<block32::Q4_1>(weights, row_bytes, rows, x, out),
            BlockType::Q5_0 => tile::<block32::Q5_0>(weights, row_bytes, rows, x, out),
            BlockType::Q5_1 => tile::<block32::Q5_1>(weights, row_bytes, rows, x, out),
            BlockType::Q8_0 => tile::<block32::Q8_0>(weights, row_bytes, rows, x, out),
            BlockType::IQ4_NL => tile::<block32::Iq4Nl>(weights, row_bytes, rows, x, out),
            BlockType::Q2_K => tile::<super256::Q2K>(weights, row_bytes, rows, x, out),
            BlockType::Q3_K => tile::<super256::Q3K>(weights, row_bytes, rows, x, out),
            BlockType::Q4_K => tile::<super256::Q4K>(weights, row_bytes, rows, x, out),
            BlockType::Q5_K => tile::<super256::Q5K>(weights, row_bytes, rows, x, out),
            BlockType::Q6_K => tile::<super256::Q6K>(weights, row_bytes, rows, x, out),
            BlockType::IQ1_S => tile::<grouped::Iq1S>(weights, row_bytes, rows, x, out),
            BlockType::IQ1_M => tile::<grouped::Iq1M>(weights, row_bytes, rows, x, out),
            BlockType::IQ2_XXS => tile::<grouped::Iq2Xxs>(weights, row_bytes, rows, x, out),
            BlockType::IQ2_XS => tile::<grouped::Iq2Xs>(weights, row_bytes, rows, x, out),
            BlockType::IQ2_S => tile::<grouped::Iq2S>(weights, row_bytes, rows, x, out),
            BlockType::IQ3_XXS => tile::<grouped::Iq3Xxs>(weights, row_bytes, rows, x, out),
            BlockType::IQ3_S => tile::<grouped::Iq3S>(weights, row_bytes, rows, x, out),
            BlockType::IQ4_XS => tile::<grouped::Iq4Xs>(weights, row_bytes, rows, x, out),
            BlockType::TQ1_0 => tile::<grouped::Tq1_0>(weights, row_bytes, rows, x, out),
            BlockType::TQ2_0 => tile::<grouped::Tq2_0>(weights, row_bytes, rows, x, out),
            BlockType::MXFP4 => tile::<grouped::Mxfp4>(weights, row_bytes, rows, x, out),
        }
    }
}
