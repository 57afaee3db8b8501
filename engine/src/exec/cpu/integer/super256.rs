//! Super-blocks of 256 quants: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS.
//!
//! `formats::blocks` documents the layouts.

// As in `tile`.
#![allow(clippy::inline_always)]

use formats::blocks::{BlockIq4Xs, BlockType, IQ4_NL_LEVELS};

use super::block32::{levels, nibbles};
use super::chain::{Halved, Whole};
use super::panel::Panel;
use super::tile::Blocks;
use super::vector::Vector;

/// Integer scales (and minima) of all rows, four a lane, and what they are multiplied with.
pub(in super::super) struct Scales<V: Vector> {
    /// What all sizes of a super-block are multiplied with.
    pub(super) d: V::F,
    dmin: V::F,
    pub(super) sizes: [V; 4],
    mins: [V; 4],
}

/// 32 bytes at `at` of each row.
///
/// # Safety
/// `V`'s instruction set; 32 bytes readable.
#[inline(always)]
unsafe fn words32<V: Vector>(p: impl Panel<V>, at: usize) -> [V; 8] {
    // SAFETY: by the contract.
    unsafe {
        let ([a, b, c, d], [e, f, g, h]) = (p.words(at), p.words(at + 16));
        [a, b, c, d, e, f, g, h]
    }
}

/// `(w << n) & mask`, byte by byte; the mask must drop what comes from the neighbour.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn field<V: Vector>(w: &[V; 8], n: i32, mask: u8) -> [V; 8] {
    let mut w = *w;
    for w in &mut w {
        // SAFETY: by the contract.
        *w = unsafe { w.turn(n).and(V::bytes(mask)) };
    }
    w
}

/// [`field`] of two, together.
///
/// # Safety
/// As [`field`].
#[inline(always)]
unsafe fn fields<V: Vector>(a: (&[V; 8], i32, u8), b: (&[V; 8], i32, u8)) -> [V; 8] {
    // SAFETY: by the contract.
    unsafe {
        let (mut w, high) = (field(a.0, a.1, a.2), field(b.0, b.1, b.2));
        for (w, high) in w.iter_mut().zip(high) {
            *w = w.or(high);
        }
        w
    }
}

/// Byte `g` of `words`, unsigned.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn low_byte<V: Vector>(words: &[V; 4], g: usize) -> V {
    // SAFETY: by the contract.
    unsafe { words[g / 4].shr(8 * (g % 4)).and(V::lanes(255)) }
}

/// Byte `g` of `words`, signed.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
pub(super) unsafe fn high_byte<V: Vector>(words: &[V; 4], g: usize) -> V {
    // SAFETY: by the contract.
    unsafe { words[g / 4].shl(24 - 8 * (g % 4)).sar(24) }
}

/// `factor` times byte `g` of `words`, unsigned.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn unsigned<V: Vector>(factor: V::F, words: &[V; 4], g: usize) -> V::F {
    // SAFETY: by the contract.
    unsafe { V::mul(factor, low_byte(words, g).float()) }
}

/// Six bits in each byte, raised by 32: without that, signed, and four times as large, since they then
/// fill the byte.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn lowered<V: Vector>(six: V) -> V {
    // SAFETY: by the contract.
    unsafe { six.xor(V::bytes(32)).shl(2) }
}

/// The head of Q4_K and Q5_K: 16 bytes, d, dmin, and eight scales and minima of 6 bits.
///
/// # Safety
/// `V`'s instruction set; 16 bytes readable.
#[inline(always)]
unsafe fn k4_head<V: Vector>(p: impl Panel<V>) -> Scales<V> {
    // SAFETY: by the contract.
    unsafe {
        let [d, a, b, c] = p.words(0);
        let (six, four, top) = (V::bytes(63), V::bytes(15), V::bytes(48));
        let zero = V::lanes(0);
        Scales {
            d: d.half(),
            dmin: d.shr(16).half(),
            sizes: [a.and(six), c.and(four).or(a.shr(2).and(top)), zero, zero],
            mins: [
                b.and(six),
                c.shr(4).and(four).or(b.shr(2).and(top)),
                zero,
                zero,
            ],
        }
    }
}

/// Five bits; eight 6-bit scales and minima.
#[derive(Clone, Copy)]
pub(in super::super) struct Q5K;

/// Four bits; eight 6-bit scales and minima.
#[derive(Clone, Copy)]
pub(in super::super) struct Q4K;

impl<V: Vector> Blocks<V> for Q4K {
    const TYPE: BlockType = BlockType::Q4_K;
    const BYTES: usize = 144;
    const LEN: usize = 256;
    const MIN: bool = true;
    const MAX: u8 = 15;
    const OFFSET: u32 = 0;
    const UNIT: usize = 2;
    type Head = Scales<V>;
    type Raw = [V; 8];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, _: usize) -> Scales<V> {
        // SAFETY: a whole block is readable.
        unsafe { k4_head(p) }
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, u: usize) -> [V; 8] {
        // SAFETY: a whole block is readable.
        unsafe { words32(p, 16 + 32 * u) }
    }

    #[inline(always)]
    unsafe fn quants(_: &Self::Head, raw: &[V; 8], _: usize, r: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe { field(raw, -4 * r as i32, 15) }
    }
}

impl<V: Vector> Whole<V> for Q4K {
    #[inline(always)]
    unsafe fn scales(_: impl Panel<V>, h: &Scales<V>, g: usize) -> (V::F, V::F) {
        // SAFETY: by the contract.
        unsafe {
            let min = unsigned(h.dmin, &h.mins, g);
            (unsigned(h.d, &h.sizes, g), V::neg(min))
        }
    }
}

impl<V: Vector> Blocks<V> for Q5K {
    const TYPE: BlockType = BlockType::Q5_K;
    const BYTES: usize = 176;
    const LEN: usize = 256;
    const MIN: bool = true;
    const MAX: u8 = 31;
    const OFFSET: u32 = 0;
    const UNIT: usize = 2;
    /// Beside scales, the fifth bits of all quants.
    type Head = (Scales<V>, [V; 8]);
    type Raw = [V; 8];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, _: usize) -> Self::Head {
        // SAFETY: a whole block is readable.
        unsafe {
            let scales = k4_head(p);
            (scales, words32(p, 16))
        }
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, u: usize) -> [V; 8] {
        // SAFETY: a whole block is readable.
        unsafe { words32(p, 48 + 32 * u) }
    }

    #[inline(always)]
    unsafe fn quants((_, fifth): &Self::Head, raw: &[V; 8], u: usize, r: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe {
            let (u, r) = (u as i32, r as i32);
            fields((raw, -4 * r, 15), (fifth, 4 - 2 * u - r, 16))
        }
    }
}

impl<V: Vector> Whole<V> for Q5K {
    #[inline(always)]
    unsafe fn scales(_: impl Panel<V>, (h, _): &Self::Head, g: usize) -> (V::F, V::F) {
        // SAFETY: by the contract.
        unsafe {
            let min = unsigned(h.dmin, &h.mins, g);
            (unsigned(h.d, &h.sizes, g), V::neg(min))
        }
    }
}

/// Two bits; sixteen 4-bit scales and minima.
#[derive(Clone, Copy)]
pub(in super::super) struct Q2K;

impl<V: Vector> Blocks<V> for Q2K {
    const TYPE: BlockType = BlockType::Q2_K;
    const BYTES: usize = 84;
    const LEN: usize = 256;
    const MIN: bool = true;
    const MAX: u8 = 3;
    const OFFSET: u32 = 0;
    const UNIT: usize = 4;
    type Head = Scales<V>;
    type Raw = [V; 8];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, _: usize) -> Scales<V> {
        // SAFETY: a whole block is readable.
        unsafe {
            let d = p.word(80);
            let [a, b, c, e] = p.words(0);
            let low = V::bytes(15);
            Scales {
                d: d.half(),
                dmin: d.shr(16).half(),
                sizes: [a.and(low), b.and(low), c.and(low), e.and(low)],
                mins: [
                    a.shr(4).and(low),
                    b.shr(4).and(low),
                    c.shr(4).and(low),
                    e.shr(4).and(low),
                ],
            }
        }
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, u: usize) -> [V; 8] {
        // SAFETY: a whole block is readable.
        unsafe { words32(p, 16 + 32 * u) }
    }

    #[inline(always)]
    unsafe fn quants(_: &Self::Head, raw: &[V; 8], _: usize, r: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe { field(raw, -2 * r as i32, 3) }
    }
}

impl<V: Vector> Halved<V> for Q2K {
    #[inline(always)]
    unsafe fn size(h: &Scales<V>, g: usize) -> V {
        // SAFETY: by the contract.
        unsafe { low_byte(&h.sizes, g) }
    }

    #[inline(always)]
    unsafe fn min(h: &Scales<V>, g: usize) -> V::F {
        // SAFETY: by the contract.
        unsafe { V::neg(unsigned(h.dmin, &h.mins, g)) }
    }
}

/// Three bits; sixteen signed 6-bit scales.
#[derive(Clone, Copy)]
pub(in super::super) struct Q3K;

impl<V: Vector> Blocks<V> for Q3K {
    const TYPE: BlockType = BlockType::Q3_K;
    const BYTES: usize = 110;
    const LEN: usize = 256;
    const MIN: bool = false;
    const MAX: u8 = 7;
    const OFFSET: u32 = 4;
    const UNIT: usize = 8;
    type Head = Scales<V>;
    /// High bits, low bits of both halves.
    type Raw = [[V; 8]; 3];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, _: usize) -> Scales<V> {
        // SAFETY: a whole block is readable.
        unsafe {
            let ([low, mid, high], d) = p.three_and_half(96);
            let (four, two) = (V::bytes(15), V::bytes(48));
            // Scales `j` of 0..4, 4..8 (low nibbles), 8..12, 12..16 (high nibbles), upper two
            // bits at 0, 2, 4, 6.
            let scales = [
                lowered(low.and(four).or(high.shl(4).and(two))),
                lowered(mid.and(four).or(high.shl(2).and(two))),
                lowered(low.shr(4).and(four).or(high.and(two))),
                lowered(mid.shr(4).and(four).or(high.shr(2).and(two))),
            ];
            Scales {
                // Exact: a quarter of a half is a float.
                d: V::mul(d, V::splat(0.25)),
                dmin: V::splat(0.0),
                sizes: scales,
                mins: scales,
            }
        }
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, _: usize) -> [[V; 8]; 3] {
        // SAFETY: a whole block is readable.
        unsafe { [words32(p, 0), words32(p, 32), words32(p, 64)] }
    }

    #[inline(always)]
    unsafe fn quants(_: &Self::Head, raw: &[[V; 8]; 3], _: usize, r: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe {
            let low = &raw[1 + r / 4];
            let r = r as i32;
            fields((low, -2 * (r % 4), 3), (&raw[0], 2 - r, 4))
        }
    }
}

impl<V: Vector> Halved<V> for Q3K {}

/// Six bits; sixteen signed 8-bit scales.
#[derive(Clone, Copy)]
pub(in super::super) struct Q6K;

impl<V: Vector> Blocks<V> for Q6K {
    const TYPE: BlockType = BlockType::Q6_K;
    const BYTES: usize = 210;
    const LEN: usize = 256;
    const MIN: bool = false;
    const MAX: u8 = 63;
    const OFFSET: u32 = 32;
    const UNIT: usize = 4;
    type Head = Scales<V>;
    /// Two runs of nibbles, upper two bits.
    type Raw = [[V; 8]; 3];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, _: usize) -> Scales<V> {
        // SAFETY: a whole block is readable.
        unsafe {
            let scales = p.words(192);
            Scales {
                d: p.last_half(208),
                dmin: V::splat(0.0),
                sizes: scales,
                mins: scales,
            }
        }
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, u: usize) -> [[V; 8]; 3] {
        // SAFETY: a whole block is readable.
        unsafe {
            [
                words32(p, 64 * u),
                words32(p, 64 * u + 32),
                words32(p, 128 + 32 * u),
            ]
        }
    }

    #[inline(always)]
    unsafe fn quants(_: &Self::Head, raw: &[[V; 8]; 3], _: usize, r: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe {
            let low = &raw[r % 2];
            let r = r as i32;
            fields((low, -4 * (r / 2), 15), (&raw[2], 4 - 2 * r, 48))
        }
    }
}

impl<V: Vector> Halved<V> for Q6K {}

/// The levels of IQ4_NL; eight 6-bit scales.
#[derive(Clone, Copy)]
pub(in super::super) struct Iq4Xs;

const IQ4_XS_RAISED: [u8; 16] = {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (IQ4_NL_LEVELS[i] as u8).wrapping_add(128);
        i += 1;
    }
    out
};

impl<V: Vector> Blocks<V> for Iq4Xs {
    const TYPE: BlockType = BlockType::IQ4_XS;
    const BYTES: usize = size_of::<BlockIq4Xs>();
    const LEN: usize = 256;
    const MIN: bool = false;
    const MAX: u8 = 255;
    const OFFSET: u32 = 128;
    const UNIT: usize = 1;
    /// d, and in the upper half upper two bits of scales; lower four bits.
    type Head = [V; 2];
    type Raw = [V; 4];

    #[inline(always)]
    unsafe fn head(p: impl Panel<V>, _: usize) -> [V; 2] {
        // SAFETY: a whole block is readable.
        unsafe { [p.word(0), p.word(4)] }
    }

    #[inline(always)]
    unsafe fn raw(p: impl Panel<V>, u: usize) -> [V; 4] {
        // SAFETY: a whole block is readable.
        unsafe { p.words(8 + 16 * u) }
    }

    #[inline(always)]
    unsafe fn quants(_: &Self::Head, raw: &[V; 4], _: usize, _: usize) -> [V; 8] {
        // SAFETY: by the contract.
        unsafe { levels(nibbles(raw), &IQ4_XS_RAISED) }
    }
}

impl<V: Vector> Whole<V> for Iq4Xs {
    #[inline(always)]
    unsafe fn scales(_: impl Panel<V>, [upper, lower]: &[V; 2], g: usize) -> (V::F, V::F) {
        // SAFETY: by the contract.
        unsafe {
            let four = lower.shr(4 * g).and(V::lanes(15));
            let two = upper.shr(12 + 2 * g).and(V::lanes(48));
            // Six bits less 32: without the offset the sixth is a sign.
            let scale = four.or(two).xor(V::lanes(32)).shl(26).sar(26);
            (V::mul(upper.half(), scale.float()), V::splat(0.0))
        }
    }
}
