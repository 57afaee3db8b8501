//! Four weights by four codes: the step of products in whole numbers that differs among processors.

use std::arch::aarch64::*;
use std::arch::asm;

/// How four weights meet four codes.
pub(super) trait Dot: Copy {
    /// `init` plus the products of `words` (of four rows each) and the codes at `x`. Weights are
    /// signed and at most `MAX` in size; for `MAX` 255, at most 128.
    ///
    /// # Safety
    /// The instruction set; `words.len()`, a multiple of four, times four codes readable at `x`.
    unsafe fn dot<const N: usize, const MAX: u8>(
        init: int32x4_t,
        words: &[int8x16_t; N],
        x: *const i8,
    ) -> int32x4_t;

    /// Whether [`pair`](Self::pair) is there.
    const PAIRS: bool = false;

    /// [`dot`](Self::dot) for two activation rows.
    ///
    /// # Safety
    /// As there, for both.
    #[inline(always)]
    unsafe fn pair<const N: usize, const MAX: u8>(
        init: [int32x4_t; 2],
        words: &[int8x16_t; N],
        x: [*const i8; 2],
    ) -> [int32x4_t; 2] {
        // SAFETY: by the contract.
        unsafe {
            [
                Self::dot::<N, MAX>(init[0], words, x[0]),
                Self::dot::<N, MAX>(init[1], words, x[1]),
            ]
        }
    }
}

/// `sdot`.
#[derive(Clone, Copy)]
pub(super) struct Sdot;

impl Dot for Sdot {
    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(
        init: int32x4_t,
        words: &[int8x16_t; N],
        x: *const i8,
    ) -> int32x4_t {
        let mut acc = init;
        // The intrinsic (`vdotq_laneq_s32`) is not stable yet.
        macro_rules! sdot {
            ($w:expr, $x:expr, $lane:literal) => {
                asm!(
                    concat!("sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[", $lane, "]"),
                    acc = inout(vreg) acc,
                    w = in(vreg) $w,
                    x = in(vreg) $x,
                    options(pure, nomem, nostack, preserves_flags),
                )
            };
        }
        for (i, w) in words.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: `sdot` and the codes by the contract.
            unsafe {
                let x = vld1q_s8(x.add(16 * i));
                sdot!(w[0], x, "0");
                sdot!(w[1], x, "1");
                sdot!(w[2], x, "2");
                sdot!(w[3], x, "3");
            }
        }
        acc
    }
}

/// `smmla` for two activation rows, `sdot` for one.
#[derive(Clone, Copy)]
pub(super) struct Smmla;

impl Dot for Smmla {
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(
        init: int32x4_t,
        words: &[int8x16_t; N],
        x: *const i8,
    ) -> int32x4_t {
        // SAFETY: by the contract.
        unsafe { Sdot::dot::<N, MAX>(init, words, x) }
    }

    #[inline(always)]
    unsafe fn pair<const N: usize, const MAX: u8>(
        init: [int32x4_t; 2],
        words: &[int8x16_t; N],
        x: [*const i8; 2],
    ) -> [int32x4_t; 2] {
        // SAFETY: `smmla` and the codes by the contract.
        unsafe {
            // Weight rows 0 and 1, and 2 and 3, each with both activation rows.
            let mut first = vzip1q_s32(init[0], init[1]);
            let mut last = vzip2q_s32(init[0], init[1]);
            for (i, w) in words.as_chunks::<2>().0.iter().enumerate() {
                let codes = vcombine_s8(vld1_s8(x[0].add(8 * i)), vld1_s8(x[1].add(8 * i)));
                let [a, b] = w.map(|w| vreinterpretq_s32_s8(w));
                // The intrinsic (`vmmlaq_s32`) is not stable yet.
                macro_rules! smmla {
                    ($acc:expr, $w:expr) => {
                        asm!(
                            "smmla {acc:v}.4s, {w:v}.16b, {x:v}.16b",
                            acc = inout(vreg) $acc,
                            w = in(vreg) $w,
                            x = in(vreg) codes,
                            options(pure, nomem, nostack, preserves_flags),
                        )
                    };
                }
                smmla!(first, vzip1q_s32(a, b));
                smmla!(last, vzip2q_s32(a, b));
            }
            [vuzp1q_s32(first, last), vuzp2q_s32(first, last)]
        }
    }
}

/// Widening multiplication, for processors without `sdot`.
#[derive(Clone, Copy)]
pub(super) struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(
        init: int32x4_t,
        words: &[int8x16_t; N],
        x: *const i8,
    ) -> int32x4_t {
        // Products that fit into 16 bits together: 127 · MAX · run < 2^15.
        let run = match MAX {
            0..=31 => 8,
            32..=63 => 4,
            _ => 2,
        };
        // SAFETY: by the contract.
        unsafe {
            // Halves of the sums of rows 0 and 1, and of rows 2 and 3.
            let (mut first, mut last) = (vdupq_n_s32(0), vdupq_n_s32(0));
            for (j, words) in words.chunks(run).enumerate() {
                let (mut low, mut high) = (vdupq_n_s16(0), vdupq_n_s16(0));
                for (k, w) in words.iter().enumerate() {
                    let four = x.add(4 * (j * run + k)).cast::<i32>().read_unaligned();
                    let x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                    low = vmlal_s8(low, vget_low_s8(*w), vget_low_s8(x));
                    high = vmlal_high_s8(high, *w, x);
                }
                first = vpadalq_s16(first, low);
                last = vpadalq_s16(last, high);
            }
            vaddq_s32(init, vpaddq_s32(first, last))
        }
    }
}
