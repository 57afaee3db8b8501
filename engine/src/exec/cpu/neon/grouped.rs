//! Types that are groups of whole codes with a scale each: IQ1 to IQ4_XS, TQ1_0, TQ2_0, MXFP4.
//!
//! Codebook entries are loaded whole and their signs set by a mask; `formats::blocks` documents
//! the layouts.

use std::arch::aarch64::*;

use formats::blocks::{
    BlockIq1M, BlockIq1S, BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs, BlockIq4Xs,
    BlockMxfp4, BlockTq1_0, BlockTq2_0, EVEN_SIGNS, Grouped, IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID,
    IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID, IQ4_NL_LEVELS, MXFP4_LEVELS,
};

use super::Eight;
use super::block32::{f16_at, levels, masks, signed};
use super::matmul::Groups;
use super::super256::{field, less, signed16};

/// Two entries of eight codes.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn eights(a: &[i8; 8], b: &[i8; 8]) -> int8x16_t {
    // SAFETY: by the contract.
    unsafe { vcombine_s8(vld1_s8(a.as_ptr()), vld1_s8(b.as_ptr())) }
}

/// Four entries of four codes.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn fours(e: [&[i8; 4]; 4]) -> int8x16_t {
    let words = e.map(|e| i32::from_le_bytes(bytemuck::cast(*e)));
    // SAFETY: by the contract.
    unsafe { vreinterpretq_s8_s32(vld1q_s32(words.as_ptr())) }
}

/// `codes`, negated where the bits of `signs` are set.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn negate(codes: int8x16_t, signs: u16) -> int8x16_t {
    // SAFETY: by the contract.
    unsafe {
        let mask = vreinterpretq_s8_u8(masks(signs.to_le_bytes()));
        vsubq_s8(veorq_s8(codes, mask), mask)
    }
}

/// Eight codes of IQ1 for each of two entries: eightfold, and shifted.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn shifted(a: usize, b: usize, down: [bool; 2]) -> int8x16_t {
    let shift = |down: bool| if down { -1 } else { 1 };
    // SAFETY: by the contract.
    unsafe {
        let v = vshlq_n_s8::<3>(eights(&IQ1_GRID[a], &IQ1_GRID[b]));
        let [first, second] = down.map(|d| vdup_n_s8(shift(d)));
        vaddq_s8(v, vcombine_s8(first, second))
    }
}

/// The ternary digits that the powers of three `pow` bring to the front of the bytes, less one.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn digits(bytes: uint8x16_t, pow: uint8x16_t) -> int8x16_t {
    // SAFETY: by the contract.
    unsafe {
        let fraction = vmulq_u8(bytes, pow);
        let three = vdupq_n_u8(3);
        let low = vmull_u8(vget_low_u8(fraction), vget_low_u8(three));
        let high = vmull_high_u8(fraction, three);
        less(vshrn_high_n_u16::<8>(vshrn_n_u16::<8>(low), high), 1)
    }
}

/// A type whose scales are `$head` and whose codes are `$codes`, of block `$b`.
macro_rules! grouped {
    ($(#[$doc:meta])* $name:ident, $block:ty, $len:expr, $group:expr, |$hb:ident| $head:expr,
     |$b:ident, $g:ident| $codes:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Groups for $name {
            const BYTES: usize = size_of::<$block>();
            const LEN: usize = $len;
            const GROUP: usize = $group;
            const SCALED: bool = true;
            const MIN: bool = false;
            type Head = [f32; $len / $group];

            #[inline(always)]
            unsafe fn head(p: *const u8) -> Self::Head {
                // SAFETY: a whole block is readable, and blocks lie at any address.
                unsafe {
                    let $hb = &*p.cast::<$block>();
                    $head
                }
            }

            #[inline(always)]
            unsafe fn quants(p: *const u8, _: &Self::Head, $g: usize) -> [Eight; 4] {
                // SAFETY: a whole block is readable, and blocks lie at any address.
                unsafe {
                    let $b = &*p.cast::<$block>();
                    $codes
                }
            }

            #[inline(always)]
            fn scale(h: &Self::Head, g: usize) -> f32 {
                h[g]
            }

            #[inline(always)]
            fn min(_: &Self::Head, _: usize) -> f32 {
                0.0
            }
        }
    };
}

grouped!(
    /// Entries of eight in −1, 0, 1, and an eighth up or down.
    Iq1S, BlockIq1S, 256, 32,
    |b| {
        let d = f16_at(b.d.as_ptr());
        b.qh.map(|w| d * f32::from(2 * (u16::from_le_bytes(w) >> 12 & 7) + 1) * 0.125)
    },
    |b, g| {
        let word = u16::from_le_bytes(b.qh[g]);
        let entry = |l: usize| usize::from(b.qs[4 * g + l]) | usize::from(word >> (3 * l) & 7) << 8;
        let down = [word >> 15 == 1; 2];
        signed(
            shifted(entry(0), entry(1), down),
            shifted(entry(2), entry(3), down),
        )
    }
);

grouped!(
    /// Entries of eight in −1, 0, 1, each an eighth up or down.
    Iq1M, BlockIq1M, 256, 16,
    |b| {
        let words = b.scales.map(u16::from_le_bytes);
        let bits = words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12;
        let d = f16_at(bits.to_le_bytes().as_ptr());
        std::array::from_fn(|g| {
            d * f32::from(2 * (words[g / 4] >> (3 * (g % 4)) & 7) + 1) * 0.125
        })
    },
    |b, g| {
        let high = usize::from(b.qh[g]);
        let first = usize::from(b.qs[2 * g]) | (high & 7) << 8;
        let second = usize::from(b.qs[2 * g + 1]) | (high >> 4 & 7) << 8;
        signed16(shifted(first, second, [high & 8 != 0, high & 128 != 0]))
    }
);

grouped!(
    /// Entries of eight, signs of even number.
    Iq2Xxs, BlockIq2Xxs, 256, 32,
    |b| {
        let d = f16_at(b.d.as_ptr());
        std::array::from_fn(|g| d * (0.5 + (b.word(g) >> 28) as f32) * 0.25)
    },
    |b, g| {
        let word = b.word(g) as usize;
        let pair = |l: usize| {
            let [one, two] = [l, l + 1].map(|l| &IQ2_XXS_GRID[usize::from(b.qs[g][l])]);
            let [low, high] = [l, l + 1].map(|l| u16::from(EVEN_SIGNS[word >> (7 * l) & 127]));
            negate(eights(one, two), low | high << 8)
        };
        signed(pair(0), pair(2))
    }
);

grouped!(
    /// Entries of eight, signs of even number; two scales to a byte.
    Iq2Xs, BlockIq2Xs, 256, 16,
    |b| {
        let d = f16_at(b.d.as_ptr());
        std::array::from_fn(|g| d * (0.5 + f32::from(b.scales[g / 2] >> (4 * (g % 2)) & 15)) * 0.25)
    },
    |b, g| {
        let words = [2 * g, 2 * g + 1].map(|i| usize::from(u16::from_le_bytes(b.qs[i])));
        let [one, two] = words.map(|w| &IQ2_XS_GRID[w & 511]);
        let [low, high] = words.map(|w| u16::from(EVEN_SIGNS[w >> 9]));
        signed16(negate(eights(one, two), low | high << 8))
    }
);

grouped!(
    /// Entries of eight, all signs.
    Iq2S, BlockIq2S, 256, 16,
    |b| {
        let d = f16_at(b.d.as_ptr());
        std::array::from_fn(|g| d * (0.5 + f32::from(b.scales[g / 2] >> (4 * (g % 2)) & 15)) * 0.25)
    },
    |b, g| {
        let [one, two] = [2 * g, 2 * g + 1].map(|e| &IQ2_S_GRID[b.entry(e)]);
        let signs = u16::from_le_bytes([b.signs[2 * g], b.signs[2 * g + 1]]);
        signed16(negate(eights(one, two), signs))
    }
);

grouped!(
    /// Entries of four, signs of even number.
    Iq3Xxs, BlockIq3Xxs, 256, 32,
    |b| {
        let d = f16_at(b.d.as_ptr());
        b.words.map(|w| d * (0.5 + (u32::from_le_bytes(w) >> 28) as f32) * 0.5)
    },
    |b, g| {
        let word = u32::from_le_bytes(b.words[g]) as usize;
        let half = |l: usize| {
            let entry = |e: usize| &IQ3_XXS_GRID[usize::from(b.qs[8 * g + 2 * l + e])];
            let [low, high] = [l, l + 1].map(|l| u16::from(EVEN_SIGNS[word >> (7 * l) & 127]));
            negate(fours([entry(0), entry(1), entry(2), entry(3)]), low | high << 8)
        };
        signed(half(0), half(2))
    }
);

grouped!(
    /// Entries of four, all signs.
    Iq3S, BlockIq3S, 256, 32,
    |b| {
        let d = f16_at(b.d.as_ptr());
        std::array::from_fn(|g| d * f32::from(2 * (b.scales[g / 2] >> (4 * (g % 2)) & 15) + 1))
    },
    |b, g| {
        let high = usize::from(b.qh[g]);
        let half = |l: usize| {
            let entry = |e: usize| {
                let low = usize::from(b.qs[8 * g + 4 * l + e]);
                &IQ3_S_GRID[low | (high >> (4 * l + e) & 1) << 8]
            };
            let at = 4 * g + 2 * l;
            let signs = u16::from_le_bytes([b.signs[at], b.signs[at + 1]]);
            negate(fours([entry(0), entry(1), entry(2), entry(3)]), signs)
        };
        signed(half(0), half(1))
    }
);

grouped!(
    /// The levels of IQ4_NL; eight 6-bit scales.
    Iq4Xs, BlockIq4Xs, 256, 32,
    |b| {
        let d = f16_at(b.d.as_ptr());
        std::array::from_fn(|g| d * f32::from(b.integer(g)))
    },
    |b, g| {
        levels(b.qs[g].as_ptr(), &IQ4_NL_LEVELS)
    }
);

grouped!(
    /// Ternary digits, five to a byte.
    Tq1_0, BlockTq1_0, 256, 32,
    |b| [f16_at(b.d.as_ptr()); 8],
    |b, g| {
        let all = |pow: u8| vdupq_n_u8(pow);
        let part = |at: usize| vld1q_u8(b.qs[at..at + 16].as_ptr());
        match g {
            0..5 => {
                let pow = all([1, 3, 9, 27, 81][g]);
                signed(digits(part(0), pow), digits(part(16), pow))
            }
            5 => signed(digits(part(32), all(1)), digits(part(32), all(3))),
            6 => signed(digits(part(32), all(9)), digits(part(32), all(27))),
            _ => {
                let last = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(b.qh)));
                let pow = [1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27_u8];
                signed(digits(part(32), all(81)), digits(last, vld1q_u8(pow.as_ptr())))
            }
        }
    }
);

grouped!(
    /// Two bits for −1, 0, 1.
    Tq2_0, BlockTq2_0, 256, 32,
    |b| [f16_at(b.d.as_ptr()); 8],
    |b, g| {
        let part = |at: usize| {
            let at = 32 * (g / 4) + at;
            less(field(b.qs[at..at + 16].as_ptr(), 2 * (g % 4), 3), 1)
        };
        signed(part(0), part(16))
    }
);

grouped!(
    /// The levels of a 4-bit float; the scale is a power of two.
    Mxfp4, BlockMxfp4, 32, 32,
    |b| [b.scale(0)],
    |b, _g| {
        levels(b.qs.as_ptr(), &MXFP4_LEVELS)
    }
);
