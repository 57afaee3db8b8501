//! Types that are groups of whole codes with a scale each: IQ1 to IQ4_XS, TQ1_0, TQ2_0, MXFP4.
//!
//! Codebook entries are loaded whole and their signs set by a mask; `formats::blocks` documents
//! the layouts.

use std::arch::x86_64::*;

use formats::blocks::{
    BlockIq1M, BlockIq1S, BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs, BlockIq4Xs,
    BlockMxfp4, BlockTq1_0, BlockTq2_0, EVEN_SIGNS, Grouped, IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID,
    IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID, IQ4_NL_LEVELS, MXFP4_LEVELS,
};

use super::block32::{f16_at, nibbles, signed};
use super::matmul::Groups;
use super::super256::{field, signed16};

/// Two entries of eight codes.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn eights(a: &[i8; 8], b: &[i8; 8]) -> __m128i {
    let word = |e: &[i8; 8]| i64::from_le_bytes(bytemuck::cast(*e));
    // SAFETY: by the contract.
    unsafe { _mm_set_epi64x(word(b), word(a)) }
}

/// Four entries of four codes.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn fours(e: [&[i8; 4]; 4]) -> __m128i {
    let [a, b, c, d] = e.map(|e| i32::from_le_bytes(bytemuck::cast(*e)));
    // SAFETY: by the contract.
    unsafe { _mm_set_epi32(d, c, b, a) }
}

/// `codes`, negated where the bits of `signs` are set.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn negate(codes: __m128i, signs: u16) -> __m128i {
    // SAFETY: by the contract.
    unsafe {
        let each = _mm_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let spread = _mm_set_epi64x(0x0101_0101_0101_0101, 0);
        let bits = _mm_shuffle_epi8(_mm_cvtsi32_si128(i32::from(signs)), spread);
        let mask = _mm_cmpeq_epi8(_mm_and_si128(bits, each), each);
        _mm_sub_epi8(_mm_xor_si128(codes, mask), mask)
    }
}

/// Eight codes of IQ1 for each of two entries: eightfold, and shifted.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn shifted(a: usize, b: usize, down: [bool; 2]) -> __m128i {
    const UP: i64 = 0x0101_0101_0101_0101;
    let shift = |down: bool| if down { -1 } else { UP };
    // SAFETY: by the contract.
    unsafe {
        let v = _mm_slli_epi16::<3>(eights(&IQ1_GRID[a], &IQ1_GRID[b]));
        let v = _mm_and_si128(v, _mm_set1_epi8(!7));
        _mm_add_epi8(v, _mm_set_epi64x(shift(down[1]), shift(down[0])))
    }
}

/// The ternary digits that the powers of three `pow` bring to the front of the bytes, less one.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn digits(bytes: __m128i, pow: __m256i) -> __m128i {
    // SAFETY: by the contract.
    unsafe {
        let moved = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(bytes), pow);
        let fraction = _mm256_and_si256(moved, _mm256_set1_epi16(255));
        let tripled = _mm256_mullo_epi16(fraction, _mm256_set1_epi16(3));
        let digit = _mm256_srli_epi16::<8>(tripled);
        let packed = _mm_packs_epi16(
            _mm256_castsi256_si128(digit),
            _mm256_extracti128_si256::<1>(digit),
        );
        _mm_sub_epi8(packed, _mm_set1_epi8(1))
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
            unsafe fn quants(p: *const u8, _: &Self::Head, $g: usize) -> [__m256; 4] {
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
        let (low, high) = nibbles(b.qs[g].as_ptr());
        let table = _mm_loadu_si128(IQ4_NL_LEVELS.as_ptr().cast());
        signed(_mm_shuffle_epi8(table, low), _mm_shuffle_epi8(table, high))
    }
);

grouped!(
    /// Ternary digits, five to a byte.
    Tq1_0, BlockTq1_0, 256, 32,
    |b| [f16_at(b.d.as_ptr()); 8],
    |b, g| {
        let all = |pow: i16| _mm256_set1_epi16(pow);
        let part = |at: usize| _mm_loadu_si128(b.qs[at..at + 16].as_ptr().cast());
        match g {
            0..5 => {
                let pow = all([1, 3, 9, 27, 81][g]);
                signed(digits(part(0), pow), digits(part(16), pow))
            }
            5 => signed(digits(part(32), all(1)), digits(part(32), all(3))),
            6 => signed(digits(part(32), all(9)), digits(part(32), all(27))),
            _ => {
                let last = _mm_set1_epi32(i32::from_le_bytes(b.qh));
                let pow = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
                signed(digits(part(32), all(81)), digits(last, pow))
            }
        }
    }
);

grouped!(
    /// Two bits for −1, 0, 1.
    Tq2_0, BlockTq2_0, 256, 32,
    |b| [f16_at(b.d.as_ptr()); 8],
    |b, g| {
        let one = _mm_set1_epi8(1);
        let part = |at: usize| {
            let at = 32 * (g / 4) + at;
            _mm_sub_epi8(field(b.qs[at..at + 16].as_ptr(), 2 * (g % 4), 3), one)
        };
        signed(part(0), part(16))
    }
);

grouped!(
    /// The levels of a 4-bit float; the scale is a power of two.
    Mxfp4, BlockMxfp4, 32, 32,
    |b| [b.scale(0)],
    |b, _g| {
        let (low, high) = nibbles(b.qs.as_ptr());
        let table = _mm_loadu_si128(MXFP4_LEVELS.as_ptr().cast());
        signed(_mm_shuffle_epi8(table, low), _mm_shuffle_epi8(table, high))
    }
);
