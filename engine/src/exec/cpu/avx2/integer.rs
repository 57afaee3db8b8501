//! Products in whole numbers, eight weight rows at a time.

use std::arch::x86_64::*;

use super::super::integer::{self, CodeBlock, Rows, Vector};

/// The words at `at` of rows `first..first + 4`. Inserted one by one: gathering them is slower.
///
/// # Safety
/// AVX2; four bytes readable.
#[inline(always)]
pub(in super::super) unsafe fn four(rows: &Rows, first: usize, at: usize) -> __m128i {
    // SAFETY: by the contract.
    unsafe {
        let v = _mm_loadu_si32(rows.at(first, at));
        let v = _mm_insert_epi32::<1>(v, rows.at::<i32>(first + 1, at).read_unaligned());
        let v = _mm_insert_epi32::<2>(v, rows.at::<i32>(first + 2, at).read_unaligned());
        _mm_insert_epi32::<3>(v, rows.at::<i32>(first + 3, at).read_unaligned())
    }
}

/// Eight lanes.
#[derive(Clone, Copy)]
struct V(__m256i);

impl Vector for V {
    type F = __m256;
    const LANES: usize = 8;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn words(rows: &Rows, at: usize) -> [Self; 4] {
        // SAFETY: by the contract.
        unsafe {
            let mut z = [_mm256_setzero_si256(); 4];
            for j in 0..4 {
                let low = _mm_loadu_si128(rows.at(j, at));
                let high = _mm_loadu_si128(rows.at(4 + j, at));
                z[j] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
            }
            let t0 = _mm256_unpacklo_epi32(z[0], z[1]);
            let t1 = _mm256_unpackhi_epi32(z[0], z[1]);
            let t2 = _mm256_unpacklo_epi32(z[2], z[3]);
            let t3 = _mm256_unpackhi_epi32(z[2], z[3]);
            [
                Self(_mm256_unpacklo_epi64(t0, t2)),
                Self(_mm256_unpackhi_epi64(t0, t2)),
                Self(_mm256_unpacklo_epi64(t1, t3)),
                Self(_mm256_unpackhi_epi64(t1, t3)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn word(rows: &Rows, at: usize) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let (low, high) = (four(rows, 0, at), four(rows, 4, at));
            Self(_mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(low),
                high,
            ))
        }
    }

    #[inline(always)]
    unsafe fn load(p: &[u32; 16]) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_loadu_si256(p.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn bytes(b: u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_set1_epi8(b as i8) })
    }

    #[inline(always)]
    unsafe fn lanes(v: i32) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_set1_epi32(v) })
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_and_si256(self.0, o.0) })
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_or_si256(self.0, o.0) })
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_xor_si256(self.0, o.0) })
    }

    #[inline(always)]
    unsafe fn shr(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_srl_epi32(self.0, _mm_cvtsi32_si128(n as i32)) })
    }

    #[inline(always)]
    unsafe fn sar(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_sra_epi32(self.0, _mm_cvtsi32_si128(n as i32)) })
    }

    #[inline(always)]
    unsafe fn shl(self, n: usize) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_sll_epi32(self.0, _mm_cvtsi32_si128(n as i32)) })
    }

    #[inline(always)]
    unsafe fn turn(self, n: i32) -> Self {
        // SAFETY: by the contract.
        unsafe {
            if n < 0 {
                self.shr(n.unsigned_abs() as usize)
            } else {
                self.shl(n as usize)
            }
        }
    }

    #[inline(always)]
    unsafe fn lookup(self, table: &[u8; 16]) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            Self(_mm256_shuffle_epi8(table, self.0))
        }
    }

    #[inline(always)]
    unsafe fn fifth(self, word: usize) -> Self {
        // SAFETY: by the contract.
        unsafe {
            // The byte that holds the four bits, to all bytes of the lane.
            let from = _mm256_set_epi32(12, 8, 4, 0, 12, 8, 4, 0);
            let from = _mm256_add_epi32(from, _mm256_set1_epi32((word / 2) as i32));
            let from = _mm256_mullo_epi32(from, _mm256_set1_epi32(0x0101_0101));
            let bits = _mm256_shuffle_epi8(self.0, from);
            let each = _mm256_set1_epi32(if word.is_multiple_of(2) {
                0x0804_0201
            } else {
                0x8040_2010_u32 as i32
            });
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, each), each);
            Self(_mm256_and_si256(set, _mm256_set1_epi8(16)))
        }
    }

    #[inline(always)]
    unsafe fn dot<const N: usize, const MAX: u8>(init: Self, w: &[Self; N], x: *const i8) -> Self {
        // Pairs of products that fit into 16 bits together: 127 · 2 · MAX · pairs < 2^15.
        let run = match MAX {
            0..=15 => 8,
            16..=31 => 4,
            32..=63 => 2,
            _ => 1,
        };
        // SAFETY: by the contract.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut acc = init.0;
            for (j, w) in w.chunks(run).enumerate() {
                let mut sum = _mm256_setzero_si256();
                for (k, w) in w.iter().enumerate() {
                    let at = x.add(4 * (j * run + k));
                    let x = _mm256_broadcastd_epi32(_mm_loadu_si32(at.cast()));
                    let pairs = if MAX == 255 {
                        // |w| ≤ 128 and |x| ≤ 127: a pair stays below 2^15.
                        let w = _mm256_xor_si256(w.0, _mm256_set1_epi8(-128));
                        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                    } else {
                        _mm256_maddubs_epi16(w.0, x)
                    };
                    sum = _mm256_add_epi16(sum, pairs);
                }
                acc = _mm256_add_epi32(acc, _mm256_madd_epi16(sum, ones));
            }
            Self(acc)
        }
    }

    #[inline(always)]
    unsafe fn at(p: *const u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_loadu_si256(p.cast()) })
    }

    #[inline(always)]
    unsafe fn widen(p: *const u8) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) })
    }

    #[inline(always)]
    unsafe fn sar16<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        Self(unsafe { _mm256_sra_epi16(self.0, _mm_cvtsi32_si128(N)) })
    }

    #[inline(always)]
    unsafe fn signed<const N: i32>(self) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let n = _mm_cvtsi32_si128(N);
            Self(_mm256_sra_epi16(_mm256_sll_epi16(self.0, n), n))
        }
    }

    #[inline(always)]
    unsafe fn pairs(acc: Self, v: Self, c: *const i16) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let c = _mm256_set1_epi32(c.cast::<i32>().read_unaligned());
            Self(_mm256_add_epi32(acc.0, _mm256_madd_epi16(v.0, c)))
        }
    }

    #[inline(always)]
    unsafe fn couple([w, v]: [Self; 2]) -> [Self; 2] {
        // SAFETY: by the contract.
        let both = Self(unsafe { _mm256_blend_epi16::<0xaa>(w.0, _mm256_slli_epi32::<16>(v.0)) });
        [both; 2]
    }

    #[inline(always)]
    unsafe fn weigh(i: Self, j: Self, weights: &[Self; 2]) -> Self {
        // SAFETY: by the contract.
        unsafe {
            let [both, _] = Self::couple([i, j]);
            Self(_mm256_madd_epi16(both.0, weights[0].0))
        }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn float(self) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_cvtepi32_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn half(self) -> __m256 {
        // SAFETY: by the contract.
        unsafe {
            let low = _mm256_and_si256(self.0, _mm256_set1_epi32(0xffff));
            let packed = _mm_packus_epi32(
                _mm256_castsi256_si128(low),
                _mm256_extracti128_si256::<1>(low),
            );
            _mm256_cvtph_ps(packed)
        }
    }

    #[inline(always)]
    unsafe fn same(self) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_castsi256_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn get(p: *const f32) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn put(p: *mut f32, v: __m256) {
        // SAFETY: by the contract.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn now(v: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { now(v) }
    }

    #[inline(always)]
    unsafe fn neg(a: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_xor_ps(a, _mm256_set1_ps(-0.0)) }
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

/// See [`Vector::now`].
///
/// # Safety
/// AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn now(mut v: __m256) -> __m256 {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) v, options(nostack, preserves_flags)) };
    v
}

integer::entries!(
    "avx2,fma,f16c",
    V: products, kv_scores, kv_sums, soften, float_scores, float_sums, key_tile
);

/// [`integer::encode`], compiled for AVX2.
///
/// # Safety
/// AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn encode(x: &[f32], out: &mut dyn FnMut(usize, CodeBlock)) {
    integer::encode(x, out);
}
