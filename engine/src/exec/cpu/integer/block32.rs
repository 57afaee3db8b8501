//! Blocks of 32 quants with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4.

// As in `tile`.
#![allow(clippy::inline_always)]

use formats::blocks::{BlockMxfp4, BlockType, Grouped as _, IQ4_NL_LEVELS, MXFP4_LEVELS};

use super::chain::Whole;
use super::panel::Panel;
use super::tile::{Blocks, PANEL};
use super::vector::Vector;

/// For each block of a panel, a word of each row.
pub(in super::super) struct Words([[u32; 16]; PANEL]);

/// `LEVELS`, moved up by `by` to be unsigned.
const fn raised(levels: [i8; 16], by: u8) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (levels[i] as u8).wrapping_add(by);
        i += 1;
    }
    out
}

const IQ4_NL_RAISED: [u8; 16] = raised(IQ4_NL_LEVELS, 128);
const MXFP4_RAISED: [u8; 16] = raised(MXFP4_LEVELS, 16);

/// Low nibbles are the first 16 quants, high nibbles the last 16.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
pub(super) unsafe fn nibbles<V: Vector>(w: &[V; 4]) -> [V; 8] {
    // SAFETY: by the contract.
    unsafe {
        let low = V::bytes(15);
        [
            w[0].and(low),
            w[1].and(low),
            w[2].and(low),
            w[3].and(low),
            w[0].shr(4).and(low),
            w[1].shr(4).and(low),
            w[2].shr(4).and(low),
            w[3].shr(4).and(low),
        ]
    }
}

/// Each byte of `w` in `table`.
///
/// # Safety
/// `V`'s instruction set; all bytes below 16.
#[inline(always)]
pub(super) unsafe fn levels<V: Vector>(mut w: [V; 8], table: &[u8; 16]) -> [V; 8] {
    for w in &mut w {
        // SAFETY: by the contract.
        *w = unsafe { w.lookup(table) };
    }
    w
}

/// A type of blocks that start with an f16 scale, and maybe an f16 minimum behind it.
macro_rules! block32 {
    ($(#[$doc:meta])* $name:ident: $ty:ident, $bytes:expr, $min:expr, $max:expr, $offset:expr,
     $raw:ty, |$p:ident, $at:ident| $read:expr, |$w:ident| $quants:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(in super::super) struct $name;

        impl<V: Vector> Blocks<V> for $name {
            const TYPE: BlockType = BlockType::$ty;
            const BYTES: usize = $bytes;
            const LEN: usize = 32;
            const MIN: bool = $min;
            const MAX: u8 = $max;
            const OFFSET: u32 = $offset;
            const UNIT: usize = 1;
            type Head = ();
            type Raw = $raw;

            #[inline(always)]
            unsafe fn head(_: impl Panel<V>, _: usize) {}

            #[inline(always)]
            unsafe fn raw($p: impl Panel<V>, u: usize) -> $raw {
                let $at = u * $bytes;
                // SAFETY: a whole block is readable.
                unsafe { $read }
            }

            #[inline(always)]
            unsafe fn quants((): &(), $w: &$raw, _: usize, _: usize) -> [V; 8] {
                // SAFETY: by the contract.
                unsafe { $quants }
            }
        }

        impl<V: Vector> Whole<V> for $name {
            #[inline(always)]
            unsafe fn scales(p: impl Panel<V>, (): &(), g: usize) -> (V::F, V::F) {
                // SAFETY: a whole block is readable.
                unsafe {
                    if $min {
                        let word = p.word(g * $bytes);
                        (word.half(), word.shr(16).half())
                    } else {
                        (p.half(g * $bytes), V::splat(0.0))
                    }
                }
            }
        }
    };
}

block32!(
    /// `d · (n − 8)`.
    Q4_0: Q4_0, 18, false, 15, 8, [V; 4], |p, at| p.words(at + 2), |w| nibbles(w)
);
block32!(
    /// `d · n + m`.
    Q4_1: Q4_1, 20, true, 15, 0, [V; 4], |p, at| p.words(at + 4), |w| nibbles(w)
);
block32!(
    /// `d · table[n]`.
    Iq4Nl: IQ4_NL, 18, false, 255, 128, [V; 4], |p, at| p.words(at + 2),
    |w| levels(nibbles(w), &IQ4_NL_RAISED)
);
block32!(
    /// `d · n`.
    Q8_0: Q8_0, 34, false, 255, 128, [[V; 4]; 2],
    |p, at| [p.words(at + 2), p.words(at + 18)],
    |w| {
        let sign = V::bytes(128);
        [
            w[0][0].xor(sign),
            w[0][1].xor(sign),
            w[0][2].xor(sign),
            w[0][3].xor(sign),
            w[1][0].xor(sign),
            w[1][1].xor(sign),
            w[1][2].xor(sign),
            w[1][3].xor(sign),
        ]
    }
);
block32!(
    /// `d · (n − 16)`.
    Q5_0: Q5_0, 22, false, 31, 16, (V, [V; 4]),
    |p, at| (p.word(at + 2), p.words(at + 6)),
    |w| fifth(w.0, nibbles(&w.1))
);
block32!(
    /// `d · n + m`.
    Q5_1: Q5_1, 24, true, 31, 0, (V, [V; 4]),
    |p, at| (p.word(at + 4), p.words(at + 8)),
    |w| fifth(w.0, nibbles(&w.1))
);

/// Nibbles with their fifth bits from `bits`.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn fifth<V: Vector>(bits: V, mut w: [V; 8]) -> [V; 8] {
    for (i, w) in w.iter_mut().enumerate() {
        // SAFETY: by the contract.
        *w = unsafe { w.or(bits.fifth(i)) };
    }
    w
}

/// The levels of a 4-bit float; the scale is a power of two.
#[derive(Clone, Copy)]
pub(in super::super) struct Mxfp4;

impl<V: Vector> Blocks<V> for Mxfp4 {
    const TYPE: BlockType = BlockType::MXFP4;
    const BYTES: usize = size_of::<BlockMxfp4>();
    const LEN: usize = 32;
    const MIN: bool = false;
    const MAX: u8 = 31;
    const OFFSET: u32 = 16;
    const UNIT: usize = 1;
    /// Scales, as the bits of floats.
    type Head = Words;
    type Raw = [V; 4];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, n: usize) -> Words {
        let mut words = Words([[0; 16]; PANEL]);
        for j in 0..V::LANES {
            for (b, word) in words.0[..n].iter_mut().enumerate() {
                // SAFETY: a whole block is readable.
                let e = unsafe { p.byte(b * size_of::<BlockMxfp4>(), j) };
                word[j] = BlockMxfp4 { e, qs: [0; 16] }.scale(0).to_bits();
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, u: usize) -> [V; 4] {
        // SAFETY: a whole block is readable.
        unsafe { p.words(u * size_of::<BlockMxfp4>() + 1) }
    }

    #[inline(always)]
    unsafe fn quants(_: &Self::Head, raw: &[V; 4], _: usize, _: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe { levels(nibbles(raw), &MXFP4_RAISED) }
    }
}

impl<V: Vector> Whole<V> for Mxfp4 {
    #[inline(always)]
    unsafe fn scales(_: impl Panel<V>, head: &Words, g: usize) -> (V::F, V::F) {
        // SAFETY: by the contract.
        unsafe { (V::load(&head.0[g]).same(), V::splat(0.0)) }
    }
}
