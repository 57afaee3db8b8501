//! Panels of weights: rows as in the file, or a tile in the order of [`super::order`].

// Pieces without a target feature of their own must be inlined into entry points that have it.
#![allow(clippy::inline_always)]

use std::marker::PhantomData;

use super::order::place;
use super::tile::Blocks;
use super::vector::{Rows, Vector};

/// A panel of as many weight rows as a vector has lanes. Places are those of the file: bytes from the beginning
/// of a panel of one row.
///
/// # Safety
/// All reads need the instruction set of `V`, and the bytes they name readable in each row.
pub(in super::super) trait Panel<V: Vector>: Copy {
    /// Whether rows lie in tiles, and so are read in order.
    const TILED: bool;

    /// The first panel of the rows at `first`, each of `row_bytes`.
    fn first(first: *const u8, row_bytes: usize) -> Self;

    /// The panel `k` panels on, of which each has `bytes` of a row.
    fn nth(self, k: usize, bytes: usize) -> Self;

    /// 16 bytes of each row, as their four 32-bit words. They are read one after the other: none of those
    /// that `order::place` has elsewhere begins among them.
    ///
    /// # Safety
    /// As said above.
    unsafe fn words(self, at: usize) -> [V; 4];

    /// A 32-bit word of each row.
    ///
    /// # Safety
    /// As said above.
    unsafe fn word(self, at: usize) -> V;

    /// A half float of each row that begins a block.
    ///
    /// # Safety
    /// As said above.
    unsafe fn half(self, at: usize) -> V::F;

    /// A half float of each row that ends a block.
    ///
    /// # Safety
    /// As said above.
    unsafe fn last_half(self, at: usize) -> V::F;

    /// Three words of each row and the half float behind them, which ends a block.
    ///
    /// # Safety
    /// As said above.
    unsafe fn three_and_half(self, at: usize) -> ([V; 3], V::F);

    /// A byte of row `row` that begins a block.
    ///
    /// # Safety
    /// As said above.
    unsafe fn byte(self, at: usize, row: usize) -> u8;
}

impl<V: Vector> Panel<V> for Rows {
    const TILED: bool = false;

    #[inline(always)]
    fn first(first: *const u8, row_bytes: usize) -> Self {
        Self::new(first, row_bytes)
    }

    #[inline(always)]
    fn nth(self, k: usize, bytes: usize) -> Self {
        self.on::<V>(k * bytes)
    }

    #[inline(always)]
    unsafe fn words(self, at: usize) -> [V; 4] {
        // SAFETY: by the contract.
        unsafe { V::words(&self, at) }
    }

    #[inline(always)]
    unsafe fn word(self, at: usize) -> V {
        // SAFETY: by the contract.
        unsafe { V::word(&self, at) }
    }

    #[inline(always)]
    unsafe fn half(self, at: usize) -> V::F {
        // SAFETY: by the contract; a block has more than four bytes.
        unsafe { V::word(&self, at).half() }
    }

    #[inline(always)]
    unsafe fn last_half(self, at: usize) -> V::F {
        // SAFETY: by the contract; a block has more than four bytes.
        unsafe { V::word(&self, at - 2).shr(16).half() }
    }

    #[inline(always)]
    unsafe fn three_and_half(self, at: usize) -> ([V; 3], V::F) {
        // SAFETY: by the contract; a block has more than 16 bytes.
        unsafe {
            // Two bytes of what is before them, twelve, d.
            let [a, b, c, e] = V::words(&self, at - 2);
            let words = [
                a.shr(16).or(b.shl(16)),
                b.shr(16).or(c.shl(16)),
                c.shr(16).or(e.shl(16)),
            ];
            (words, e.shr(16).half())
        }
    }

    #[inline(always)]
    unsafe fn byte(self, at: usize, row: usize) -> u8 {
        // SAFETY: by the contract.
        unsafe { *self.at(row, at) }
    }
}

/// A panel of a tile of blocks of type `T`.
#[derive(Clone, Copy)]
pub(in super::super) struct Tile<T> {
    panel: *const u8,
    blocks: PhantomData<T>,
}

impl<T: Copy> Tile<T> {
    /// Where bytes of the first row are; those of the others follow.
    #[inline(always)]
    fn at<V: Vector>(self, at: usize) -> *const u8
    where
        T: Blocks<V>,
    {
        self.panel.wrapping_add(V::LANES * place(T::TYPE, at))
    }
}

/// No instruction. To the compiler it may touch all memory, so reads before it stay before those behind it:
/// left alone it mixes those of several blocks, and a processor that finds no order in them waits for memory
/// (one core read Q5_K at 11 GB/s then and at 30 in order).
#[inline(always)]
fn in_order() {
    // SAFETY: it does nothing.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) }
}

impl<V: Vector, T: Blocks<V>> Panel<V> for Tile<T> {
    const TILED: bool = true;

    #[inline(always)]
    fn first(first: *const u8, _: usize) -> Self {
        Self {
            panel: first,
            blocks: PhantomData,
        }
    }

    #[inline(always)]
    fn nth(self, k: usize, bytes: usize) -> Self {
        Self {
            panel: self.panel.wrapping_add(k * V::LANES * bytes),
            ..self
        }
    }

    #[inline(always)]
    unsafe fn words(self, at: usize) -> [V; 4] {
        let (p, n) = (self.at::<V>(at), 4 * V::LANES);
        in_order();
        // SAFETY: by the contract; words that are read one after the other lie so in a tile.
        unsafe {
            [
                V::at(p),
                V::at(p.wrapping_add(n)),
                V::at(p.wrapping_add(2 * n)),
                V::at(p.wrapping_add(3 * n)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn word(self, at: usize) -> V {
        in_order();
        // SAFETY: by the contract.
        unsafe { V::at(self.at::<V>(at)) }
    }

    #[inline(always)]
    unsafe fn half(self, at: usize) -> V::F {
        in_order();
        // SAFETY: by the contract.
        unsafe { V::halves(self.at::<V>(at)) }
    }

    #[inline(always)]
    unsafe fn last_half(self, at: usize) -> V::F {
        in_order();
        // SAFETY: by the contract.
        unsafe { V::halves(self.at::<V>(at)) }
    }

    #[inline(always)]
    unsafe fn three_and_half(self, at: usize) -> ([V; 3], V::F) {
        // SAFETY: by the contract.
        unsafe {
            let words = [self.word(at), self.word(at + 4), self.word(at + 8)];
            (words, V::halves(self.at::<V>(at + 12)))
        }
    }

    #[inline(always)]
    unsafe fn byte(self, at: usize, row: usize) -> u8 {
        // SAFETY: by the contract.
        unsafe { *self.at::<V>(at).wrapping_add(row) }
    }
}
