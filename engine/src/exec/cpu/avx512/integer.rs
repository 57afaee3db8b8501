//! Products in whole numbers, sixteen weight rows at a time.

use std::arch::x86_64::*;

use super::super::avx2::four;
use super::super::integer::{self, BLOCK, CodeBlock, Rows, TINY, Vector};

/// Sixteen lanes.
#[derive(Clone, Copy)]
struct V(__m512i);

impl Vector for V {
    type F = __m512;
    const LANES: usize = 16;
    const SIGNED: bool = false;
    const TWO: bool = true;

    #[inline(always)]
    unsafe fn words(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: by the contract.
        unsafe {
            let mut z = [_mm512_setzero_si512(); 4];
            for j in 0..4 {
                // Blending a line is cheaper than inserting into it.
                let v = _mm512_broadcast_i32x4(_mm_loadu_si128(rows.at(j, at)));
                let x = _mm_loadu_si128(rows.at(4 + j, at));
                let v = _mm512_mask_broadcast_i32x4(v, 0x00f0, x);
                let x = _mm_loadu_si128(rows.at(8 + j, at));
                let v = _mm512_mask_broadcast_i32x4(v, 0x0f00, x);
                let x = _mm_loadu_si128(rows.at(12 + j, at));
                z[j] = _mm512_mask_broadcast_i32x4(v, 0xf000, x);
            }
            let t0 = _mm512_unpacklo_epi32(z[0], z[1]);
            let t1 = _mm512_unpackhi_epi32(z[0], z[1]);
            let t2 = _mm512_unpacklo_epi32(z[2], z[3]);
            let t3 = _mm512_unpackhi_epi32(z[2], z[3]);
            [
                Self(_mm512_unpacklo_epi64(t0, t2)),
                Self(_mm512_unpackhi_epi64(t0, t2)),
                Self(_mm512_unpacklo_epi64(t1, t3)),
                Self(_mm512_unpackhi_epi64(t1, t3)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn word(rows: &Rows, at: usize) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let v = _mm512_castsi128_si512(four(rows, 0, at));
            let v = _mm512_inserti32x4::<1>(v, four(rows, 4, at));
            let v = _mm512_inserti32x4::<2>(v, four(rows, 8, at));
            Self(_mm512_inserti32x4::<3>(v, four(rows, 12, at)))
        }
    }

    #[inline(always)]
    unsafe fn load(p: &[u32; 16]) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_loadu_si512(p.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn bytes(b: u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_set1_epi8(b as i8) })
    }

    #[inline(always)]
    unsafe fn lanes(v: i32) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_set1_epi32(v) })
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_and_si512(self.0, o.0) })
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_or_si512(self.0, o.0) })
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_xor_si512(self.0, o.0) })
    }

    #[inline(always)]
    unsafe fn shr(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_srl_epi32(self.0, _mm_cvtsi32_si128(n as i32)) })
    }

    #[inline(always)]
    unsafe fn sar(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_sra_epi32(self.0, _mm_cvtsi32_si128(n as i32)) })
    }

    #[inline(always)]
    unsafe fn shl(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(n as i32)) })
    }

    #[inline(always)]
    unsafe fn turn(self, n: i32) -> Self {
        // SAFETY: by the contract.
        unsafe { Self(_mm512_rolv_epi32(self.0, _mm512_set1_epi32(n))) }
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[u8; 16]) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            Self(_mm512_shuffle_epi8(table, self.0))
        }
    }

    #[inline(always)]
    unsafe fn fifth(self, word: usize) -> Self {
        // SAFETY: by the contract.
        unsafe {
            // The byte that holds the four bits, to all bytes of the lane.
            let from = _mm512_set4_epi32(12, 8, 4, 0);
            let from = _mm512_add_epi32(from, _mm512_set1_epi32((word / 2) as i32));
            let from = _mm512_mullo_epi32(from, _mm512_set1_epi32(0x0101_0101));
            let bits = _mm512_shuffle_epi8(self.0, from);
            let each = _mm512_set1_epi32(if word.is_multiple_of(2) {
                0x0804_0201
            } else {
                0x8040_2010_u32 as i32
            });
            let set = _mm512_test_epi8_mask(bits, each);
            Self(_mm512_maskz_set1_epi8(set, 16))
        }
    }

    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(init: Self, w: &[Self; N], x: *const i8) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let mut acc = init.0;
            for j in 0..N {
                let x = _mm512_broadcastd_epi32(_mm_loadu_si32(x.add(4 * j).cast()));
                acc = _mm512_dpbusd_epi32(acc, w[j].0, x);
            }
            Self(acc)
        }
    }

    #[inline(always)]
    unsafe fn at(p: *const u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_loadu_si512(p.cast()) })
    }

    #[inline(always)]
    unsafe fn widen(p: *const u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) })
    }

    #[inline(always)]
    unsafe fn sar16<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm512_sra_epi16(self.0, _mm_cvtsi32_si128(N)) })
    }

    #[inline(always)]
    unsafe fn signed<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let n = _mm_cvtsi32_si128(N);
            Self(_mm512_sra_epi16(_mm512_sll_epi16(self.0, n), n))
        }
    }

    #[inline(always)]
    unsafe fn pairs(acc: Self, v: Self, c: *const i16) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { add_pairs(acc.0, v.0, c) })
    }

    #[inline(always)]
    unsafe fn couple([w, v]: [Self; 2]) -> [Self; 2] {
        // SAFETY: by the contract.
        let both = unsafe {
            // Both have all bits of the lower half where the mask has them: (w & mask) | high.
            let (mask, high) = (_mm512_set1_epi32(0xffff), _mm512_slli_epi32::<16>(v.0));
            Self(_mm512_ternarylogic_epi32::<0xf8>(high, w.0, mask))
        };
        [both; 2]
    }

    #[inline(always)]
    unsafe fn weigh(i: Self, j: Self, weights: &[Self; 2]) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let [both, _] = Self::couple([i, j]);
            Self(_mm512_dpwssd_epi32(
                _mm512_setzero_si512(),
                both.0,
                weights[0].0,
            ))
        }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn float(self) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtepi32_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn half(self) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(self.0)) }
    }

    #[inline(always)]
    unsafe fn same(self) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_castsi512_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn get(p: *const f32) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn put(p: *mut f32, v: __m512) {
        // SAFETY: by the contract.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn now(v: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { now(v) }
    }

    #[inline(always)]
    unsafe fn neg(a: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_xor_ps(a, _mm512_set1_ps(-0.0)) }
    }

    #[inline(always)]
    unsafe fn prefetch<const FAR: bool>(p: *const u8) {
        // SAFETY: by the contract.
        unsafe {
            if FAR {
                _mm_prefetch::<_MM_HINT_T2>(p.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T0>(p.cast());
            }
        }
    }
}

/// `acc` plus both products of the 16-bit halves of each lane of `v` with the two numbers at `c`.
///
/// By name, since LLVM makes two instructions of the intrinsic to shorten chains of it; here are enough
/// chains side by side, and what is short is multiplications at a time.
///
/// # Safety
/// AVX-512 F and VNNI; two numbers readable.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_pairs(mut acc: __m512i, v: __m512i, c: *const i16) -> __m512i {
    // SAFETY: by the contract; it reads the two numbers and changes `acc`.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {acc}, {v}, dword ptr [{c}]{{1to16}}",
            acc = inout(zmm_reg) acc,
            v = in(zmm_reg) v,
            c = in(reg) c,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    acc
}

/// See [`Vector::now`].
///
/// # Safety
/// AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn now(mut v: __m512) -> __m512 {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(nostack, preserves_flags)) };
    v
}

integer::entries!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
    V: products, kv_scores, kv_sums, soften, float_scores, float_sums, key_tile
);

/// [`integer::encode`], thirty-two values at a time.
///
/// # Safety
/// AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
pub(crate) unsafe fn encode(x: &[f32], out: &mut dyn FnMut(usize, CodeBlock)) {
    for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        // SAFETY: 32 floats are there; a block is 64 bytes: codes, step, three sums twice, four of padding.
        unsafe {
            let v = [
                _mm512_loadu_ps(x.as_ptr()),
                _mm512_loadu_ps(x.as_ptr().add(16)),
            ];
            // What is no number is the first operand and loses.
            let most = _mm512_max_ps(_mm512_abs_ps(v[0]), _mm512_setzero_ps());
            let most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v[1]), most));
            // Zeros, but for what is no number or infinite.
            let zero = _mm512_setzero_ps();
            let wrong = v.map(|v| _mm512_mul_ps(v, zero));
            let wrong = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(wrong[0], wrong[1]);
            if wrong != 0 || most <= TINY {
                integer::encode(x, &mut |_, block| out(b, block));
                continue;
            }
            let inverse = _mm512_set1_ps(127.0 / most);
            let codes = v.map(|v| _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)));
            let codes = codes.map(|c| _mm512_cvtepi32_epi8(c));
            // Sums of eight codes each, raised by 128.
            let both = _mm256_set_m128i(codes[1], codes[0]);
            let raised = _mm256_xor_si256(both, _mm256_set1_epi8(-128));
            let sums = _mm256_sad_epu8(raised, _mm256_setzero_si256());
            let mut each = [0_i64; 4];
            _mm256_storeu_si256(each.as_mut_ptr().cast(), sums);
            let half = |i: usize| (each[i] + each[i + 1]) as i32 - 16 * 128;
            let sums = _mm_set_epi32(half(2), half(0), half(0) + half(2), 0);
            let scale = _mm_set1_ps(most / 127.0);
            // Written as they will be copied: a copy waits for what was written in smaller pieces.
            let minus = _mm_castsi128_ps(_mm_sub_epi32(_mm_setzero_si128(), sums));
            let minus = _mm_move_ss(minus, scale);
            let sums = _mm_cvtepi32_ps(_mm_srli_si128::<4>(sums));
            let mut block = CodeBlock::ZERO;
            let place = (&raw mut block).cast::<f32>();
            _mm256_storeu_si256(place.cast(), both);
            _mm_storeu_ps(place.add(8), minus);
            // The last of four is no part of the block that anyone sees.
            _mm_storeu_ps(place.add(12), _mm_mul_ps(scale, sums));
            out(b, block);
        }
    }
}
