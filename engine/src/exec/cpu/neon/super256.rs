//! Super-blocks of 256 quants: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

use std::arch::aarch64::*;

use super::super::scalar::{scale_k3, scale_min_k4};
use super::Eight;
use super::block32::{f16_at, signed_eights, unsigned};
use super::matmul::Groups;

/// Scales and (negated) minima of the groups of a super-block.
#[derive(Clone, Copy)]
pub(super) struct Scales<const N: usize> {
    scale: [f32; N],
    min: [f32; N],
}

/// 16 bytes at `p`, each shifted right by `n` bits and masked.
///
/// # Safety
/// NEON; 16 bytes readable.
#[inline(always)]
pub(super) unsafe fn field(p: *const u8, n: usize, mask: u8) -> uint8x16_t {
    // SAFETY: by the contract.
    unsafe {
        let shifted = vshlq_u8(vld1q_u8(p), vdupq_n_s8(-(n as i8)));
        vandq_u8(shifted, vdupq_n_u8(mask))
    }
}

/// 16 bytes as floats in the first two.
///
/// # Safety
/// NEON.
#[inline(always)]
pub(super) unsafe fn signed16(b: int8x16_t) -> [Eight; 4] {
    // SAFETY: by the contract.
    unsafe {
        let ([a, b], zero) = (signed_eights(b), Eight::splat(0.0));
        [a, b, zero, zero]
    }
}

/// Unsigned bytes less `by`, signed.
///
/// # Safety
/// NEON.
#[inline(always)]
pub(super) unsafe fn less(b: uint8x16_t, by: i8) -> int8x16_t {
    // SAFETY: by the contract.
    unsafe { vsubq_s8(vreinterpretq_s8_u8(b), vdupq_n_s8(by)) }
}

macro_rules! super256 {
    ($(#[$doc:meta])* $name:ident, $bytes:expr, $group:expr, $min:expr,
     |$hp:ident| $head:expr, |$p:ident, $g:ident| $quants:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Groups for $name {
            const BYTES: usize = $bytes;
            const LEN: usize = 256;
            const GROUP: usize = $group;
            const SCALED: bool = true;
            const MIN: bool = $min;
            type Head = Scales<{ 256 / $group }>;

            #[inline(always)]
            unsafe fn head($hp: *const u8) -> Self::Head {
                // SAFETY: a whole block is readable.
                unsafe { $head }
            }

            #[inline(always)]
            unsafe fn quants($p: *const u8, _: &Self::Head, $g: usize) -> [Eight; 4] {
                // SAFETY: a whole block is readable and the group is one of its own.
                unsafe { $quants }
            }

            #[inline(always)]
            fn scale(h: &Self::Head, g: usize) -> f32 {
                h.scale[g]
            }

            #[inline(always)]
            fn min(h: &Self::Head, g: usize) -> f32 {
                h.min[g]
            }
        }
    };
}

/// Scales and minima of Q4_K and Q5_K.
///
/// # Safety
/// NEON; 16 bytes readable.
#[inline(always)]
unsafe fn k4_head(p: *const u8) -> Scales<8> {
    // SAFETY: by the contract.
    let (d, dmin, s) = unsafe { (f16_at(p), f16_at(p.add(2)), *p.add(4).cast::<[u8; 12]>()) };
    let mut h = Scales {
        scale: [0.0; 8],
        min: [0.0; 8],
    };
    for j in 0..8 {
        let (sc, m) = scale_min_k4(j, &s);
        h.scale[j] = d * f32::from(sc);
        h.min[j] = -(dmin * f32::from(m));
    }
    h
}

super256!(
    /// Two bits; sixteen 4-bit scales and minima.
    Q2K, 84, 16, true,
    |p| {
        let (d, dmin) = (f16_at(p.add(80)), f16_at(p.add(82)));
        let s = *p.cast::<[u8; 16]>();
        let mut h = Scales { scale: [0.0; 16], min: [0.0; 16] };
        for j in 0..16 {
            h.scale[j] = d * f32::from(s[j] & 15);
            h.min[j] = -(dmin * f32::from(s[j] >> 4));
        }
        h
    },
    |p, g| {
        let at = 16 + g / 8 * 32 + g % 2 * 16;
        signed16(less(field(p.add(at), 2 * (g % 8 / 2), 3), 0))
    }
);

super256!(
    /// Three bits; sixteen signed 6-bit scales.
    Q3K, 110, 16, false,
    |p| {
        let d = f16_at(p.add(108));
        let s = *p.add(96).cast::<[u8; 12]>();
        let mut h = Scales { scale: [0.0; 16], min: [0.0; 16] };
        for j in 0..16 {
            h.scale[j] = d * scale_k3(j, &s) as f32;
        }
        h
    },
    |p, g| {
        let at = 32 + g / 8 * 32 + g % 2 * 16;
        let low = field(p.add(at), 2 * (g % 8 / 2), 3);
        let high = field(p.add(g % 2 * 16), g / 2, 1);
        // Without the high bit, four is subtracted.
        signed16(less(vorrq_u8(low, vshlq_n_u8::<2>(high)), 4))
    }
);

super256!(
    /// Four bits; eight 6-bit scales and minima.
    Q4K, 144, 32, true,
    |p| k4_head(p),
    |p, g| {
        let at = p.add(16 + g / 2 * 32);
        unsigned(field(at, g % 2 * 4, 15), field(at.add(16), g % 2 * 4, 15))
    }
);

super256!(
    /// Five bits; eight 6-bit scales and minima.
    Q5K, 176, 32, true,
    |p| k4_head(p),
    |p, g| {
        let at = p.add(48 + g / 2 * 32);
        let half = |k: usize| {
            let high = vshlq_n_u8::<4>(field(p.add(16 + k), g, 1));
            vorrq_u8(field(at.add(k), g % 2 * 4, 15), high)
        };
        unsigned(half(0), half(16))
    }
);

super256!(
    /// Six bits; sixteen signed 8-bit scales.
    Q6K, 210, 16, false,
    |p| {
        let d = f16_at(p.add(208));
        let s = *p.add(192).cast::<[i8; 16]>();
        let mut h = Scales { scale: [0.0; 16], min: [0.0; 16] };
        for j in 0..16 {
            h.scale[j] = d * f32::from(s[j]);
        }
        h
    },
    |p, g| {
        let (half, r, c) = (g / 8, g % 8 / 2, g % 2 * 16);
        let low = field(p.add(half * 64 + r % 2 * 32 + c), r / 2 * 4, 15);
        let high = vshlq_n_u8::<4>(field(p.add(128 + half * 32 + c), 2 * r, 3));
        signed16(less(vorrq_u8(low, high), 32))
    }
);
