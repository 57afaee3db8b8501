//! Plain floats, as blocks of 32.

use std::arch::x86_64::*;

use super::matmul::Groups;

macro_rules! float {
    ($(#[$doc:meta])* $name:ident, $bytes:expr, $load:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Groups for $name {
            const BYTES: usize = 32 * $bytes;
            const LEN: usize = 32;
            const GROUP: usize = 32;
            const SCALED: bool = false;
            const MIN: bool = false;
            type Head = ();

            #[inline(always)]
            unsafe fn head(_: *const u8) {}

            #[inline(always)]
            unsafe fn quants(p: *const u8, (): &(), _: usize) -> [__m256; 4] {
                let load: unsafe fn(*const u8) -> __m256 = $load;
                // SAFETY: 32 values are readable at `p`.
                unsafe {
                    [
                        load(p),
                        load(p.add(8 * $bytes)),
                        load(p.add(16 * $bytes)),
                        load(p.add(24 * $bytes)),
                    ]
                }
            }

            #[inline(always)]
            fn scale((): &(), _: usize) -> f32 {
                1.0
            }

            #[inline(always)]
            fn min((): &(), _: usize) -> f32 {
                0.0
            }
        }
    };
}

/// Eight f32.
///
/// # Safety
/// AVX; 32 bytes readable.
#[inline(always)]
unsafe fn load_f32(p: *const u8) -> __m256 {
    // SAFETY: by the contract.
    unsafe { _mm256_loadu_ps(p.cast()) }
}

/// Eight f16.
///
/// # Safety
/// F16C; 16 bytes readable.
#[inline(always)]
unsafe fn load_f16(p: *const u8) -> __m256 {
    // SAFETY: by the contract.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// Eight bf16: the upper halves of f32.
///
/// # Safety
/// AVX2; 16 bytes readable.
#[inline(always)]
unsafe fn load_bf16(p: *const u8) -> __m256 {
    // SAFETY: by the contract.
    unsafe {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

float!(
    /// `f32` weights.
    F32, 4, load_f32
);
float!(
    /// `f16` weights.
    F16, 2, load_f16
);
float!(
    /// `bf16` weights.
    Bf16, 2, load_bf16
);
