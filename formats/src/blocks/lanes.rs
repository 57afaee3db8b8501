//! Eight `f32` side by side: plain arrays that the compiler turns into vector registers, with
//! the same bits on every processor since each lane is ordinary scalar arithmetic.

use std::ops::{Add, Mul, Sub};

/// Width of a [`Lanes`].
pub(super) const LANES: usize = 8;

/// Eight independent values.
#[derive(Clone, Copy)]
pub(super) struct Lanes(pub(super) [f32; LANES]);

impl Lanes {
    #[inline]
    pub(super) const fn splat(v: f32) -> Self {
        Self([v; LANES])
    }

    #[inline]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Self(out)
    }

    /// The nearest integers in `low..=high`, ties to even.
    #[inline]
    pub(super) fn round_to(self, low: f32, high: f32) -> Self {
        // Adding 1.5·2²³ leaves no fraction bits: rounding without an instruction set that has it.
        const SHIFT: Lanes = Lanes::splat(12_582_912.0);
        // `clamp` would check its bounds, and `max` care for NaN: both cost more than they do.
        let raised = self.zip(Self::splat(low), |a, b| if a > b { a } else { b });
        let bound = raised.zip(Self::splat(high), |a, b| if a < b { a } else { b });
        bound + SHIFT - SHIFT
    }

    /// `step` where the lane exceeds `border`, else 0.
    #[inline]
    pub(super) fn step_above(self, border: f32, step: f32) -> Self {
        self.zip(Self::splat(border), |a, b| if a > b { step } else { 0.0 })
    }

    /// The sum of all lanes, in a fixed order.
    #[inline]
    pub(super) fn sum(self) -> f32 {
        let p = self.0;
        ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]))
    }
}

impl Add for Lanes {
    type Output = Self;

    #[inline]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Lanes {
    type Output = Self;

    #[inline]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for Lanes {
    type Output = Self;

    #[inline]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
}

/// Sums `K` terms of every weight `x` and its importance `w`, in a fixed order.
#[inline]
pub(super) fn sums<const N: usize, const K: usize>(
    x: &[f32; N],
    w: &[f32; N],
    term: impl Fn(Lanes, Lanes) -> [Lanes; K],
) -> [f32; K] {
    let mut total = [Lanes::splat(0.0); K];
    let pairs = x.as_chunks().0.iter().zip(w.as_chunks().0);
    for (&x, &w) in pairs {
        let terms = term(Lanes(x), Lanes(w));
        for k in 0..K {
            total[k] = total[k] + terms[k];
        }
    }
    total.map(Lanes::sum)
}

/// `f` of every value; `N` is a multiple of 8.
#[inline]
pub(super) fn map<const N: usize>(x: &[f32; N], f: impl Fn(Lanes) -> Lanes) -> [f32; N] {
    let mut out = *x;
    for v in out.as_chunks_mut().0 {
        *v = f(Lanes(*v)).0;
    }
    out
}
