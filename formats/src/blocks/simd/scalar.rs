//! Vectors as arrays, for every processor.

use std::ops::{Add, Div, Mul, Sub};

use half::f16;

use super::{Kernel, LANES, SHIFT, Simd};

/// Eight values in an array.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Array([f32; LANES]);

pub(super) fn run(kernel: impl Kernel) {
    kernel.run::<Array>();
}

impl Array {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self;
        for i in 0..LANES {
            out.0[i] = f(self.0[i], other.0[i]);
        }
        out
    }
}

impl Add for Array {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Array {
    type Output = Self;

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for Array {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
}

impl Div for Array {
    type Output = Self;

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
}

impl Simd for Array {
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Self([v; LANES])
    }

    #[inline(always)]
    fn load(v: &[f32; LANES]) -> Self {
        Self(*v)
    }

    #[inline(always)]
    fn store(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn if_less(self, than: Self, yes: Self, no: Self) -> Self {
        let mut out = no;
        for i in 0..LANES {
            if self.0[i] < than.0[i] {
                out.0[i] = yes.0[i];
            }
        }
        out
    }

    #[inline(always)]
    fn if_equal(self, other: Self, yes: Self, no: Self) -> Self {
        let mut out = no;
        for i in 0..LANES {
            if self.0[i] == other.0[i] {
                out.0[i] = yes.0[i];
            }
        }
        out
    }

    #[inline(always)]
    fn half_bits(self) -> [u16; LANES] {
        self.0.map(|v| f16::from_f32(v).to_bits())
    }

    #[inline(always)]
    fn from_half_bits(bits: [u16; LANES]) -> Self {
        Self(bits.map(|b| f16::from_bits(b).to_f32()))
    }

    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut out = rows;
        for (i, row) in rows.iter().enumerate() {
            for (j, v) in row.0.iter().enumerate() {
                out[j].0[i] = *v;
            }
        }
        out
    }

    #[inline(always)]
    fn tagged(self, tag: u8) -> Self {
        Self(
            self.0
                .map(|v| f32::from_bits(v.to_bits() & !0xff | u32::from(tag))),
        )
    }

    #[inline(always)]
    fn tags(self) -> [u8; LANES] {
        self.0.map(|v| v.to_bits() as u8)
    }

    #[inline(always)]
    fn low_bytes(self) -> [u8; LANES] {
        // The sum's lowest mantissa bits are the integer.
        self.0.map(|v| (v + SHIFT).to_bits() as u8)
    }
}
