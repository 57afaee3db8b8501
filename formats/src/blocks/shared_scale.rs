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
#[derive(Clone, Copy, Default, PartialEq)]
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

/// What a search tries.
pub(super) struct Search {
    /// The levels that the largest magnitude of a group is tried at.
    tries: &'static [f32],
    /// How many of a group's choices of levels are kept, at most [`MOST_KEPT`].
    keep: usize,
    /// How many factors are tried for good, at most [`MOST_FINALISTS`].
    finalists: usize,
    /// Whether least squares moves all of them, or only the best.
    all: bool,
    /// Rounds of least squares and integer choice.
    rounds: usize,
}

impl Search {
    /// A quick one.
    pub(super) const fn normal(tries: &'static [f32]) -> Self {
        Self {
            tries,
            keep: 1,
            finalists: 3,
            all: false,
            rounds: 3,
        }
    }

    /// A long one.
    pub(super) const fn high(tries: &'static [f32]) -> Self {
        Self {
            tries,
            keep: MOST_KEPT,
            finalists: MOST_FINALISTS,
            all: true,
            rounds: 4,
        }
    }
}

/// Room for the levels kept.
const MOST_KEPT: usize = 3;
/// Room for the factors tried for good.
const MOST_FINALISTS: usize = 6;

/// Factors compared by the levels kept alone, relative to the one that gives the largest step the
/// largest integer.
const STARTS: usize = 40;
const FIRST: f32 = 0.94;
const STEP: f32 = 0.0075;

/// The integers that a scale can be.
pub(super) trait Integers {
    const LEAST: i8;
    const MOST: i8;
    /// From one to the next.
    const STRIDE: i8;

    /// The one below `v`, so that there is another above.
    fn below(v: f32) -> i8;
}

/// The step of least error of a group under some levels, of any real number, and the levels' sums.
#[derive(Clone, Copy, Default)]
pub(super) struct Ideal {
    step: f32,
    sums: Sums,
    /// What the levels explain of `Σ w·x²`.
    gain: f32,
}

/// The best levels found for a group, best first.
pub(super) type Kept = [Ideal; MOST_KEPT];

/// The best steps of a group, by trying the largest magnitude `largest` at the levels of the
/// search; `sums` are those of the levels nearest under a step.
#[inline(always)]
pub(super) fn ideal(largest: f32, search: &Search, sums: impl Fn(f32) -> Sums) -> Kept {
    /// Rounds of nearest levels and least squares after the best try.
    const POLISH: usize = 2;
    let mut kept = Kept::default();
    if largest == 0.0 {
        return kept;
    }
    // Least squares over the levels explains xl²/ll of Σ w·x²: the more the better.
    let mut consider = |step: f32| {
        let s = sums(step);
        let kept = &mut kept[..search.keep];
        let better = |k: &Ideal| s.ll > 0.0 && s.xl * s.xl > k.gain * s.ll;
        let best = better(&kept[0]);
        // Equal sums are of equal levels.
        if let Some(at) = kept.iter().position(better)
            && kept[..at].iter().all(|k| k.sums != s)
        {
            kept[at..].rotate_right(1);
            kept[at] = Ideal {
                step: s.xl / s.ll,
                sums: s,
                gain: s.xl * s.xl / s.ll,
            };
        }
        best.then_some(s.xl / s.ll)
    };
    let mut last = None;
    for t in search.tries {
        last = consider(largest / t).or(last);
    }
    for _ in 0..POLISH {
        let Some(step) = last else { break };
        last = consider(step);
    }
    kept
}

/// A factor, the integers of the groups under it, and what they come to.
#[derive(Clone, Copy)]
struct Choice<const B: usize> {
    d: f16,
    integers: [i8; B],
    sums: [Sums; B],
    /// Less `Σ w·x²`.
    error: f32,
}

/// The factor `d` and the integers `k` that minimise the error of the steps `d·k`.
///
/// `sums` are those of a group's levels nearest under a step. With `both` a negative factor is
/// tried too: it is another when there is one negative integer more.
#[inline(always)]
pub(super) fn share<I: Integers, const B: usize>(
    kept: &[Kept; B],
    search: &Search,
    both: bool,
    sums: impl Fn(usize, f32) -> Sums,
) -> (f16, [i8; B]) {
    let largest = kept.iter().fold(0.0f32, |a, k| a.max(k[0].step.abs()));
    let unit = largest / f32::from(I::MOST);
    let mut finalists = [(f16::ZERO, f32::INFINITY); MOST_FINALISTS];
    let finalists = &mut finalists[..search.finalists];
    for sign in [1.0, -1.0] {
        if sign < 0.0 && !both {
            break;
        }
        for start in 0..STARTS {
            let d = saturate(sign * unit * (FIRST + STEP * start as f32));
            let error = by_formula::<I, B>(kept, d, search.keep);
            if let Some(at) = finalists.iter().position(|f| error < f.1) {
                finalists[at..].rotate_right(1);
                finalists[at] = (d, error);
            }
        }
    }
    let choose = |d: f16| -> Choice<B> {
        let step = d.to_f32();
        let inv = inverse(step);
        let mut out = Choice {
            d,
            integers: [0; B],
            sums: [Sums::default(); B],
            error: 0.0,
        };
        for (b, kept) in kept.iter().enumerate() {
            let mut least = f32::INFINITY;
            let mut seen = 0u64;
            for ideal in &kept[..search.keep] {
                let below = I::below(ideal.step * inv);
                for k in [below, below + I::STRIDE] {
                    // Several of the levels kept may lead to it.
                    let bit = 1 << (k - I::LEAST);
                    if seen & bit != 0 {
                        continue;
                    }
                    seen |= bit;
                    let s = sums(b, step * f32::from(k));
                    let error = s.error(step * f32::from(k));
                    if error < least {
                        least = error;
                        (out.integers[b], out.sums[b]) = (k, s);
                    }
                }
            }
            out.error += least;
        }
        out
    };
    // Least squares for the factor with the levels held, and the integers again.
    let settle = |mut best: Choice<B>| -> Choice<B> {
        for _ in 0..search.rounds {
            let (mut xl, mut ll) = (0.0f64, 0.0f64);
            for (k, s) in best.integers.iter().zip(&best.sums) {
                xl += f64::from(*k) * f64::from(s.xl);
                ll += f64::from(*k).powi(2) * f64::from(s.ll);
            }
            if ll <= 0.0 {
                break;
            }
            let d = saturate((xl / ll) as f32);
            if d == best.d {
                break;
            }
            let found = choose(d);
            if found.error >= best.error {
                break;
            }
            best = found;
        }
        best
    };
    let mut best: Option<Choice<B>> = None;
    for (d, _) in finalists.iter() {
        let mut found = choose(*d);
        if search.all {
            found = settle(found);
        }
        if best.is_none_or(|b| found.error < b.error) {
            best = Some(found);
        }
    }
    let Some(best) = best else {
        return (f16::ZERO, [I::LEAST; B]);
    };
    let best = if search.all { best } else { settle(best) };
    (best.d, best.integers)
}

/// The error under a factor with the levels kept, of the two integers around each ideal; less
/// `Σ w·x²`.
#[inline(always)]
fn by_formula<I: Integers, const B: usize>(kept: &[Kept; B], d: f16, keep: usize) -> f32 {
    let step = d.to_f32();
    let inv = inverse(step);
    let mut error = 0.0;
    for kept in kept {
        let mut least = f32::INFINITY;
        for i in &kept[..keep] {
            let below = I::below(i.step * inv);
            for k in [below, below + I::STRIDE] {
                let e = i.sums.error(step * f32::from(k));
                least = if e < least { e } else { least };
            }
        }
        error += least;
    }
    error
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
