//! The product of a tile: as many weight rows as a vector has lanes, and all activation rows.

// Pieces without a target feature of their own must be inlined into entry points that have it.
#![allow(clippy::inline_always)]

use std::ops::Range;

use formats::blocks::BlockType;

use super::super::matmul::Out;
use super::vector::{Rows, Vector};
use super::{BLOCK, CodeBlock, Codes, block32, super256};

/// Blocks of 32 that are looked at together: a super-block.
pub(super) const PANEL: usize = 8;
/// Bytes of weights that memory is asked for in advance, or one tile: what is read while it answers.
const FAR: usize = 16 << 10;
/// Activation rows up to which a panel stays in the first cache until it is used.
const NEAR_ROWS: usize = 16;
/// Activation rows that share a buffer of sums.
const MAX_ROWS: usize = 128;

/// How a block type gives its quants to the kernel. A *panel* is a super-block, or as many blocks
/// of 32; it is read in *units*, since one byte may hold bits of more than one block of 32.
pub(super) trait Blocks<V: Vector> {
    /// Bytes of a block.
    const BYTES: usize;
    /// Weights of a block.
    const LEN: usize;
    /// Weights of a group: 16 or 32.
    const GROUP: usize;
    /// Whether groups have a minimum.
    const MIN: bool;
    /// The largest quant as stored, unsigned.
    const MAX: u8;
    /// The quant is the stored one less this: a power of two, or zero.
    const OFFSET: u32;
    /// Blocks of 32 in a unit.
    const UNIT: usize;
    /// What is needed for scales and minima.
    type Head;
    /// The bytes of a unit.
    type Raw;

    /// Reads what scales and minima need.
    ///
    /// # Safety
    /// `V`'s instruction set; a panel of `n` blocks of 32 readable in each of `V::LANES` rows.
    unsafe fn head(p: &Rows, n: usize) -> Self::Head;

    /// Reads unit `u`.
    ///
    /// # Safety
    /// As [`head`](Self::head); the unit is in the panel.
    unsafe fn raw(p: &Rows, u: usize) -> Self::Raw;

    /// Block `r` of unit `u`: word `i` holds the stored quants `4i..4i + 4`.
    ///
    /// # Safety
    /// `V`'s instruction set.
    unsafe fn quants(raw: &Self::Raw, u: usize, r: usize) -> [V; 8];

    /// Scales and minima (if there are any) of group `g` of the panel.
    ///
    /// # Safety
    /// `V`'s instruction set; what `head` read is readable still.
    unsafe fn scales(head: &Self::Head, g: usize) -> (V::F, V::F);
}

/// What the sum of a group's products begins with: what its weights' offset takes off.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn begin<V: Vector, T: Blocks<V>>(x: &CodeBlock, part: usize) -> V {
    // SAFETY: by the contract.
    unsafe {
        if T::OFFSET == 0 || (V::SIGNED && T::MAX == 255) {
            V::lanes(0)
        } else {
            V::lanes(x.minus[part]).shl(T::OFFSET.trailing_zeros() as usize)
        }
    }
}

/// One step of the chain that `super` describes: `acc` plus `i`, the products of a group, scaled.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn add<V: Vector, T: Blocks<V>>(
    x: &CodeBlock,
    part: usize,
    i: V,
    (scale, min): (V::F, V::F),
    acc: V::F,
) -> V::F {
    // SAFETY: by the contract.
    unsafe {
        let acc = V::fma(V::mul(scale, V::splat(x.scale)), i.float(), acc);
        if T::MIN {
            V::fma(min, V::splat(x.sum[part]), acc)
        } else {
            acc
        }
    }
}

/// The part of a block that `N` words from `at` on are: all, the first or the last half.
#[inline(always)]
fn part<const N: usize>(at: usize) -> usize {
    if N == 8 { 0 } else { 1 + at / 4 }
}

/// `acc` plus the product of a group, whose words `w` are those from `at` on of a block, and
/// activations `x`.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn step<V: Vector, T: Blocks<V>, const N: usize>(
    x: &CodeBlock,
    w: &[V; N],
    at: usize,
    scales: (V::F, V::F),
    acc: V::F,
) -> V::F {
    let part = part::<N>(at);
    // SAFETY: by the contract.
    unsafe {
        let init = begin::<V, T>(x, part);
        let codes = x.codes.as_ptr().add(4 * at);
        let i = if T::MAX == 255 {
            V::dot::<N, 255>(init, w, codes)
        } else if T::MAX > 31 {
            V::dot::<N, 63>(init, w, codes)
        } else if T::MAX > 15 {
            V::dot::<N, 31>(init, w, codes)
        } else {
            V::dot::<N, 15>(init, w, codes)
        };
        add::<V, T>(x, part, i, scales, acc)
    }
}

/// [`step`] for two activation rows.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn step_pair<V: Vector, T: Blocks<V>, const N: usize>(
    x: &[CodeBlock; 2],
    w: &[V; N],
    at: usize,
    scales: (V::F, V::F),
    acc: [V::F; 2],
) -> [V::F; 2] {
    let part = part::<N>(at);
    // SAFETY: by the contract.
    unsafe {
        let init = [begin::<V, T>(&x[0], part), begin::<V, T>(&x[1], part)];
        let codes = [
            x[0].codes.as_ptr().add(4 * at),
            x[1].codes.as_ptr().add(4 * at),
        ];
        let [i, j] = if T::MAX == 255 {
            V::dot_pair::<N, 255>(init, w, codes)
        } else if T::MAX > 31 {
            V::dot_pair::<N, 63>(init, w, codes)
        } else if T::MAX > 15 {
            V::dot_pair::<N, 31>(init, w, codes)
        } else {
            V::dot_pair::<N, 15>(init, w, codes)
        };
        [
            add::<V, T>(&x[0], part, i, scales, acc[0]),
            add::<V, T>(&x[1], part, j, scales, acc[1]),
        ]
    }
}

/// Adds to the sums of all activation rows `codes` the product of a group.
///
/// # Safety
/// `V`'s instruction set; `sums` holds `V::LANES` floats for each of `codes`.
#[inline(always)]
unsafe fn steps<V: Vector, T: Blocks<V>, const N: usize>(
    codes: &[CodeBlock],
    w: &[V; N],
    at: usize,
    scales: (V::F, V::F),
    sums: *mut f32,
) {
    let (pairs, rest) = if V::PAIRS {
        codes.as_chunks::<2>()
    } else {
        (&[][..], codes)
    };
    // SAFETY: by the contract.
    unsafe {
        for (t, x) in pairs.iter().enumerate() {
            let (p, q) = (sums.add(2 * t * V::LANES), sums.add((2 * t + 1) * V::LANES));
            let [a, b] = step_pair::<V, T, N>(x, w, at, scales, [V::get(p), V::get(q)]);
            V::put(p, a);
            V::put(q, b);
        }
        let sums = sums.add(2 * pairs.len() * V::LANES);
        for (t, x) in rest.iter().enumerate() {
            let p = sums.add(t * V::LANES);
            V::put(p, step::<V, T, N>(x, w, at, scales, V::get(p)));
        }
    }
}

/// Adds to `sums` the products of the weight rows at `rows` and activation rows `acts`, which are
/// `ONE` or many; `ahead` bytes on, `ahead` bytes of weights will be read next. They are asked for
/// twice: whole tiles in order, [`FAR`] bytes before they are used, and each row's part of a panel into
/// the first cache, which has no room for a tile, while the panel before is computed.
///
/// # Safety
/// `V`'s instruction set; whole weight rows of as many blocks as `x` has; `sums` holds
/// `V::LANES` floats for each activation row.
#[inline(always)]
unsafe fn tile<V: Vector, T: Blocks<V>, const ONE: bool>(
    rows: Rows,
    ahead: usize,
    x: &Codes,
    acts: Range<usize>,
    sums: *mut f32,
) {
    let blocks = x.per_row();
    let panels = blocks.div_ceil(PANEL);
    let panel_bytes = PANEL * BLOCK / T::LEN * T::BYTES;
    let lines = (ahead / panels.max(1)).div_ceil(64);
    let share = 64 * lines;
    let far = ahead * (FAR / ahead.max(1)).max(1);
    let near = acts.len() <= NEAR_ROWS;
    // SAFETY: by the contract.
    let mut acc = unsafe { V::get(sums) };
    for k in 0..panels {
        let n = PANEL.min(blocks - k * PANEL);
        // SAFETY: panel `k` is part of the rows; a prefetch may go anywhere.
        unsafe {
            let next = rows.first.wrapping_add(far + k * share);
            let soon = rows.on(if k + 1 < panels {
                (k + 1) * panel_bytes
            } else {
                ahead
            });
            let p = rows.on(k * panel_bytes);
            let head = T::head(&p, n);
            for u in 0..n.div_ceil(T::UNIT) {
                let raw = T::raw(&p, u);
                for r in 0..T::UNIT {
                    let q = T::quants(&raw, u, r);
                    let b = u * T::UNIT + r;
                    // A few at a time: more than the processor can have under way would make the
                    // reads wait.
                    for line in b * lines / n..(b + 1) * lines / n {
                        V::prefetch::<true>(next.wrapping_add(64 * line));
                    }
                    if near {
                        for j in b * V::LANES / n..(b + 1) * V::LANES / n {
                            for at in (0..panel_bytes + 63).step_by(64) {
                                V::prefetch::<false>(soon.at(j, at));
                            }
                        }
                    }
                    let codes = &x.of(k * PANEL + b)[acts.clone()];
                    if T::GROUP == 32 {
                        let s = T::scales(&head, b);
                        if ONE {
                            acc = step::<V, T, 8>(&codes[0], &q, 0, s, acc);
                        } else {
                            steps::<V, T, 8>(codes, &q, 0, s, sums);
                        }
                    } else {
                        let (first, last) = (T::scales(&head, 2 * b), T::scales(&head, 2 * b + 1));
                        let (w, v) = ([q[0], q[1], q[2], q[3]], [q[4], q[5], q[6], q[7]]);
                        if ONE {
                            acc = step::<V, T, 4>(&codes[0], &w, 0, first, acc);
                            acc = step::<V, T, 4>(&codes[0], &v, 4, last, acc);
                        } else if V::PAIRS {
                            steps::<V, T, 4>(codes, &w, 0, first, sums);
                            steps::<V, T, 4>(codes, &v, 4, last, sums);
                        } else {
                            for (t, x) in codes.iter().enumerate() {
                                let p = sums.add(t * V::LANES);
                                let acc = step::<V, T, 4>(x, &w, 0, first, V::get(p));
                                V::put(p, step::<V, T, 4>(x, &v, 4, last, acc));
                            }
                        }
                    }
                }
            }
        }
    }
    if ONE {
        // SAFETY: by the contract.
        unsafe { V::put(sums, acc) };
    }
}

/// Room for the sums of a tile.
#[repr(align(64))]
struct Sums([f32; 16 * MAX_ROWS]);

/// All products of weight rows `rows` of type `T`.
///
/// # Safety
/// `V`'s instruction set; `weights` holds `rows.end` rows of whole blocks, as many as `x` has;
/// columns `rows` of `out` are this task's.
#[inline(always)]
unsafe fn tiles<V: Vector, T: Blocks<V>>(
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Codes,
    out: Out,
) {
    let mut sums = Sums([0.0; 16 * MAX_ROWS]);
    let mut last = Vec::new();
    for first in (0..x.rows()).step_by(MAX_ROWS) {
        let acts = first..x.rows().min(first + MAX_ROWS);
        for i in rows.clone().step_by(V::LANES) {
            let n = V::LANES.min(rows.end - i);
            // Where the last rows do not fill the lanes, those before are multiplied once more.
            let from = i.min(rows.end.saturating_sub(V::LANES));
            let lanes = V::LANES.min(rows.end - from);
            let bytes = &weights[from * row_bytes..(from + lanes) * row_bytes];
            let first = if lanes == V::LANES {
                bytes.as_ptr()
            } else {
                // A matrix of fewer rows than lanes: those without a row see zeros.
                last.resize(V::LANES * row_bytes, 0);
                last[..bytes.len()].copy_from_slice(bytes);
                last.as_ptr()
            };
            let p = Rows {
                first,
                stride: row_bytes,
            };
            let used = &mut sums.0[..acts.len() * V::LANES];
            used.fill(0.0);
            // SAFETY: the rows are there by the contract.
            unsafe {
                let (ahead, sums) = (lanes * row_bytes, used.as_mut_ptr());
                if acts.len() == 1 {
                    tile::<V, T, true>(p, ahead, x, acts.clone(), sums);
                } else {
                    tile::<V, T, false>(p, ahead, x, acts.clone(), sums);
                }
            }
            for (t, sums) in acts.clone().zip(used.chunks_exact(V::LANES)) {
                for (j, v) in sums[i - from..][..n].iter().enumerate() {
                    // SAFETY: by the contract.
                    unsafe { out.set(t, i + j, *v) };
                }
            }
        }
    }
}

/// Weight rows `rows` of type `ty`, one that [`super::covers`], times all activation rows.
///
/// # Safety
/// `V`'s instruction set; `weights` holds `rows.end` rows of `row_bytes`, which are whole blocks,
/// as many as `x` has; columns `rows` of `out` are this task's to write.
#[inline(always)]
pub(in super::super) unsafe fn products<V: Vector>(
    ty: BlockType,
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Codes,
    out: Out,
) {
    assert!(weights.len() >= rows.end * row_bytes);
    assert_eq!(ty.row_bytes(x.per_row() * BLOCK), Some(row_bytes));
    macro_rules! tiles {
        ($t:ty) => {
            // SAFETY: by the contract and the assertions.
            unsafe { tiles::<V, $t>(weights, row_bytes, rows, x, out) }
        };
    }
    match ty {
        BlockType::Q4_0 => tiles!(block32::Q4_0),
        BlockType::Q4_1 => tiles!(block32::Q4_1),
        BlockType::Q5_0 => tiles!(block32::Q5_0),
        BlockType::Q5_1 => tiles!(block32::Q5_1),
        BlockType::Q8_0 => tiles!(block32::Q8_0),
        BlockType::IQ4_NL => tiles!(block32::Iq4Nl),
        BlockType::MXFP4 => tiles!(block32::Mxfp4),
        BlockType::IQ4_XS => tiles!(super256::Iq4Xs),
        BlockType::Q2_K => tiles!(super256::Q2K),
        BlockType::Q3_K => tiles!(super256::Q3K),
        BlockType::Q4_K => tiles!(super256::Q4K),
        BlockType::Q5_K => tiles!(super256::Q5K),
        BlockType::Q6_K => tiles!(super256::Q6K),
        // By the contract: who asks has asked `covers`, and a wrong product would go unseen.
        _ => unreachable!("{ty} has no product in whole numbers"),
    }
}
