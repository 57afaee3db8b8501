//! The half float that the integer scales of a block's groups share, for IQ4_XS and IQ3_S.
//!
//! Every group has its ideal step, and how the error grows around it with the levels kept. Many
//! shared factors are compared by that alone; the few best are tried for good, the groups rounded
//! again under exactly the step they would store; least squares over the block moves the winner
//! to where it fits its integers best.

// The pieces must be inlined, or they would be compiled without the wider registers.
#![allow(clippy::inline_always)]

use half::f16;

use super::half_scale::saturate;
use super::search::inverse;

/// `Σ w·x·l` and `Σ w·l²` of the levels chosen for a group.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) xl: f32,
    pub(super) ll: f32,
}

impl Sums {
    /// `Σ w·(x − step·l)²`, less `Σ w·x²`.
    #[inline(always)]
    fn error(self, step: f32) -> f32 {
        step * (step * self.ll - 2.0 * self.xl)
    }
}

/// The step of least error of a group, of any real number, and its levels' sums.
#[derive(Clone, Copy, Default)]
pub(super) struct Ideal {
    pub(super) step: f32,
    pub(super) sums: Sums,
}

/// The step of least error, by trying the largest magnitude `largest` at the levels `tries`;
/// `sums` are those of the levels nearest under a step.
#[inline(always)]
pub(super) fn ideal(largest: f32, tries: &[f32], sums: impl Fn(f32) -> Sums) -> Ideal {
    /// Rounds of nearest levels and least squares after the best try.
    const POLISH: usize = 2;
    let mut best = Ideal::default();
    let mut gain = 0.0;
    if largest == 0.0 {
        return best;
    }
    // Least squares over the levels explains xl²/ll of Σ w·x²: the more the better.
    let mut consider = |step: f32| {
        let s = sums(step);
        let better = s.ll > 0.0 && s.xl * s.xl > gain * s.ll;
        if better {
            gain = s.xl * s.xl / s.ll;
            best = Ideal {
                step: s.xl / s.ll,
                sums: s,
            };
        }
        better.then_some(s.xl / s.ll)
    };
    let mut last = None;
    for t in tries {
        last = consider(largest / t).or(last);
    }
    for _ in 0..POLISH {
        let Some(step) = last else { break };
        last = consider(step);
    }
    best
}

/// Factors compared by the ideals alone, relative to the one that gives the largest step the
/// largest integer.
const STARTS: usize = 40;
const FIRST: f32 = 0.94;
const STEP: f32 = 0.0075;
/// How many of them are tried for good.
const FINALISTS: usize = 3;
/// Rounds of least squares and integer choice from the best.
const ROUNDS: usize = 3;

/// Integers of the groups under a factor, and what they come to.
struct Choice<const B: usize> {
    integers: [i8; B],
    sums: [Sums; B],
    /// Less `Σ w·x²`.
    error: f32,
}

/// The factor `d` and the integers `k` that minimise the error of the steps `d·k`.
///
/// `around` gives the two integers to try for a real number; `limit` is the largest of them;
/// `sums` are those of a group's levels nearest under a step. With `both` a negative factor is
/// tried too: it is another when there is one negative integer more.
#[inline(always)]
pub(super) fn share<const B: usize>(
    ideals: &[Ideal; B],
    limit: f32,
    both: bool,
    around: impl Fn(f32) -> [i8; 2] + Copy,
    sums: impl Fn(usize, f32) -> Sums + Copy,
) -> (f16, [i8; B]) {
    let largest = ideals.iter().fold(0.0f32, |a, i| a.max(i.step.abs()));
    let unit = largest / limit;
    let mut finalists = [(f16::ZERO, f32::INFINITY); FINALISTS];
    for sign in [1.0, -1.0] {
        if sign < 0.0 && !both {
            break;
        }
        for start in 0..STARTS {
            let d = saturate(sign * unit * (FIRST + STEP * start as f32));
            let step = d.to_f32();
            let inv = inverse(step);
            let mut error = 0.0;
            for i in ideals {
                let [a, b] = around(i.step * inv);
                let a = i.sums.error(step * f32::from(a));
                let b = i.sums.error(step * f32::from(b));
                error += if a < b { a } else { b };
            }
            if error < finalists[FINALISTS - 1].1 {
                finalists[FINALISTS - 1] = (d, error);
                let mut at = FINALISTS - 1;
                while at > 0 && finalists[at].1 < finalists[at - 1].1 {
                    finalists.swap(at, at - 1);
                    at -= 1;
                }
            }
        }
    }
    let choose = |d: f16| -> Choice<B> {
        let d = d.to_f32();
        let inv = inverse(d);
        let mut out = Choice {
            integers: [0; B],
            sums: [Sums::default(); B],
            error: 0.0,
        };
        for (b, ideal) in ideals.iter().enumerate() {
            let mut least = f32::INFINITY;
            for k in around(ideal.step * inv) {
                let step = d * f32::from(k);
                let s = sums(b, step);
                let error = s.error(step);
                if error < least {
                    least = error;
                    (out.integers[b], out.sums[b]) = (k, s);
                }
            }
            out.error += least;
        }
        out
    };
    let mut d = finalists[0].0;
    let mut best = choose(d);
    for (candidate, _) in &finalists[1..] {
        let found = choose(*candidate);
        if found.error < best.error {
            (best, d) = (found, *candidate);
        }
    }
    for _ in 0..ROUNDS {
        let (mut xl, mut ll) = (0.0f64, 0.0f64);
        for (k, s) in best.integers.iter().zip(&best.sums) {
            xl += f64::from(*k) * f64::from(s.xl);
            ll += f64::from(*k).powi(2) * f64::from(s.ll);
        }
        if ll <= 0.0 {
            break;
        }
        let candidate = saturate((xl / ll) as f32);
        if candidate == d {
            break;
        }
        let found = choose(candidate);
        if found.error >= best.error {
            break;
        }
        (best, d) = (found, candidate);
    }
    (d, best.integers)
}

/// `fn $name` with the body `$inner`, compiled for AVX2 too and run so where there is AVX2: plain
/// code that the compiler widens, of the same bits.
macro_rules! wider {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $inner:ident) => {
        $(#[$doc])*
        pub(super) fn $name($($arg: $ty),*) -> $out {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) -> $out {
                    $inner($($arg),*)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature has been seen.
                    return unsafe { wide($($arg),*) };
                }
            }
            $inner($($arg),*)
        }

        #[cfg(test)]
        mod wider {
            use super::*;

            /// The code as it runs without AVX2.
            pub(super) fn narrow($($arg: $ty),*) -> $out {
                $inner($($arg),*)
            }
        }
    };
}
pub(super) use wider;
