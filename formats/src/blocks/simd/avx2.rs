//! Vectors as AVX registers. A [`Register`] exists only inside [`run`].

use std::arch::x86_64::{
    __m256, __m256i, _CMP_EQ_OQ, _CMP_LT_OQ, _MM_FROUND_TO_NEAREST_INT, _mm_loadu_si128,
    _mm_storeu_si128, _mm256_add_ps, _mm256_and_ps, _mm256_andnot_ps, _mm256_blendv_ps,
    _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtph_ps, _mm256_cvtps_ph,
    _mm256_div_ps, _mm256_extract_epi32, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_or_ps, _mm256_permute2f128_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_shuffle_epi8, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_sub_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps,
};
use std::ops::{Add, Div, Mul, Sub};

use super::{Kernel, LANES, SHIFT, Simd};

/// Whether [`run`] may be called.
#[inline]
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// Runs `kernel` on registers.
///
/// # Safety
/// [`available`] must hold.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn run(kernel: impl Kernel) {
    kernel.run::<Register>();
}

/// Eight values in a register. Made by its own methods only, which only code below [`run`] calls.
#[derive(Clone, Copy)]
struct Register(__m256);

macro_rules! operator {
    ($trait:ident, $method:ident, $intrinsic:ident) => {
        impl $trait for Register {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: below `run` the processor has AVX2.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    };
}

operator!(Add, add, _mm256_add_ps);
operator!(Sub, sub, _mm256_sub_ps);
operator!(Mul, mul, _mm256_mul_ps);
operator!(Div, div, _mm256_div_ps);

impl Simd for Register {
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe { _mm256_set1_ps(v) })
    }

    #[inline(always)]
    fn load(v: &[f32; LANES]) -> Self {
        // SAFETY: eight values are read, and any address will do; AVX2 as above.
        Self(unsafe { _mm256_loadu_ps(v.as_ptr()) })
    }

    #[inline(always)]
    fn store(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: eight values are written, and any address will do; AVX2 as above.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), self.0) };
        out
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn if_less(self, than: Self, yes: Self, no: Self) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe {
            let mask = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, than.0);
            _mm256_blendv_ps(no.0, yes.0, mask)
        })
    }

    #[inline(always)]
    fn if_equal(self, other: Self, yes: Self, no: Self) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe {
            let mask = _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0);
            _mm256_blendv_ps(no.0, yes.0, mask)
        })
    }

    #[inline(always)]
    fn half_bits(self) -> [u16; LANES] {
        let mut out = [0; LANES];
        // SAFETY: 16 bytes are written, and any address will do; F16C as above.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
        }
        out
    }

    #[inline(always)]
    fn from_half_bits(bits: [u16; LANES]) -> Self {
        // SAFETY: 16 bytes are read, and any address will do; F16C as above.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast())) })
    }

    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let [a, b, c, d, e, f, g, h] = rows.map(|r| r.0);
        // SAFETY: below `run` the processor has AVX2.
        unsafe {
            let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ef0, ef1) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
            let (gh0, gh1) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
            // Columns 0 and 4, 1 and 5, … of the upper and the lower four rows.
            let (u0, l0) = (
                _mm256_shuffle_ps::<0x44>(ab0, cd0),
                _mm256_shuffle_ps::<0x44>(ef0, gh0),
            );
            let (u1, l1) = (
                _mm256_shuffle_ps::<0xee>(ab0, cd0),
                _mm256_shuffle_ps::<0xee>(ef0, gh0),
            );
            let (u2, l2) = (
                _mm256_shuffle_ps::<0x44>(ab1, cd1),
                _mm256_shuffle_ps::<0x44>(ef1, gh1),
            );
            let (u3, l3) = (
                _mm256_shuffle_ps::<0xee>(ab1, cd1),
                _mm256_shuffle_ps::<0xee>(ef1, gh1),
            );
            [
                Self(_mm256_permute2f128_ps::<0x20>(u0, l0)),
                Self(_mm256_permute2f128_ps::<0x20>(u1, l1)),
                Self(_mm256_permute2f128_ps::<0x20>(u2, l2)),
                Self(_mm256_permute2f128_ps::<0x20>(u3, l3)),
                Self(_mm256_permute2f128_ps::<0x31>(u0, l0)),
                Self(_mm256_permute2f128_ps::<0x31>(u1, l1)),
                Self(_mm256_permute2f128_ps::<0x31>(u2, l2)),
                Self(_mm256_permute2f128_ps::<0x31>(u3, l3)),
            ]
        }
    }

    #[inline(always)]
    fn tagged(self, tag: u8) -> Self {
        // SAFETY: below `run` the processor has AVX2.
        Self(unsafe {
            let room = _mm256_and_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(!0xff)));
            let tag = _mm256_set1_epi32(i32::from(tag));
            _mm256_or_ps(room, _mm256_castsi256_ps(tag))
        })
    }

    #[inline(always)]
    fn tags(self) -> [u8; LANES] {
        self.store().map(|v| v.to_bits() as u8)
    }

    #[inline(always)]
    fn low_bytes(self) -> [u8; LANES] {
        // The first byte of every 32-bit word comes to the front of its half.
        const FIRST: i32 = 0x0c08_0400;
        // SAFETY: below `run` the processor has AVX2.
        let (low, high) = unsafe {
            let bits: __m256i = _mm256_castps_si256((self + Self::splat(SHIFT)).0);
            let bytes = _mm256_shuffle_epi8(bits, _mm256_set1_epi32(FIRST));
            (
                _mm256_extract_epi32::<0>(bytes),
                _mm256_extract_epi32::<4>(bytes),
            )
        };
        (u64::from(low as u32) | u64::from(high as u32) << 32).to_le_bytes()
    }
}
