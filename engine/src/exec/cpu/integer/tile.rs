//! The product of a tile: as many weight rows as a vector has lanes, and all activation rows.

// Pieces without a target feature of their own must be inlined into entry points that have it.
#![allow(clippy::inline_always)]

use std::mem::MaybeUninit;
use std::ops::Range;

use formats::blocks::BlockType;

use super::super::matmul::Out;
use super::chain::{Acts, Chain, Halves, Sums, Wholes};
use super::vector::{Rows, Vector};
use super::{BLOCK, Codes, block32, super256};

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
}

/// Weights that memory is asked for while a panel is computed.
#[derive(Clone, Copy)]
struct Ahead {
    /// What will be read next: the first place, and bytes.
    far: (*const u8, usize),
    /// The panel that comes next, and its bytes, if it is to be in the first cache.
    near: (Rows, usize),
    /// What is asked for with one block: bytes of the first, rows of the second.
    each: (usize, usize),
}

impl Ahead {
    /// Asks for what comes with block `b`.
    #[inline(always)]
    unsafe fn ask<V: Vector>(&self, b: usize) {
        let (far, share) = self.far;
        let (near, bytes) = self.near;
        let (burst, rows) = self.each;
        // SAFETY: `V`'s instruction set by the contract; a prefetch may go anywhere.
        unsafe {
            for line in (b * burst..share.min((b + 1) * burst)).step_by(64) {
                V::prefetch::<true>(far.wrapping_add(line));
            }
            if bytes > 0 {
                for j in b * rows..V::LANES.min((b + 1) * rows) {
                    for at in (0..bytes + 63).step_by(64) {
                        V::prefetch::<false>(near.at(j, at));
                    }
                }
            }
        }
    }
}

/// Adds to `sums`, or to `one`, the products of a panel at `p`: `n` blocks of 32, and those of `x` from
/// block `from` on, rows `acts`.
///
/// # Safety
/// `V`'s instruction set; the panel is readable in each row; `x` has the blocks and rows, and `sums` are of
/// as many rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a kernel's
unsafe fn panel<V: Vector, T: Blocks<V>, C: Chain<V, T>, const ONE: bool>(
    p: &Rows,
    n: usize,
    ahead: &Ahead,
    x: &Codes,
    from: usize,
    acts: &Range<usize>,
    sums: Sums,
    mut one: [V::F; 2],
) -> [V::F; 2] {
    // SAFETY: by the contract.
    unsafe {
        let head = T::head(p, n);
        for u in 0..n.div_ceil(T::UNIT) {
            let raw = T::raw(p, u);
            for r in 0..T::UNIT {
                let q = T::quants(&raw, u, r);
                let b = u * T::UNIT + r;
                ahead.ask::<V>(b);
                let codes = x.of(from + b).get_unchecked(acts.clone());
                if ONE {
                    one = C::one(&head, b, &q, &codes[0], one);
                } else {
                    let begins = x.begins(T::OFFSET, from + b);
                    let begins = begins.get(acts.clone()).unwrap_or_default();
                    C::many(&head, b, &q, Acts { codes, begins }, sums);
                }
            }
        }
        if ONE {
            return C::end(&head, one);
        }
        if C::ENDS {
            for t in 0..acts.len() {
                sums.put::<V>(t, C::end(&head, sums.get::<V>(t)));
            }
        }
    }
    one
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
unsafe fn tile<V: Vector, T: Blocks<V>, C: Chain<V, T>, const ONE: bool>(
    rows: Rows,
    ahead: usize,
    x: &Codes,
    acts: Range<usize>,
    sums: Sums,
) {
    let blocks = x.per_row();
    assert!(acts.end <= x.rows());
    let panels = blocks.div_ceil(PANEL);
    let panel_bytes = PANEL * BLOCK / T::LEN * T::BYTES;
    let share = (ahead / panels.max(1)).next_multiple_of(64);
    // A few lines with each block: more than the processor can have under way would make the reads
    // wait. (And nothing is divided in between, which would take longer than the products.)
    let each = |n: usize| {
        let burst = share.div_ceil(n).next_multiple_of(64);
        (burst, V::LANES.div_ceil(n))
    };
    let (whole, last) = (each(PANEL), each((blocks % PANEL).max(1)));
    let far = ahead * (FAR / ahead.max(1)).max(1);
    let near = if acts.len() <= NEAR_ROWS {
        panel_bytes
    } else {
        0
    };
    // SAFETY: by the contract.
    let mut one = unsafe { sums.get::<V>(0) };
    for k in 0..panels {
        let soon = rows.on(if k + 1 < panels {
            (k + 1) * panel_bytes
        } else {
            ahead
        });
        let mut ahead = Ahead {
            far: (rows.first.wrapping_add(far + k * share), share),
            near: (soon, near),
            each: whole,
        };
        let (p, from) = (rows.on(k * panel_bytes), k * PANEL);
        // SAFETY: panel `k` is part of the rows.
        unsafe {
            // Twice, so that one of them has a constant number of rounds.
            one = if blocks - from >= PANEL {
                panel::<V, T, C, ONE>(&p, PANEL, &ahead, x, from, &acts, sums, one)
            } else {
                ahead.each = last;
                panel::<V, T, C, ONE>(&p, blocks - from, &ahead, x, from, &acts, sums, one)
            };
        }
    }
    if ONE {
        // SAFETY: by the contract.
        unsafe { sums.put::<V>(0, one) };
    }
}

/// Room for the sums of a tile, or for those of its super-blocks. It is filled as far as it is used:
/// for one activation row all of it would take longer than the smallest product.
#[repr(align(64))]
struct Room([MaybeUninit<f32>; 16 * MAX_ROWS]);

impl Room {
    const NEW: Self = Self([const { MaybeUninit::uninit() }; 16 * MAX_ROWS]);

    /// The first `n` places, zeros.
    #[inline(always)]
    fn zeros(&mut self, n: usize) -> &mut [f32] {
        let used = &mut self.0[..n];
        used.fill(MaybeUninit::new(0.0));
        // SAFETY: all of them have just been written, and a float is as large as one that may be.
        unsafe { std::slice::from_raw_parts_mut(used.as_mut_ptr().cast(), n) }
    }
}

/// All products of weight rows `rows` of type `T`.
///
/// # Safety
/// `V`'s instruction set; `weights` holds `rows.end` rows of whole blocks, as many as `x` has;
/// columns `rows` of `out` are this task's.
#[inline(always)]
unsafe fn tiles<V: Vector, T: Blocks<V>, C: Chain<V, T>>(
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Codes,
    out: Out,
) {
    let (mut sums, mut inner) = (Room::NEW, Room::NEW);
    let mut last = Vec::new();
    for first in (0..x.rows()).step_by(MAX_ROWS) {
        let acts = first..x.rows().min(first + MAX_ROWS);
        // Zero again at the end of each super-block.
        let inner = inner.zeros(acts.len() * V::LANES).as_mut_ptr();
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
            let used = sums.zeros(acts.len() * V::LANES);
            // SAFETY: the rows are there by the contract.
            unsafe {
                let ahead = lanes * row_bytes;
                let sums = Sums {
                    acc: used.as_mut_ptr(),
                    inner,
                };
                if acts.len() == 1 {
                    tile::<V, T, C, true>(p, ahead, x, acts.clone(), sums);
                } else {
                    tile::<V, T, C, false>(p, ahead, x, acts.clone(), sums);
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
    assert!(x.is_prepared(ty), "{ty}: nobody prepared for its offset");
    macro_rules! tiles {
        ($t:ty, $chain:ty) => {
            // SAFETY: by the contract and the assertions.
            unsafe { tiles::<V, $t, $chain>(weights, row_bytes, rows, x, out) }
        };
    }
    match ty {
        BlockType::Q4_0 => tiles!(block32::Q4_0, Wholes),
        BlockType::Q4_1 => tiles!(block32::Q4_1, Wholes),
        BlockType::Q5_0 => tiles!(block32::Q5_0, Wholes),
        BlockType::Q5_1 => tiles!(block32::Q5_1, Wholes),
        BlockType::Q8_0 => tiles!(block32::Q8_0, Wholes),
        BlockType::IQ4_NL => tiles!(block32::Iq4Nl, Wholes),
        BlockType::MXFP4 => tiles!(block32::Mxfp4, Wholes),
        BlockType::IQ4_XS => tiles!(super256::Iq4Xs, Wholes),
        BlockType::Q2_K => tiles!(super256::Q2K, Halves),
        BlockType::Q3_K => tiles!(super256::Q3K, Halves),
        BlockType::Q4_K => tiles!(super256::Q4K, Wholes),
        BlockType::Q5_K => tiles!(super256::Q5K, Wholes),
        BlockType::Q6_K => tiles!(super256::Q6K, Halves),
        // By the contract: who asks has asked `covers`, and a wrong product would go unseen.
        _ => unreachable!("{ty} has no product in whole numbers"),
    }
}
