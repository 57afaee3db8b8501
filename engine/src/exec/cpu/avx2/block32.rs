//! Blocks of 32 quants with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL.

use std::arch::x86_64::*;

use formats::blocks::IQ4_NL_LEVELS;
use half::f16;

use super::matmul::Groups;

/// The f16 at `p`.
///
/// # Safety
/// F16C; two bytes readable.
#[inline(always)]
pub(super) unsafe fn f16_at(p: *const u8) -> f32 {
    // SAFETY: by the contract.
    unsafe {
        let bits = i32::from(p.cast::<u16>().read_unaligned());
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
    }
}

/// 32 unsigned bytes as floats.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub(super) unsafe fn unsigned(low: __m128i, high: __m128i) -> [__m256; 4] {
    // SAFETY: by the contract.
    unsafe {
        [
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(low))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(high))),
        ]
    }
}

/// 32 signed bytes as floats.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub(super) unsafe fn signed(low: __m128i, high: __m128i) -> [__m256; 4] {
    // SAFETY: by the contract.
    unsafe {
        [
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(low))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(high))),
        ]
    }
}

/// The low and the high nibbles of 16 bytes.
///
/// # Safety
/// AVX2; 16 bytes readable.
#[inline(always)]
pub(super) unsafe fn nibbles(p: *const u8) -> (__m128i, __m128i) {
    // SAFETY: by the contract.
    unsafe {
        let b = _mm_loadu_si128(p.cast());
        let mask = _mm_set1_epi8(15);
        (
            _mm_and_si128(b, mask),
            _mm_and_si128(_mm_srli_epi16::<4>(b), mask),
        )
    }
}

/// 32 bits as bytes of 0 or 16.
///
/// # Safety
/// AVX2; four bytes readable.
#[inline(always)]
unsafe fn fifth_bits(p: *const u8) -> (__m128i, __m128i) {
    // SAFETY: by the contract.
    unsafe {
        let bits = _mm_set1_epi32(p.cast::<i32>().read_unaligned());
        let each = _mm_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let pick = |spread: __m128i| {
            let b = _mm_and_si128(_mm_shuffle_epi8(bits, spread), each);
            _mm_and_si128(_mm_cmpeq_epi8(b, each), _mm_set1_epi8(16))
        };
        let low = _mm_set_epi64x(0x0101_0101_0101_0101, 0);
        let high = _mm_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202);
        (pick(low), pick(high))
    }
}

macro_rules! block32 {
    ($(#[$doc:meta])* $name:ident, $bytes:expr, $min:expr, |$p:ident| $quants:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Groups for $name {
            const BYTES: usize = $bytes;
            const LEN: usize = 32;
            const GROUP: usize = 32;
            const SCALED: bool = true;
            const MIN: bool = $min;
            /// Scale and minimum.
            type Head = (f32, f32);

            #[inline(always)]
            unsafe fn head(p: *const u8) -> (f32, f32) {
                // SAFETY: a whole block is readable.
                unsafe { (f16_at(p), if $min { f16_at(p.add(2)) } else { 0.0 }) }
            }

            #[inline(always)]
            unsafe fn quants($p: *const u8, _: &(f32, f32), _: usize) -> [__m256; 4] {
                // SAFETY: a whole block is readable; AVX2 by the contract.
                unsafe { $quants }
            }

            #[inline(always)]
            fn scale(h: &(f32, f32), _: usize) -> f32 {
                h.0
            }

            #[inline(always)]
            fn min(h: &(f32, f32), _: usize) -> f32 {
                h.1
            }
        }
    };
}

block32!(
    /// `d · (n − 8)`.
    Q4_0, 18, false, |p| {
        let (low, high) = nibbles(p.add(2));
        let eight = _mm_set1_epi8(8);
        signed(_mm_sub_epi8(low, eight), _mm_sub_epi8(high, eight))
    }
);
block32!(
    /// `d · n + m`.
    Q4_1, 20, true, |p| {
        let (low, high) = nibbles(p.add(4));
        unsigned(low, high)
    }
);
block32!(
    /// `d · (n − 16)`.
    Q5_0, 22, false, |p| {
        let (low, high) = nibbles(p.add(6));
        let (l5, h5) = fifth_bits(p.add(2));
        let sixteen = _mm_set1_epi8(16);
        signed(
            _mm_sub_epi8(_mm_or_si128(low, l5), sixteen),
            _mm_sub_epi8(_mm_or_si128(high, h5), sixteen),
        )
    }
);
block32!(
    /// `d · n + m`.
    Q5_1, 24, true, |p| {
        let (low, high) = nibbles(p.add(8));
        let (l5, h5) = fifth_bits(p.add(4));
        unsigned(_mm_or_si128(low, l5), _mm_or_si128(high, h5))
    }
);
block32!(
    /// `d · n`.
    Q8_0, 34, false, |p| {
        signed(_mm_loadu_si128(p.add(2).cast()), _mm_loadu_si128(p.add(18).cast()))
    }
);
block32!(
    /// `d · table[n]`.
    Iq4Nl, 18, false, |p| {
        let (low, high) = nibbles(p.add(2));
        let table = _mm_loadu_si128(IQ4_NL_LEVELS.as_ptr().cast());
        signed(_mm_shuffle_epi8(table, low), _mm_shuffle_epi8(table, high))
    }
);

// The kernel reads the scale of every type as an f16 in the first two bytes.
const _: () = assert!(size_of::<f16>() == 2);
