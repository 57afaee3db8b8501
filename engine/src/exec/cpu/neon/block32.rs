//! Blocks of 32 quants with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL.

use std::arch::aarch64::*;

use formats::blocks::IQ4_NL_LEVELS;
use half::f16;

use super::Eight;
use super::matmul::Groups;
use super::super256::less;

/// The f16 at `p`.
///
/// # Safety
/// NEON; two bytes readable.
#[inline(always)]
pub(super) unsafe fn f16_at(p: *const u8) -> f32 {
    // SAFETY: by the contract.
    unsafe {
        let bits = vdup_n_u16(p.cast::<u16>().read_unaligned());
        vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(bits)))
    }
}

/// 16 signed bytes as floats.
///
/// # Safety
/// NEON.
#[inline(always)]
pub(super) unsafe fn signed_eights(b: int8x16_t) -> [Eight; 2] {
    // SAFETY: by the contract.
    unsafe {
        let float = |w: int16x8_t| {
            Eight(
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(w))),
                vcvtq_f32_s32(vmovl_high_s16(w)),
            )
        };
        [float(vmovl_s8(vget_low_s8(b))), float(vmovl_high_s8(b))]
    }
}

/// 32 signed bytes as floats.
///
/// # Safety
/// NEON.
#[inline(always)]
pub(super) unsafe fn signed(low: int8x16_t, high: int8x16_t) -> [Eight; 4] {
    // SAFETY: by the contract.
    unsafe {
        let ([a, b], [c, d]) = (signed_eights(low), signed_eights(high));
        [a, b, c, d]
    }
}

/// 32 bytes below 128 as floats.
///
/// # Safety
/// NEON.
#[inline(always)]
pub(super) unsafe fn unsigned(low: uint8x16_t, high: uint8x16_t) -> [Eight; 4] {
    // SAFETY: by the contract.
    unsafe { signed(less(low, 0), less(high, 0)) }
}

/// The low and the high nibbles of 16 bytes.
///
/// # Safety
/// NEON; 16 bytes readable.
#[inline(always)]
pub(super) unsafe fn nibbles(p: *const u8) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: by the contract.
    unsafe {
        let b = vld1q_u8(p);
        (vandq_u8(b, vdupq_n_u8(15)), vshrq_n_u8::<4>(b))
    }
}

/// `table[n]` for each nibble of the 16 bytes at `p`, as floats.
///
/// # Safety
/// NEON; 16 bytes readable.
#[inline(always)]
pub(super) unsafe fn levels(p: *const u8, table: &[i8; 16]) -> [Eight; 4] {
    // SAFETY: by the contract.
    unsafe {
        let (low, high) = nibbles(p);
        let table = vld1q_s8(table.as_ptr());
        signed(vqtbl1q_s8(table, low), vqtbl1q_s8(table, high))
    }
}

/// Bytes of all ones where the bits of `bits` are set.
///
/// # Safety
/// NEON.
#[inline(always)]
pub(super) unsafe fn masks(bits: [u8; 2]) -> uint8x16_t {
    // SAFETY: by the contract.
    unsafe {
        let each = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        vtstq_u8(vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1])), each)
    }
}

/// 32 bits as bytes of 0 or 16.
///
/// # Safety
/// NEON; four bytes readable.
#[inline(always)]
unsafe fn fifth_bits(p: *const u8) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: by the contract.
    unsafe {
        let [a, b, c, d] = *p.cast::<[u8; 4]>();
        let sixteen = vdupq_n_u8(16);
        (
            vandq_u8(masks([a, b]), sixteen),
            vandq_u8(masks([c, d]), sixteen),
        )
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
            unsafe fn quants($p: *const u8, _: &(f32, f32), _: usize) -> [Eight; 4] {
                // SAFETY: a whole block is readable; NEON by the contract.
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
        signed(less(low, 8), less(high, 8))
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
        signed(less(vorrq_u8(low, l5), 16), less(vorrq_u8(high, h5), 16))
    }
);
block32!(
    /// `d · n + m`.
    Q5_1, 24, true, |p| {
        let (low, high) = nibbles(p.add(8));
        let (l5, h5) = fifth_bits(p.add(4));
        unsigned(vorrq_u8(low, l5), vorrq_u8(high, h5))
    }
);
block32!(
    /// `d · n`.
    Q8_0, 34, false, |p| {
        signed(vld1q_s8(p.add(2).cast()), vld1q_s8(p.add(18).cast()))
    }
);
block32!(
    /// `d · table[n]`.
    Iq4Nl, 18, false, |p| {
        levels(p.add(2), &IQ4_NL_LEVELS)
    }
);

// The kernel reads the scale of every type as an f16 in the first two bytes.
const _: () = assert!(size_of::<f16>() == 2);
