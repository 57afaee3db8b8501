//! Eight `f32` side by side, in a vector register where the processor has one.
//!
//! The encoders are written once, over [`Simd`]; [`dispatch`] compiles them twice, over plain
//! arrays and over AVX2 registers, and picks at run time. Every operation is one IEEE operation a
//! lane (no fused multiply-add, no approximate reciprocal, no sum across lanes), so both give the
//! same bits.

use std::ops::{Add, Div, Mul, Sub};

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

/// Width of a vector.
pub(super) const LANES: usize = 8;

/// Eight independent values. All methods must be inlined: only then does the code around them
/// become that of the instruction set.
pub(super) trait Simd:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Whether these are registers.
    const WIDE: bool;

    fn splat(v: f32) -> Self;

    fn load(v: &[f32; LANES]) -> Self;

    fn store(self) -> [f32; LANES];

    /// `self` where it is less than `other`, else `other`.
    fn min(self, other: Self) -> Self;

    /// `self` where it is greater than `other`, else `other`.
    fn max(self, other: Self) -> Self;

    fn abs(self) -> Self;

    /// `yes` where `self` is less than `than`, else `no`.
    fn if_less(self, than: Self, yes: Self, no: Self) -> Self;

    /// `yes` where `self` equals `other`, else `no`.
    fn if_equal(self, other: Self, yes: Self, no: Self) -> Self;

    /// The values as half floats: nearest, ties to even. For finite values within ±65504.
    fn half_bits(self) -> [u16; LANES];

    /// What half floats stand for.
    fn from_half_bits(bits: [u16; LANES]) -> Self;

    /// Lane `i` of result `j` is lane `j` of `rows[i]`.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];

    /// The low bytes of integers of at most 22 bits, in two's complement.
    fn low_bytes(self) -> [u8; LANES];

    /// The values with their lowest eight bits replaced by `tag`: off by 2⁻¹⁵ of themselves at most.
    fn tagged(self, tag: u8) -> Self;

    /// What [`tagged`](Self::tagged) put there.
    fn tags(self) -> [u8; LANES];

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// The nearest integers, ties to even, of values below 2²².
    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5·2²³ leaves no fraction bits.
        let shift = Self::splat(SHIFT);
        self + shift - shift
    }

    /// The nearest integers in `low..=high`.
    #[inline(always)]
    fn round_to(self, low: f32, high: f32) -> Self {
        self.max(Self::splat(low)).min(Self::splat(high)).round()
    }

    /// Rounded to the nearest half float, saturating.
    #[inline(always)]
    fn to_half(self) -> Self {
        let most = Self::splat(HALF_MAX);
        let within = self.min(most).max(Self::zero() - most);
        Self::from_half_bits(within.half_bits())
    }
}

const SHIFT: f32 = 12_582_912.0;
const HALF_MAX: f32 = 65_504.0;

/// Work to be compiled for every instruction set.
pub(super) trait Kernel {
    /// Must be `#[inline(always)]`, like everything it calls that takes vectors.
    fn run<V: Simd>(self);
}

/// Runs `kernel` on the widest vectors that this processor has.
pub(super) fn dispatch(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        // SAFETY: the processor has what the function was compiled for.
        return unsafe { avx2::run(kernel) };
    }
    scalar::run(kernel);
}

/// Runs `kernel` on plain arrays, whatever the processor.
#[cfg(test)]
pub(super) fn dispatch_scalar(kernel: impl Kernel) {
    scalar::run(kernel);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation of `V` on awkward values, as bits.
    struct Probe<'a>(&'a mut Vec<u32>);

    impl Kernel for Probe<'_> {
        #[inline(always)]
        fn run<V: Simd>(self) {
            let values = [
                [0.0, -0.0, 1.5, -2.5, 65504.0, -7e4, 1e9, 3e-8],
                [f32::NAN, 0.5, 1.5, 2.5, -65520.0, 6e-5, -1e9, 1e-3],
                [1.0, -1.0, 127.49, -127.51, 200.4, 3.3, 0.1, -0.1],
            ];
            for a in values {
                for b in values {
                    let (a, b) = (V::load(&a), V::load(&b));
                    for v in [
                        a + b,
                        a - b,
                        a * b,
                        a / b,
                        a.min(b),
                        a.max(b),
                        a.abs(),
                        a.if_less(b, a * b, a + b),
                        a.if_equal(b, a * b, a + b),
                        a.round_to(-7.0, 9.0),
                        V::splat(0.3).max(a).to_half(),
                    ] {
                        self.0.extend(v.store().map(|v| {
                            // Which NaN comes out of an operation is the processor's affair.
                            if v.is_nan() { u32::MAX } else { v.to_bits() }
                        }));
                    }
                }
                let tagged = V::load(&a).tagged(77);
                assert_eq!(tagged.tags(), [77; LANES]);
                self.0.extend(tagged.store().map(f32::to_bits));
                let small = V::load(&a).round_to(-128.0, 255.0);
                self.0.extend(small.low_bytes().map(u32::from));
                let t = V::transpose(
                    [0, 1, 2, 3, 4, 5, 6, 7].map(|i| V::load(&a) * V::splat(i as f32)),
                );
                for t in t {
                    self.0
                        .extend(t.store().map(|v| if v.is_nan() { 0 } else { v.to_bits() }));
                }
            }
        }
    }

    #[test]
    fn both_kinds_of_vectors_agree_to_the_bit() {
        let (mut widest, mut scalar) = (Vec::new(), Vec::new());
        dispatch(Probe(&mut widest));
        dispatch_scalar(Probe(&mut scalar));
        assert_eq!(widest.len(), scalar.len());
        for (i, (a, b)) in widest.iter().zip(&scalar).enumerate() {
            assert_eq!(a, b, "result {i}: {a:08x} is not {b:08x}");
        }
    }

    #[test]
    fn rounding_and_bytes() {
        struct Round;
        impl Kernel for Round {
            #[inline(always)]
            fn run<V: Simd>(self) {
                let v = V::load(&[-130.0, -2.5, -0.4, 0.5, 1.5, 100.6, 254.0, 300.0]);
                let r = v.round_to(-128.0, 255.0);
                assert_eq!(
                    r.store(),
                    [-128.0, -2.0, 0.0, 0.0, 2.0, 101.0, 254.0, 255.0]
                );
                assert_eq!(r.low_bytes(), [128, 254, 0, 0, 2, 101, 254, 255]);
                assert_eq!(V::splat(1e9).to_half().store(), [65504.0; LANES]);
                assert_eq!(V::splat(1.0003).to_half().store(), [1.0; LANES]);
            }
        }
        dispatch(Round);
        dispatch_scalar(Round);
    }
}
