//! Products in whole numbers, eight weight rows at a time: for one activation row, where the bytes of
//! the weights count and not their products. Sixteen rows take three blends to bring together where
//! eight take one insertion, and on processors that run 512 bits in two halves nothing makes up for that.

use std::arch::x86_64::*;
use std::ops::Range;

use formats::blocks::BlockType;

use super::super::avx2::Eight;
use super::super::integer::{self, Codes, Rows, Vector};
use super::super::matmul::Out;

/// Eight lanes: those of AVX2, with the dot products and rotations of AVX-512.
#[derive(Clone, Copy)]
struct V(Eight);

impl Vector for V {
    type F = __m256;
    const LANES: usize = 8;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn words(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: by the contract.
        let [a, b, c, d] = unsafe { Eight::words(rows, at) };
        [Self(a), Self(b), Self(c), Self(d)]
    }

    #[inline(always)]
    unsafe fn word(rows: &Rows, at: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::word(rows, at) })
    }

    #[inline(always)]
    unsafe fn load(p: &[u32; 16]) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::load(p) })
    }

    #[inline(always)]
    unsafe fn bytes(b: u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::bytes(b) })
    }

    #[inline(always)]
    unsafe fn lanes(v: i32) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::lanes(v) })
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.and(o.0) })
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.or(o.0) })
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.xor(o.0) })
    }

    #[inline(always)]
    unsafe fn shr(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.shr(n) })
    }

    #[inline(always)]
    unsafe fn sar(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.sar(n) })
    }

    #[inline(always)]
    unsafe fn shl(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.shl(n) })
    }

    #[inline(always)]
    unsafe fn turn(self, n: i32) -> Self {
        // SAFETY: by the contract.
        unsafe { Self(Eight(_mm256_rolv_epi32(self.0.0, _mm256_set1_epi32(n)))) }
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[u8; 16]) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.lookup(table) })
    }

    #[inline(always)]
    unsafe fn fifth(self, word: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.fifth(word) })
    }

    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(init: Self, w: &[Self; N], x: *const i8) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let mut acc = init.0.0;
            for j in 0..N {
                let x = _mm256_broadcastd_epi32(_mm_loadu_si32(x.add(4 * j).cast()));
                acc = _mm256_dpbusd_epi32(acc, w[j].0.0, x);
            }
            Self(Eight(acc))
        }
    }

    #[inline(always)]
    unsafe fn at(p: *const u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::at(p) })
    }

    #[inline(always)]
    unsafe fn widen(p: *const u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::widen(p) })
    }

    #[inline(always)]
    unsafe fn sar16<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.sar16::<N>() })
    }

    #[inline(always)]
    unsafe fn signed<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { self.0.signed::<N>() })
    }

    #[inline(always)]
    unsafe fn pairs(acc: Self, v: Self, c: *const i16) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { Eight::pairs(acc.0, v.0, c) })
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m256 {
        // SAFETY: by the contract.
        unsafe { Eight::halves(p) }
    }

    #[inline(always)]
    unsafe fn float(self) -> __m256 {
        // SAFETY: by the contract.
        unsafe { self.0.float() }
    }

    #[inline(always)]
    unsafe fn half(self) -> __m256 {
        // SAFETY: by the contract.
        unsafe { self.0.half() }
    }

    #[inline(always)]
    unsafe fn same(self) -> __m256 {
        // SAFETY: by the contract.
        unsafe { self.0.same() }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m256 {
        // SAFETY: by the contract.
        unsafe { Eight::splat(v) }
    }

    #[inline(always)]
    unsafe fn get(p: *const f32) -> __m256 {
        // SAFETY: by the contract.
        unsafe { Eight::get(p) }
    }

    #[inline(always)]
    unsafe fn put(p: *mut f32, v: __m256) {
        // SAFETY: by the contract.
        unsafe { Eight::put(p, v) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { Eight::mul(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { Eight::fma(a, b, c) }
    }

    #[inline(always)]
    unsafe fn neg(a: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { Eight::neg(a) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: by the contract.
        unsafe { Eight::prefetch(p) }
    }
}

/// See [`integer::products`].
///
/// # Safety
/// AVX-512 F, BW, DQ, VL and VNNI, and the contract of [`integer::products`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn products_narrow(
    ty: BlockType,
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Codes,
    out: Out,
) {
    // SAFETY: by the contract.
    unsafe { integer::products::<V>(ty, weights, row_bytes, rows, x, out) }
}
