//! NEON kernels. Bit for bit what [`super::scalar`] computes.
//!
//! Every aarch64 processor has NEON; `sdot` (the feature `dotprod`) is looked for at start. The
//! eight virtual lanes of a sum are two registers. As in `avx2`, pieces are `#[inline(always)]`.

// As in `avx2`.
#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    clippy::needless_range_loop
)]

mod attention;
mod block32;
mod dot;
mod float;
mod grouped;
mod integer;
mod matmul;
mod super256;

use std::arch::aarch64::*;
use std::arch::asm;

pub(crate) use attention::softmax;
pub(crate) use integer::{
    float_scores, float_sums, key_tile, kv_scores, kv_scores_dot, kv_sums, products, products_dot,
    products_mat,
};
pub(crate) use matmul::matmul;

use super::lanes::{LANES, exp};
use super::scalar;

/// The eight lanes of a sum.
#[derive(Clone, Copy)]
struct Eight(float32x4_t, float32x4_t);

impl Eight {
    /// The same value in all lanes.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: by the contract.
        let v = unsafe { vdupq_n_f32(v) };
        Self(v, v)
    }

    /// Eight floats at any address.
    ///
    /// # Safety
    /// NEON; 32 bytes readable.
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: by the contract.
        unsafe { Self(vld1q_f32(p), vld1q_f32(p.add(4))) }
    }

    /// Eight half floats at any address.
    ///
    /// # Safety
    /// NEON; 16 bytes readable.
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let h = vreinterpretq_f16_u8(vld1q_u8(p));
            Self(vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h))
        }
    }

    /// To memory.
    ///
    /// # Safety
    /// NEON; eight floats writable.
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: by the contract.
        unsafe {
            vst1q_f32(p, self.0);
            vst1q_f32(p.add(4), self.1);
        }
    }

    /// `self + o`.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: by the contract.
        unsafe { Self(vaddq_f32(self.0, o.0), vaddq_f32(self.1, o.1)) }
    }

    /// `self · o`.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: by the contract.
        unsafe { Self(vmulq_f32(self.0, o.0), vmulq_f32(self.1, o.1)) }
    }

    /// `self · b + c`, fused.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: by the contract.
        unsafe { Self(vfmaq_f32(c.0, self.0, b.0), vfmaq_f32(c.1, self.1, b.1)) }
    }

    /// One sum, as [`super::lanes::fold`] makes it.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn fold(self) -> f32 {
        // SAFETY: by the contract.
        unsafe {
            let b = vaddq_f32(self.0, self.1);
            let c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
            vget_lane_f32::<0>(c) + vget_lane_f32::<1>(c)
        }
    }
}

/// Asks for the line at `p`, which may be any address, to come into the first cache, or where `FAR`
/// into the second. In assembly, since the intrinsic (`_prefetch`) is not stable yet.
#[inline(always)]
pub(super) fn prefetch<const FAR: bool>(p: *const u8) {
    // SAFETY: a hint: it changes nothing and faults nowhere.
    unsafe {
        if FAR {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, readonly, preserves_flags));
        } else {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, readonly, preserves_flags));
        }
    }
}

/// [`scalar::exp`] in four lanes.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn exp4(x: float32x4_t) -> float32x4_t {
    // SAFETY: by the contract.
    unsafe {
        let live = vcgtq_f32(x, vdupq_n_f32(exp::LO));
        let x = vminq_f32(x, vdupq_n_f32(exp::HI));
        let n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(std::f32::consts::LOG2_E)));
        let r = vfmaq_f32(x, n, vdupq_n_f32(-exp::LN2_HI));
        let r = vfmaq_f32(r, n, vdupq_n_f32(-exp::LN2_LO));
        let mut p = vdupq_n_f32(exp::POLY[0]);
        for c in &exp::POLY[1..] {
            p = vfmaq_f32(vdupq_n_f32(*c), p, r);
        }
        let p = vfmaq_f32(r, p, vmulq_f32(r, r));
        let p = vaddq_f32(p, vdupq_n_f32(1.0));
        let bits = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
        let pow = vreinterpretq_f32_s32(vshlq_n_s32::<23>(bits));
        // What is no number is not above the bound either: zero, as in scalar code.
        let y = vreinterpretq_u32_f32(vmulq_f32(p, pow));
        vreinterpretq_f32_u32(vandq_u32(y, live))
    }
}

/// [`scalar::exp`] in eight lanes.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn exp8(x: Eight) -> Eight {
    // SAFETY: by the contract.
    unsafe { Eight(exp4(x.0), exp4(x.1)) }
}

/// Σ x².
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn sum_squares(x: &[f32]) -> f32 {
    // SAFETY: each pointer has eight values; squares of the added zeros add nothing.
    unsafe {
        let mut acc = Eight::splat(0.0);
        let (chunks, tail) = x.as_chunks::<LANES>();
        for c in chunks {
            let v = Eight::load(c.as_ptr());
            acc = v.fma(v, acc);
        }
        if !tail.is_empty() {
            let mut last = [0.0; LANES];
            last[..tail.len()].copy_from_slice(tail);
            let v = Eight::load(last.as_ptr());
            acc = v.fma(v, acc);
        }
        acc.fold()
    }
}

/// `gate[i] = silu(gate[i]) · up[i]`.
///
/// # Safety
/// NEON.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn swiglu(gate: &mut [f32], up: &[f32]) {
    const LANES: usize = 4;
    let n = gate.len().min(up.len());
    let whole = n - n % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: `i + 4 ≤ n`.
        unsafe {
            let g = vld1q_f32(gate.as_ptr().add(i));
            let u = vld1q_f32(up.as_ptr().add(i));
            let e = exp4(vnegq_f32(g));
            let s = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1.0), e));
            vst1q_f32(gate.as_mut_ptr().add(i), vmulq_f32(s, u));
        }
    }
    scalar::swiglu(&mut gate[whole..n], &up[whole..n]);
}
