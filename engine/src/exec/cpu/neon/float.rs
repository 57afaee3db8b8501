//! Plain floats, as blocks of 32.

use std::arch::aarch64::*;

use super::Eight;
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
            unsafe fn quants(p: *const u8, (): &(), _: usize) -> [Eight; 4] {
                let load: unsafe fn(*const u8) -> Eight = $load;
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
/// NEON; 32 bytes readable.
#[inline(always)]
unsafe fn load_f32(p: *const u8) -> Eight {
    // SAFETY: by the contract.
    unsafe { Eight::load(p.cast()) }
}

/// Eight bf16: the upper halves of f32.
///
/// # Safety
/// NEON; 16 bytes readable.
#[inline(always)]
unsafe fn load_bf16(p: *const u8) -> Eight {
    // SAFETY: by the contract.
    unsafe {
        let h = vreinterpretq_u16_u8(vld1q_u8(p));
        Eight(
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(h))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(h)),
        )
    }
}

float!(
    /// `f32` weights.
    F32, 4, load_f32
);
float!(
    /// `f16` weights.
    F16, 2, Eight::load_f16
);
float!(
    /// `bf16` weights.
    Bf16, 2, load_bf16
);
