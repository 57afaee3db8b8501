//! Weights of attention as whole numbers; `kv` says what they are for. All of it is plain text
//! that is compiled for each instruction set, in lanes of a fixed number.

// To be compiled with the features of the caller.
#![allow(clippy::inline_always)]

use formats::model::KV_PAGE;

/// Positions of a span: what is summed up in 32 bits.
pub(in super::super) const SPAN: usize = 256;

/// Lanes: the positions of a page.
const LANES: usize = KV_PAGE;
/// Adding 1.5·2²³ rounds a small number to a whole one, ties to even, in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Below this magnitude a block counts as zero.
const TINY: f32 = 1e-30;
/// Below this 2ˣ is no normal number.
const LEAST: f32 = -125.0;
/// The polynomial of degree 4 nearest to 2ʳ on ±½ (relative error 3.6e-6) that is 1 at 0; its other
/// coefficients, the highest power first. Weights are rounded to 2⁻¹⁵ afterwards.
const POLY: [f32; 4] = [9.782_912e-3, 5.597_688_4e-2, 2.402_071e-1, 6.931_136e-1];

/// 2ˣ for `x` up to 0; what is no number counts as very small.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let x = if x > LEAST { x } else { LEAST };
    let whole = x + ROUND;
    let r = x - (whole - ROUND);
    let mut p = POLY[0];
    for c in &POLY[1..] {
        p = p.mul_add(r, *c);
    }
    let p = p.mul_add(r, 1.0);
    // The low bits of `whole` are the exponent.
    f32::from_bits(p.to_bits().wrapping_add(whole.to_bits() << 23))
}

/// The largest of all lanes; what is no number is none of them.
#[inline(always)]
fn largest(lanes: &[f32; LANES], least: f32) -> f32 {
    lanes.iter().fold(least, |m, a| if *a > m { *a } else { m })
}

/// The first `n` scores, in powers of two, to weights: `s[t] = 2^(s[t] − max s)`, zeros up to the end
/// of their page. Returns the largest score as a power of e, and the sum of the weights in lanes;
/// no number where all scores are none.
#[inline(always)]
pub(in super::super) fn soften(s: &mut [f32], n: usize) -> [f32; 2] {
    let (chunks, _) = s.as_chunks_mut::<LANES>();
    let (full, rest) = chunks.split_at_mut(n / LANES);
    let tail = n % LANES;
    let mut most = [f32::NEG_INFINITY; LANES];
    for c in &*full {
        for l in 0..LANES {
            most[l] = if c[l] > most[l] { c[l] } else { most[l] };
        }
    }
    let mut max = largest(&most, f32::NEG_INFINITY);
    if let Some(last) = rest.first().filter(|_| tail > 0) {
        let seen = last[..tail].iter();
        max = seen.fold(max, |m, a| if *a > m { *a } else { m });
    }
    let mut sums = [0.0; LANES];
    for c in full {
        for l in 0..LANES {
            c[l] = exp2(c[l] - max);
            sums[l] += c[l];
        }
    }
    if let Some(last) = rest.first_mut().filter(|_| tail > 0) {
        for l in 0..tail {
            last[l] = exp2(last[l] - max);
            sums[l] += last[l];
        }
        last[tail..].fill(0.0);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
        half /= 2;
    }
    if max == f32::NEG_INFINITY {
        return [max, f32::NAN];
    }
    [max * std::f32::consts::LN_2, sums[0]]
}

/// What makes codes of weights, for a block of 32 dimensions: the scales of its first `seen`
/// positions by their step.
pub(in super::super) struct Factors {
    seen: usize,
    each: [f32; SPAN],
    /// What a code stands for.
    pub(in super::super) step: f32,
}

impl Factors {
    pub(in super::super) const NONE: Self = Self {
        seen: 0,
        each: [0.0; SPAN],
        step: 0.0,
    };

    /// For the first `n` of `scales`, whose end of the page may be anything: the step is the largest
    /// of them by 32767. They are what they were the last time, unless `new`.
    #[inline(always)]
    pub(in super::super) fn fill(&mut self, scales: &[f32; SPAN], n: usize, new: bool) {
        if n == self.seen && !new {
            return;
        }
        self.seen = n;
        let whole = n.next_multiple_of(LANES);
        let own = &mut self.each;
        own[..whole].copy_from_slice(&scales[..whole]);
        own[n..].fill(0.0);
        let mut most = [0.0_f32; LANES];
        let mut wrong = [0.0_f32; LANES];
        for c in own[..whole].as_chunks::<LANES>().0 {
            for l in 0..LANES {
                let a = c[l].abs();
                most[l] = if a > most[l] { a } else { most[l] };
                // Zero, but not for what is no number: that must stay visible.
                wrong[l] += c[l] * 0.0;
            }
        }
        let most = largest(&most, 0.0);
        let wrong: f32 = wrong.iter().sum();
        let (inverse, step) = if most > TINY {
            (32767.0 / most, most / 32767.0 + wrong)
        } else {
            (0.0, wrong)
        };
        for f in &mut own[..whole] {
            *f *= inverse;
        }
        self.step = step;
    }

    /// Codes of weights `e` of the same positions; zeros behind.
    #[inline(always)]
    pub(in super::super) fn codes(&self, e: &[f32], codes: &mut Codes16) {
        let whole = self.seen.next_multiple_of(LANES);
        let e = e[..whole].as_chunks::<LANES>().0;
        let f = self.each.as_chunks::<LANES>().0;
        let out = codes.0.as_chunks_mut::<LANES>().0;
        for ((c, e), f) in out.iter_mut().zip(e).zip(f) {
            for l in 0..LANES {
                c[l] = e[l].mul_add(f[l], ROUND).to_bits() as i16;
            }
        }
        codes.0[whole..].fill(0);
    }
}

/// Codes of a row's weights in a span.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Codes16(pub(in super::super) [i16; SPAN]);

impl Codes16 {
    pub(in super::super) const ZERO: Self = Self([0; SPAN]);
}
