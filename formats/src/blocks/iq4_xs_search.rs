//! The search behind the IQ4_XS encoder.

// The pieces must be inlined, or they would be compiled without the wider registers.
#![allow(clippy::inline_always)]

use half::f16;

use super::iq4_nl::IQ4_NL_LEVELS;
use super::search::inverse;
use super::shared_scale::{Integers, Kept, Search, Sums, ideal, share, wider};
use super::{Effort, QK_K};

const SUB_BLOCKS: usize = 8;

/// Levels the value of largest magnitude is tried at, which reach from −127 to 113: both ways
/// round, since they are not alike.
const TRIES: [f32; 22] = [
    82.0, 90.0, 97.0, 102.0, 107.0, 111.0, 115.0, 119.0, 125.0, 133.0, 148.0, //
    -82.0, -92.0, -100.0, -107.0, -113.0, -118.0, -123.0, -127.0, -132.0, -140.0, -155.0,
];

const MORE_TRIES: [f32; 80] = {
    let mut out = [0.0; 80];
    let mut i = 0;
    while i < 40 {
        out[i] = 76.0 + 2.0 * i as f32;
        out[i + 40] = -80.0 - 2.0 * i as f32;
        i += 1;
    }
    out
};

/// The borders between the levels, and the steps there.
const STEPS: [(f32, f32); 15] = {
    let mut steps = [(0.0, 0.0); 15];
    let mut i = 0;
    while i < 15 {
        let (low, high) = (IQ4_NL_LEVELS[i] as f32, IQ4_NL_LEVELS[i + 1] as f32);
        steps[i] = (f32::midpoint(low, high), high - low);
        i += 1;
    }
    steps
};

/// What a block stores.
pub(super) struct Fit {
    pub(super) d: f16,
    /// Of the sub-blocks, −32..=31.
    pub(super) scales: [i8; SUB_BLOCKS],
    /// Indices into the levels.
    pub(super) codes: [[u8; 32]; SUB_BLOCKS],
}

type Sub = [f32; 32];

#[inline(always)]
fn fold(v: [f32; 8]) -> f32 {
    ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
}

/// The sums of the levels nearest under `step`.
#[inline(always)]
fn sums(x: &Sub, w: &Sub, step: f32) -> Sums {
    let inv = inverse(step);
    let (mut xl, mut ll) = ([0.0; 8], [0.0; 8]);
    for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
        let y = x.map(|v| v * inv);
        // A sum of steps: no branch and no table look-up, so it vectorises.
        let mut l = [f32::from(IQ4_NL_LEVELS[0]); 8];
        for (border, up) in STEPS {
            for j in 0..8 {
                l[j] += if y[j] > border { up } else { 0.0 };
            }
        }
        for j in 0..8 {
            let wl = w[j] * l[j];
            xl[j] += wl * x[j];
            ll[j] += wl * l[j];
        }
    }
    Sums {
        xl: fold(xl),
        ll: fold(ll),
    }
}

struct Scales;

impl Integers for Scales {
    const LEAST: i8 = -32;
    const MOST: i8 = 31;
    const STRIDE: i8 = 1;

    #[inline(always)]
    fn below(v: f32) -> i8 {
        v.clamp(-32.0, 30.0).floor() as i8
    }
}

#[inline(always)]
fn fit_inner(x: &[f32; QK_K], w: &[f32; QK_K], effort: Effort) -> Fit {
    let search = match effort {
        Effort::Normal => Search::normal(&TRIES),
        Effort::High => Search::high(&MORE_TRIES),
    };
    let x: &[Sub; SUB_BLOCKS] = bytemuck::cast_ref(x);
    let w: &[Sub; SUB_BLOCKS] = bytemuck::cast_ref(w);
    let mut kept = [Kept::default(); SUB_BLOCKS];
    for ((x, w), out) in x.iter().zip(w).zip(&mut kept) {
        let largest = x
            .iter()
            .fold(0.0f32, |a, &v| if v.abs() > a.abs() { v } else { a });
        *out = ideal(largest, &search, |step| sums(x, w, step));
    }
    let (d, scales) =
        share::<Scales, SUB_BLOCKS>(&kept, &search, true, |b, step| sums(&x[b], &w[b], step));
    let mut codes = [[0; 32]; SUB_BLOCKS];
    for b in 0..SUB_BLOCKS {
        let inv = inverse(d.to_f32() * f32::from(scales[b]));
        for (code, v) in codes[b].iter_mut().zip(&x[b]) {
            let y = v * inv;
            *code = STEPS.iter().map(|(border, _)| u8::from(y > *border)).sum();
        }
    }
    Fit { d, scales, codes }
}

wider! {
    /// The best scales and codes for weights `x` of importances `w`.
    fn fit(x: &[f32; QK_K], w: &[f32; QK_K], effort: Effort) -> Fit = fit_inner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_nearest_levels_on_every_processor() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for i in 0..20 {
            let x: [f32; QK_K] = std::array::from_fn(|_| next() * next());
            let w: [f32; QK_K] = std::array::from_fn(|_| next().abs() + 0.01);
            let effort = Effort::ALL[i % 2];
            let (wide, narrow) = (fit(&x, &w, effort), super::wider::narrow(&x, &w, effort));
            assert_eq!((wide.d, wide.scales), (narrow.d, narrow.scales));
            assert_eq!(wide.codes, narrow.codes);
            for b in 0..SUB_BLOCKS {
                let step = wide.d.to_f32() * f32::from(wide.scales[b]);
                for (i, code) in wide.codes[b].iter().enumerate() {
                    let v = x[32 * b + i];
                    let miss = |l: i8| (v - step * f32::from(l)).abs();
                    let ours = miss(IQ4_NL_LEVELS[usize::from(*code)]);
                    assert!(
                        IQ4_NL_LEVELS
                            .iter()
                            .all(|l| ours <= miss(*l) * 1.0001 + 1e-7)
                    );
                }
            }
        }
    }
}
