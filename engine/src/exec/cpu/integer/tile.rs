//! The product of a tile: as many weight rows as a vector has lanes, and all activation rows.

// Pieces without a target feature of their own must be inlined into entry points that have it.
#![allow(clippy::inline_always)]

use std::mem::MaybeUninit;
use std::ops::Range;

use formats::blocks::BlockType;

use super::super::matmul::Out;
use super::chain::{Acts, Chain, Places, Sums};
use super::panel::Panel;
use super::vector::Vector;
use super::{BLOCK, CodeBlock, Codes, Matrix};

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
pub(in super::super) trait Blocks<V: Vector>: Copy {
    /// Its name.
    const TYPE: BlockType;
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
    unsafe fn head(p: impl Panel<V>, n: usize) -> Self::Head;

    /// Reads unit `u`.
    ///
    /// # Safety
    /// As [`head`](Self::head); the unit is in the panel.
    unsafe fn raw(p: impl Panel<V>, u: usize) -> Self::Raw;

    /// Block `r` of unit `u`: word `i` holds the stored quants `4i..4i + 4`.
    ///
    /// # Safety
    /// `V`'s instruction set.
    unsafe fn quants(head: &Self::Head, raw: &Self::Raw, u: usize, r: usize) -> [V; 8];
}

/// Bytes of a panel of one row.
const fn panel_bytes<V: Vector, T: Blocks<V>>() -> usize {
    PANEL * BLOCK / T::LEN * T::BYTES
}

/// Weights that memory is asked for while a panel is computed, a few lines with each block: more than the
/// processor can have under way would make the reads wait.
struct Ahead {
    /// What will be read next, [`FAR`] bytes on.
    far: *const u8,
    /// The next panel, row after row.
    near: *const u8,
    /// Bytes from one of its rows to the next.
    stride: usize,
}

impl Ahead {
    /// Asks for what comes with a block: as many bytes as are read with it, and if it is to be in the first
    /// cache, of the next panel an eighth of the rows.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn ask<V: Vector, T: Blocks<V>, const NEAR: bool>(&mut self, b: usize) {
        let bytes = V::LANES * panel_bytes::<V, T>() / PANEL;
        // SAFETY: by the contract; a prefetch may go anywhere.
        unsafe {
            // No instruction. Requests keep their places among these, and so far the reads of a block do
            // too: otherwise those of a whole panel would be made at once. Only speed hangs on it.
            std::arch::asm!("", options(nomem, nostack, preserves_flags));
            for line in (b * bytes).div_ceil(64)..((b + 1) * bytes).div_ceil(64) {
                V::prefetch::<true>(self.far.wrapping_add(64 * line));
            }
            if NEAR {
                self.ask_near::<V, T>();
            }
        }
    }

    /// Asks for an eighth of the rows of the next panel.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn ask_near<V: Vector, T: Blocks<V>>(&mut self) {
        for _ in 0..V::LANES / PANEL {
            for at in (0..panel_bytes::<V, T>() + 63).step_by(64) {
                // SAFETY: by the contract; a prefetch may go anywhere.
                unsafe { V::prefetch::<false>(self.near.wrapping_add(at)) };
            }
            self.near = self.near.wrapping_add(self.stride);
        }
    }
}

/// `sums` plus the products of a panel at `p`, `n` blocks of 32, and those at `x`, of one activation row.
///
/// # Safety
/// `V`'s instruction set; the panel is readable in each row, and so are the blocks at `x`.
#[inline(always)]
unsafe fn panel_of_one<V: Vector, T: Blocks<V>, C: Chain<V, T>, P: Panel<V>>(
    p: P,
    n: usize,
    ahead: &mut Ahead,
    x: *const CodeBlock,
    mut sums: [V::F; 2],
) -> [V::F; 2] {
    // A super-block is a whole panel, and rows are whole blocks.
    let n = if T::LEN == BLOCK { n } else { PANEL };
    // SAFETY: by the contract.
    unsafe {
        let head = T::head(p, n);
        let mut raw = T::raw(p, 0);
        // Written out, since all places and widths are constants then.
        macro_rules! block {
            ($($b:literal)*) => {$(
                if $b < n {
                    let (u, r) = ($b / T::UNIT, $b % T::UNIT);
                    if u > 0 && r == 0 {
                        raw = T::raw(p, u);
                    }
                    let q = T::quants(&head, &raw, u, r);
                    if !P::TILED {
                        ahead.ask::<V, T, true>($b);
                    }
                    sums = C::one(p, &head, $b, &q, &*x.add($b), sums);
                }
            )*};
        }
        block!(0 1 2 3 4 5 6 7);
        C::end(&head, sums)
    }
}

/// Adds to `sums` the products of a panel at `p`, `n` blocks of 32, and those of `x` from block `from` on, rows
/// `acts`.
///
/// # Safety
/// `V`'s instruction set; the panel is readable in each row; `x` has the blocks and rows, more than one, and is
/// prepared if the weights have an offset; `sums` are of as many rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a kernel's
unsafe fn panel_of_many<V, T, C, P, const NEAR: bool>(
    p: P,
    n: usize,
    ahead: &mut Ahead,
    x: &Codes,
    from: usize,
    acts: &Range<usize>,
    sums: Sums,
) where
    V: Vector,
    T: Blocks<V>,
    C: Chain<V, T>,
    P: Panel<V>,
{
    // SAFETY: by the contract.
    unsafe {
        let head = T::head(p, n);
        for u in 0..n.div_ceil(T::UNIT) {
            let raw = T::raw(p, u);
            if C::TWO {
                for r in (0..T::UNIT).step_by(2) {
                    let q = [
                        T::quants(&head, &raw, u, r),
                        T::quants(&head, &raw, u, r + 1),
                    ];
                    let b = u * T::UNIT + r;
                    ahead.ask::<V, T, NEAR>(b);
                    ahead.ask::<V, T, NEAR>(b + 1);
                    let x = [
                        Acts::of(x, T::OFFSET, from + b, acts),
                        Acts::of(x, T::OFFSET, from + b + 1, acts),
                    ];
                    C::many(p, &head, b, &q, x, sums);
                }
            } else {
                for r in 0..T::UNIT {
                    let q = T::quants(&head, &raw, u, r);
                    let b = u * T::UNIT + r;
                    ahead.ask::<V, T, NEAR>(b);
                    let x = Acts::of(x, T::OFFSET, from + b, acts);
                    C::many(p, &head, b, &[q], [x], sums);
                }
            }
        }
    }
}

/// Adds to `sums` the products of the `V::LANES` weight rows at `first`, of `stride` bytes each, and activation
/// rows `acts`, which are `ONE` or many; `ahead` bytes on, `ahead` bytes of weights will be read next. They
/// are asked for twice: whole tiles in order, [`FAR`] bytes before they are used, and each row's part of a
/// panel into the first cache, which has no room for a tile, while the panel before is computed. Of rows that
/// lie in tiles only the first, and for one activation row none: processors foresee what is read in order,
/// as long as little is computed in between.
///
/// # Safety
/// `V`'s instruction set; `V::LANES` weight rows from `first` on, whole and of as many blocks as `x` has;
/// `sums` holds `V::LANES` floats for each activation row; where that is one, its blocks are at `row`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a kernel's
unsafe fn tile<V, T, C, P, const ONE: bool>(
    first: *const u8,
    stride: usize,
    ahead: usize,
    x: &Codes,
    acts: &Range<usize>,
    row: *const CodeBlock,
    sums: Sums,
) where
    V: Vector,
    T: Blocks<V>,
    C: Chain<V, T>,
    P: Panel<V>,
{
    let blocks = x.per_row();
    assert!(acts.end <= x.rows());
    const {
        assert!(PANEL == 8 && (V::LANES == 8 || V::LANES == 16) && BLOCK * PANEL == 256);
        assert!(!C::TWO || T::UNIT.is_multiple_of(2));
    }
    let panels = blocks.div_ceil(PANEL);
    let panel_bytes = panel_bytes::<V, T>();
    let rows = P::first(first, stride);
    let far = first.wrapping_add(ahead * (FAR / ahead.max(1)).max(1));
    let near = acts.len() <= NEAR_ROWS;
    // SAFETY: by the contract.
    let mut one = unsafe { [sums.acc.get::<V>(0), V::splat(0.0)] };
    for k in 0..panels {
        let next = if k + 1 < panels {
            (k + 1) * panel_bytes
        } else {
            ahead
        };
        let mut asked = Ahead {
            far: far.wrapping_add(k * V::LANES * panel_bytes),
            near: first.wrapping_add(next),
            stride,
        };
        let (p, from) = (rows.nth(k, panel_bytes), k * PANEL);
        let n = PANEL.min(blocks - from);
        // SAFETY: panel `k` is part of the rows, and of the codes.
        unsafe {
            if ONE {
                one = panel_of_one::<V, T, C, P>(p, n, &mut asked, row.add(from), one);
            } else if near && !P::TILED {
                panel_of_many::<V, T, C, P, true>(p, n, &mut asked, x, from, acts, sums);
            } else {
                panel_of_many::<V, T, C, P, false>(p, n, &mut asked, x, from, acts, sums);
            }
            // What a shorter panel has no blocks for.
            if near && !P::TILED {
                for _ in n..PANEL {
                    asked.ask_near::<V, T>();
                }
            }
        }
    }
    if ONE {
        // SAFETY: by the contract.
        unsafe { sums.acc.put::<V>(0, one[0]) };
    }
}

/// Room for the sums of a tile, or for those of its super-blocks. It is filled as far as it is used:
/// for one activation row all of it would take longer than the smallest product.
#[repr(align(64))]
struct Room([MaybeUninit<f32>; 16 * MAX_ROWS]);

impl Room {
    const NEW: Self = Self([const { MaybeUninit::uninit() }; 16 * MAX_ROWS]);

    /// The first place, of which nothing has been written yet.
    fn place(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// The first `n` places, zeros.
    #[inline(always)]
    fn zeros(&mut self, n: usize) -> &mut [f32] {
        let used = &mut self.0[..n];
        used.fill(MaybeUninit::new(0.0));
        // SAFETY: all of them have just been written, and a float is as large as one that may be.
        unsafe { std::slice::from_raw_parts_mut(used.as_mut_ptr().cast(), n) }
    }
}

/// A part of a product: some weight rows and at most [`MAX_ROWS`] activation rows.
pub(in super::super) struct Part<'a> {
    w: Matrix<'a>,
    rows: Range<usize>,
    x: &'a Codes,
    acts: Range<usize>,
    out: Out,
}

impl<'a> Part<'a> {
    /// The parts of rows `rows` of `w`, whose type [`super::covers`], times all activation rows.
    ///
    /// Panics unless `w` has these rows and they are whole blocks, as many as `x` has; where `w` is tiles,
    /// unless `rows` begins with one; and unless `x` is prepared for the type.
    pub(in super::super) fn all(
        w: Matrix<'a>,
        rows: Range<usize>,
        x: &'a Codes,
        out: Out,
    ) -> impl Iterator<Item = Self> {
        let ty = w.block_type;
        let held = match w.tiled {
            Some(lanes) => {
                assert!(rows.start.is_multiple_of(lanes));
                rows.end.next_multiple_of(lanes)
            }
            None => rows.end,
        };
        assert!(w.bytes.len() >= held * w.row_bytes);
        assert_eq!(ty.row_bytes(x.per_row() * BLOCK), Some(w.row_bytes));
        assert!(x.is_prepared(ty), "{ty}: nobody prepared for its offset");
        (0..x.rows()).step_by(MAX_ROWS).map(move |first| Part {
            w,
            rows: rows.clone(),
            x,
            acts: first..x.rows().min(first + MAX_ROWS),
            out,
        })
    }

    /// Whether there is one activation row.
    pub(in super::super) fn is_one(&self) -> bool {
        self.acts.len() == 1
    }

    /// As many rows as the tiles have that the weights lie in, if they do.
    pub(in super::super) fn tiled(&self) -> Option<usize> {
        self.w.tiled
    }
}

/// The products of a part, of `ONE` activation row or many, with weights of type `T`.
///
/// # Safety
/// `V`'s instruction set; the part is of this type, its weights lie as `P` reads them, and `ONE` if and only
/// if it [is](Part::is_one); its columns of `out` are this task's to write.
#[inline(always)]
pub(in super::super) unsafe fn tiles<V, T, C, P, const ONE: bool>(part: &Part<'_>)
where
    V: Vector,
    T: Blocks<V>,
    C: Chain<V, T>,
    P: Panel<V>,
{
    assert_eq!(part.tiled(), P::TILED.then_some(V::LANES));
    debug_assert_eq!(ONE, part.is_one());
    let (mut sums, mut inner) = (Room::NEW, Room::NEW);
    let mut last = Vec::new();
    let (acts, rows, row_bytes) = (&part.acts, &part.rows, part.w.row_bytes);
    let alone = ONE.then(|| part.x.row(acts.start));
    let row = alone.as_ref().map_or(std::ptr::null(), |row| row.as_ptr());
    for i in rows.clone().step_by(V::LANES) {
        let n = V::LANES.min(rows.end - i);
        // Where the last rows do not fill the lanes, those before are multiplied once more; a tile has
        // zeros there.
        let (from, lanes) = if P::TILED {
            (i, V::LANES)
        } else {
            let from = i.min(rows.end.saturating_sub(V::LANES));
            (from, V::LANES.min(rows.end - from))
        };
        let bytes = &part.w.bytes[from * row_bytes..(from + lanes) * row_bytes];
        let first = if lanes == V::LANES {
            bytes.as_ptr()
        } else {
            // A matrix of fewer rows than lanes: those without a row see zeros.
            last.resize(V::LANES * row_bytes, 0);
            last[..bytes.len()].copy_from_slice(bytes);
            last.as_ptr()
        };
        let used = sums.zeros(acts.len() * V::LANES);
        // SAFETY: the rows are there, as `Part::all` has made sure.
        unsafe {
            let ahead = lanes * row_bytes;
            let sums = Sums {
                acc: Places(used.as_mut_ptr()),
                inner: Places(inner.place()),
            };
            tile::<V, T, C, P, ONE>(first, row_bytes, ahead, part.x, acts, row, sums);
        }
        for (t, sums) in acts.clone().zip(used.chunks_exact(V::LANES)) {
            // SAFETY: by the contract.
            let own = unsafe { part.out.slice(t, i, n) };
            if n == V::LANES {
                // SAFETY: both are as long as a vector.
                unsafe { V::put(own.as_mut_ptr(), V::get(sums.as_ptr())) };
            } else {
                own.copy_from_slice(&sums[i - from..][..n]);
            }
        }
    }
}

/// `$each::<blocks, chain>($part)` for blocks of type `$ty`.
macro_rules! for_type {
    ($ty:expr, $each:ident, $part:expr) => {{
        use formats::blocks::BlockType;
        use $crate::exec::cpu::integer::chain::{Halves, Wholes};
        use $crate::exec::cpu::integer::{block32, super256};
        match $ty {
            BlockType::Q4_0 => $each::<block32::Q4_0, Wholes>($part),
            BlockType::Q4_1 => $each::<block32::Q4_1, Wholes>($part),
            BlockType::Q5_0 => $each::<block32::Q5_0, Wholes>($part),
            BlockType::Q5_1 => $each::<block32::Q5_1, Wholes>($part),
            BlockType::Q8_0 => $each::<block32::Q8_0, Wholes>($part),
            BlockType::IQ4_NL => $each::<block32::Iq4Nl, Wholes>($part),
            BlockType::MXFP4 => $each::<block32::Mxfp4, Wholes>($part),
            BlockType::IQ4_XS => $each::<super256::Iq4Xs, Wholes>($part),
            BlockType::Q2_K => $each::<super256::Q2K, Halves>($part),
            BlockType::Q3_K => $each::<super256::Q3K, Halves>($part),
            BlockType::Q4_K => $each::<super256::Q4K, Wholes>($part),
            BlockType::Q5_K => $each::<super256::Q5K, Wholes>($part),
            BlockType::Q6_K => $each::<super256::Q6K, Halves>($part),
            // By the contract: who asks has asked `covers`, and a wrong product would go unseen.
            ty => unreachable!("{ty} has no product in whole numbers"),
        }
    }};
}
pub(in super::super) use for_type;
