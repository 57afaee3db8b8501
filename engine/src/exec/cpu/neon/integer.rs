//! Products in whole numbers, eight weight rows at a time.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::super::integer::{self, Rows, Vector};
use super::dot::{Dot, Sdot, Smmla, Widening};
use super::{Eight, prefetch};

/// Weights as signed bytes; those below 64 are as they are.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn as_signed<const MAX: u8>(v: uint32x4_t) -> int8x16_t {
    // SAFETY: by the contract.
    unsafe {
        let v = vreinterpretq_s8_u32(v);
        if MAX == 255 {
            veorq_s8(v, vdupq_n_s8(-128))
        } else {
            v
        }
    }
}

/// Eight lanes, multiplied as `D` says.
#[derive(Clone, Copy)]
struct V<D>(uint32x4_t, uint32x4_t, PhantomData<D>);

impl<D: Dot> V<D> {
    #[inline(always)]
    fn new(low: uint32x4_t, high: uint32x4_t) -> Self {
        Self(low, high, PhantomData)
    }

    /// `f` of both registers.
    #[inline(always)]
    fn map(self, f: impl Fn(uint32x4_t) -> uint32x4_t) -> Self {
        Self::new(f(self.0), f(self.1))
    }

    /// `f` of both registers as bytes.
    #[inline(always)]
    unsafe fn map_bytes(self, f: impl Fn(uint8x16_t) -> uint8x16_t) -> Self {
        // SAFETY: NEON by the contract.
        self.map(|v| unsafe { vreinterpretq_u32_u8(f(vreinterpretq_u8_u32(v))) })
    }

    /// The words at `at` of `rows` from `first` on.
    ///
    /// # Safety
    /// NEON; four bytes readable.
    #[inline(always)]
    unsafe fn four(rows: &Rows, first: usize, at: usize) -> uint32x4_t {
        // SAFETY: by the contract.
        unsafe {
            let word = |j: usize| rows.at::<u32>(first + j, at).read_unaligned();
            let words = [word(0), word(1), word(2), word(3)];
            vld1q_u32(words.as_ptr())
        }
    }

    /// 16 bytes at `at` of four `rows` from `first` on, as their four words.
    ///
    /// # Safety
    /// NEON; 16 bytes readable.
    #[inline(always)]
    unsafe fn square(rows: &Rows, first: usize, at: usize) -> [uint32x4_t; 4] {
        // SAFETY: by the contract.
        unsafe {
            let z = |j: usize| vreinterpretq_u32_u8(vld1q_u8(rows.at(first + j, at)));
            let (a, b, c, d) = (z(0), z(1), z(2), z(3));
            let pair = |v: uint32x4_t| vreinterpretq_u64_u32(v);
            let (t0, t1) = (pair(vtrn1q_u32(a, b)), pair(vtrn2q_u32(a, b)));
            let (t2, t3) = (pair(vtrn1q_u32(c, d)), pair(vtrn2q_u32(c, d)));
            [
                vreinterpretq_u32_u64(vtrn1q_u64(t0, t2)),
                vreinterpretq_u32_u64(vtrn1q_u64(t1, t3)),
                vreinterpretq_u32_u64(vtrn2q_u64(t0, t2)),
                vreinterpretq_u32_u64(vtrn2q_u64(t1, t3)),
            ]
        }
    }
}

impl<D: Dot> Vector for V<D> {
    type F = Eight;
    const LANES: usize = 8;
    const SIGNED: bool = true;
    const PAIRS: bool = D::PAIRS;

    #[inline(always)]
    unsafe fn words(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: by the contract.
        unsafe {
            let (low, high) = (Self::square(rows, 0, at), Self::square(rows, 4, at));
            std::array::from_fn(|k| Self::new(low[k], high[k]))
        }
    }

    #[inline(always)]
    unsafe fn word(rows: &Rows, at: usize) -> Self {
        // SAFETY: by the contract.
        unsafe { Self::new(Self::four(rows, 0, at), Self::four(rows, 4, at)) }
    }

    #[inline(always)]
    unsafe fn load(p: &[u32; 16]) -> Self {
        // SAFETY: by the contract.
        unsafe { Self::new(vld1q_u32(p.as_ptr()), vld1q_u32(p[4..].as_ptr())) }
    }

    #[inline(always)]
    unsafe fn bytes(b: u8) -> Self {
        // SAFETY: by the contract.
        let v = unsafe { vreinterpretq_u32_u8(vdupq_n_u8(b)) };
        Self::new(v, v)
    }

    #[inline(always)]
    unsafe fn lanes(v: i32) -> Self {
        // SAFETY: by the contract.
        let v = unsafe { vreinterpretq_u32_s32(vdupq_n_s32(v)) };
        Self::new(v, v)
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: by the contract.
        unsafe { Self::new(vandq_u32(self.0, o.0), vandq_u32(self.1, o.1)) }
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: by the contract.
        unsafe { Self::new(vorrq_u32(self.0, o.0), vorrq_u32(self.1, o.1)) }
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: by the contract.
        unsafe { Self::new(veorq_u32(self.0, o.0), veorq_u32(self.1, o.1)) }
    }

    #[inline(always)]
    unsafe fn shr(self, n: usize) -> Self {
        // SAFETY: by the contract.
        unsafe { self.turn(-(n as i32)) }
    }

    #[inline(always)]
    unsafe fn sar(self, n: usize) -> Self {
        // SAFETY: by the contract.
        self.map(|v| unsafe {
            let v = vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(-(n as i32)));
            vreinterpretq_u32_s32(v)
        })
    }

    #[inline(always)]
    unsafe fn shl(self, n: usize) -> Self {
        // SAFETY: by the contract.
        unsafe { self.turn(n as i32) }
    }

    #[inline(always)]
    unsafe fn turn(self, n: i32) -> Self {
        // SAFETY: by the contract. The instruction takes less than nothing for to the right.
        self.map(|v| unsafe { vshlq_u32(v, vdupq_n_s32(n)) })
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[u8; 16]) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            self.map_bytes(|v| vqtbl1q_u8(table, v))
        }
    }

    #[inline(always)]
    unsafe fn fifth(self, word: usize) -> Self {
        // SAFETY: by the contract.
        unsafe {
            // The byte that holds the four bits, to all bytes of the lane.
            let first = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12_u8];
            let from = vaddq_u8(vld1q_u8(first.as_ptr()), vdupq_n_u8((word / 2) as u8));
            let each = vdupq_n_u32(if word.is_multiple_of(2) {
                0x0804_0201
            } else {
                0x8040_2010
            });
            self.map_bytes(|v| {
                let set = vtstq_u8(vqtbl1q_u8(v, from), vreinterpretq_u8_u32(each));
                vandq_u8(set, vdupq_n_u8(16))
            })
        }
    }

    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(init: Self, w: &[Self; N], x: *const i8) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let (low, high) = (
                w.map(|w| as_signed::<MAX>(w.0)),
                w.map(|w| as_signed::<MAX>(w.1)),
            );
            // No closure around what needs a feature: nothing says that it is inlined.
            let low = D::dot::<N, MAX>(vreinterpretq_s32_u32(init.0), &low, x);
            let high = D::dot::<N, MAX>(vreinterpretq_s32_u32(init.1), &high, x);
            Self::new(vreinterpretq_u32_s32(low), vreinterpretq_u32_s32(high))
        }
    }

    #[inline(always)]
    unsafe fn dot_pair<const N: usize, const MAX: u8>(
        init: [Self; 2],
        w: &[Self; N],
        x: [*const i8; 2],
    ) -> [Self; 2] {
        // SAFETY: by the contract.
        unsafe {
            let (low, high) = (
                w.map(|w| as_signed::<MAX>(w.0)),
                w.map(|w| as_signed::<MAX>(w.1)),
            );
            let [i, j] = init;
            let first = [vreinterpretq_s32_u32(i.0), vreinterpretq_s32_u32(j.0)];
            let last = [vreinterpretq_s32_u32(i.1), vreinterpretq_s32_u32(j.1)];
            // No closure around what needs a feature: nothing says that it is inlined.
            let [a, b] = D::pair::<N, MAX>(first, &low, x);
            let [c, d] = D::pair::<N, MAX>(last, &high, x);
            [
                Self::new(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(c)),
                Self::new(vreinterpretq_u32_s32(b), vreinterpretq_u32_s32(d)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn at(p: *const u8) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let load = |p| vreinterpretq_u32_u8(vld1q_u8(p));
            Self::new(load(p), load(p.add(16)))
        }
    }

    #[inline(always)]
    unsafe fn widen(p: *const u8) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let v = vld1q_s8(p.cast());
            Self::new(
                vreinterpretq_u32_s16(vmovl_s8(vget_low_s8(v))),
                vreinterpretq_u32_s16(vmovl_high_s8(v)),
            )
        }
    }

    #[inline(always)]
    unsafe fn sar16<const N: i32>(self) -> Self {
        // SAFETY: by the contract. The instruction takes less than nothing for to the right.
        self.map(|v| unsafe {
            let v = vshlq_s16(vreinterpretq_s16_u32(v), vdupq_n_s16(-(N as i16)));
            vreinterpretq_u32_s16(v)
        })
    }

    #[inline(always)]
    unsafe fn signed<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let high = self.map(|v| {
                let v = vshlq_s16(vreinterpretq_s16_u32(v), vdupq_n_s16(N as i16));
                vreinterpretq_u32_s16(v)
            });
            high.sar16::<N>()
        }
    }

    #[inline(always)]
    unsafe fn pairs(acc: Self, v: Self, c: *const i16) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let c = vreinterpretq_s16_s32(vdupq_n_s32(c.cast::<i32>().read_unaligned()));
            let sum = |acc, v| {
                let v = vreinterpretq_s16_u32(v);
                let low = vmull_s16(vget_low_s16(v), vget_low_s16(c));
                let both = vpaddq_s32(low, vmull_high_s16(v, c));
                vaddq_u32(acc, vreinterpretq_u32_s32(both))
            };
            Self::new(sum(acc.0, v.0), sum(acc.1, v.1))
        }
    }

    #[inline(always)]
    unsafe fn couple(weights: [Self; 2]) -> [Self; 2] {
        weights
    }

    #[inline(always)]
    unsafe fn weigh(i: Self, j: Self, weights: &[Self; 2]) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let [w, v] = weights;
            Self::new(
                vmlaq_u32(vmulq_u32(i.0, w.0), j.0, v.0),
                vmlaq_u32(vmulq_u32(i.1, w.1), j.1, v.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight::load_f16(p) }
    }

    #[inline(always)]
    unsafe fn float(self) -> Eight {
        // SAFETY: by the contract.
        unsafe {
            let float = |v| vcvtq_f32_s32(vreinterpretq_s32_u32(v));
            Eight(float(self.0), float(self.1))
        }
    }

    #[inline(always)]
    unsafe fn half(self) -> Eight {
        // SAFETY: by the contract.
        unsafe {
            let float = |v| vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(v)));
            Eight(float(self.0), float(self.1))
        }
    }

    #[inline(always)]
    unsafe fn same(self) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight(vreinterpretq_f32_u32(self.0), vreinterpretq_f32_u32(self.1)) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight::splat(v) }
    }

    #[inline(always)]
    unsafe fn get(p: *const f32) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight::load(p) }
    }

    #[inline(always)]
    unsafe fn put(p: *mut f32, v: Eight) {
        // SAFETY: by the contract.
        unsafe { v.store(p) }
    }

    #[inline(always)]
    unsafe fn mul(a: Eight, b: Eight) -> Eight {
        // SAFETY: by the contract.
        unsafe { a.mul(b) }
    }

    #[inline(always)]
    unsafe fn fma(a: Eight, b: Eight, c: Eight) -> Eight {
        // SAFETY: by the contract.
        unsafe { a.fma(b, c) }
    }

    #[inline(always)]
    unsafe fn now(mut v: Eight) -> Eight {
        // SAFETY: it changes nothing.
        unsafe {
            std::arch::asm!(
                "/* {0} {1} */",
                inout(vreg) v.0,
                inout(vreg) v.1,
                options(nostack, preserves_flags),
            );
        }
        v
    }

    #[inline(always)]
    unsafe fn neg(a: Eight) -> Eight {
        // SAFETY: by the contract.
        unsafe { Eight(vnegq_f32(a.0), vnegq_f32(a.1)) }
    }

    #[inline(always)]
    unsafe fn prefetch<const FAR: bool>(p: *const u8) {
        prefetch::<FAR>(p);
    }
}

integer::entries!(
    "neon",
    V<Widening>: products, kv_scores, kv_sums, float_scores, float_sums, key_tile
);
integer::entries!(
    "neon,dotprod",
    V<Sdot>: products as products_dot, kv_scores as kv_scores_dot
);
integer::entries!("neon,dotprod,i8mm", V<Smmla>: products as products_mat);
