//! Trellis-coded quantisation (Marcellin and Fischer, 1990) with two quantisers and eight states.
//!
//! The points of a channel are whole steps from its mean. The *even* quantiser has 0, ±2, ±4, …
//! with codes k = 0, ±1, ±2, …; the *odd* one 0, ±1, ±3, ±5, …. Which of them a channel uses
//! follows from the parities of the codes before it in the row. So codes cost what those of a
//! quantiser of two steps cost, and the error comes close to that of a quantiser of one. The
//! encoder finds the cheapest of all ways through a row, error and expected bits together, with
//! Viterbi's algorithm. No sum depends on the instruction set: encoders give the same bytes.

// What a function of one instruction set calls is compiled for it only when it is inlined.
#![allow(clippy::inline_always)]

/// States of the trellis; a row begins in state 0, and in odd ones the odd quantiser holds.
const STATES: usize = 8;
/// Whether the parity of a code counts turned round in a state.
const FLIP: [usize; STATES] = [0, 1, 1, 0, 1, 0, 0, 1];
/// Subset that leads to a state from the one of its two origins below four, and from the other.
/// 0: even quantiser, even k; 1: odd, odd; 2: even, odd; 3: odd, even.
const FROM_LOW: [usize; STATES] = [0, 2, 1, 3, 2, 0, 3, 1];
const FROM_HIGH: [usize; STATES] = [2, 0, 3, 1, 0, 2, 1, 3];

/// What a bit costs in squares of a step: the slope of error against rate.
const BIT: f32 = 0.4;
/// ½ log₂ e: bits of a Gaussian at one standard deviation above those at its mean.
const BITS_AT_SIGMA: f32 = 0.721_347_5;
/// Channels whose candidates are found together.
const WIDE: usize = 8;
/// More than any way through a row costs.
const NEVER: f32 = 1e30;

/// Follows the trellis: the state behind a code.
#[inline(always)]
pub(super) fn next(state: usize, k: i32) -> usize {
    ((2 * state) & 7) | ((k & 1) as usize ^ FLIP[state])
}

/// Steps from the mean of code `k` in the quantiser of a state.
#[inline(always)]
pub(super) fn point(state: usize, k: i32) -> i32 {
    2 * k - k.signum() * (state & 1) as i32
}

/// Buffers of one row.
#[derive(Default)]
pub(super) struct Trellis {
    /// Cost and code of the best point of each subset, for eight channels at a time.
    costs: Vec<[[f32; WIDE]; 4]>,
    codes: Vec<[[i32; WIDE]; 4]>,
    /// Which origin each state was reached from: one bit a state.
    origins: Vec<u8>,
}

/// 1.5 · 2^23: numbers of this size are whole.
const MAGIC: f32 = 12_582_912.0;

/// Rounds to nearest even; for magnitudes below 2^22.
#[inline(always)]
fn round(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// The best point of each subset for eight channels at `z` steps, and what each costs; `rate` is
/// the cost of a squared step. For NaN, an outlier, code 0: its value goes another way.
#[inline(always)]
fn candidates(
    z: &[f32; WIDE],
    rate: &[f32; WIDE],
    costs: &mut [[f32; WIDE]; 4],
    codes: &mut [[i32; WIDE]; 4],
) {
    for i in 0..WIDE {
        let (outlier, rate) = (z[i].is_nan(), rate[i]);
        let z = if outlier { 0.0 } else { z[i] };
        let a = z.abs();
        let v0 = 4.0 * round(z * 0.25);
        let v2 = 4.0 * round((z - 2.0) * 0.25) + 2.0;
        let v1 = 4.0 * round((a - 1.0) * 0.25).max(0.0) + 1.0;
        let far = 4.0 * round((a + 1.0) * 0.25).max(1.0) - 1.0;
        let near = a < 1.5;
        let v3 = if near { 0.0 } else { far };
        // Cells around zero are narrower than the others: a half, and three quarters.
        let narrow1 = if v1 < 2.0 { BIT * 0.415 } else { 0.0 };
        let narrow3 = if near { BIT } else { 0.0 };
        let cost = |x: f32, v: f32, more: f32| {
            let e = x - v;
            e * e + rate * (v * v) + more
        };
        let never = |cost: f32| if outlier { NEVER } else { cost };
        costs[0][i] = if outlier { 0.0 } else { cost(z, v0, 0.0) };
        costs[1][i] = never(cost(a, v1, narrow1));
        costs[2][i] = never(cost(z, v2, 0.0));
        costs[3][i] = if outlier { 0.0 } else { cost(a, v3, narrow3) };
        let sign = if z < 0.0 { -0.5 } else { 0.5 };
        let up3 = if near { 0.0 } else { far + 1.0 };
        // Whole numbers below 2^22: their sum with 1.5 · 2^23 has them in its low bits.
        let whole = |x: f32| (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
        codes[0][i] = whole(v0 * 0.5);
        codes[1][i] = whole((v1 + 1.0) * sign);
        codes[2][i] = whole(v2 * 0.5);
        codes[3][i] = whole(up3 * sign);
    }
}

/// One column of the trellis.
#[inline(always)]
fn advance(metric: &mut [f32; STATES], costs: [f32; 4]) -> u8 {
    let (mut low, mut high) = ([0.0; STATES], [0.0; STATES]);
    for n in 0..STATES {
        low[n] = metric[n / 2] + costs[FROM_LOW[n]];
        high[n] = metric[n / 2 + 4] + costs[FROM_HIGH[n]];
    }
    let mut origins = 0;
    for n in 0..STATES {
        let other = high[n] < low[n];
        metric[n] = if other { high[n] } else { low[n] };
        origins |= u8::from(other) << n;
    }
    origins
}

/// Candidates of a whole row; behind its end stand those of zeros, which nothing reads.
#[inline(always)]
fn prepare(t: &mut Trellis, z: &[f32], ratio: &[f32]) {
    let groups = z.len().div_ceil(WIDE);
    t.costs.resize(groups, [[0.0; WIDE]; 4]);
    t.codes.resize(groups, [[0; WIDE]; 4]);
    t.origins.resize(z.len(), 0);
    let each = z.chunks(WIDE).zip(ratio.chunks(WIDE));
    for ((z, ratio), (costs, codes)) in each.zip(t.costs.iter_mut().zip(&mut t.codes)) {
        let (mut eight, mut rate) = ([0.0; WIDE], [0.0; WIDE]);
        eight[..z.len()].copy_from_slice(z);
        for (r, u) in rate.iter_mut().zip(ratio) {
            *r = BIT * BITS_AT_SIGMA * u * u;
        }
        candidates(&eight, &rate, costs, codes);
    }
}

/// Before the first column only state 0 is possible.
const BEGIN: [f32; STATES] = [0.0, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER, NEVER];

fn run(t: &mut Trellis, z: &[f32], ratio: &[f32]) -> [f32; STATES] {
    prepare(t, z, ratio);
    let mut metric = BEGIN;
    for (costs, origins) in t.costs.iter().zip(t.origins.chunks_mut(WIDE)) {
        for (i, origins) in origins.iter_mut().enumerate() {
            *origins = advance(&mut metric, costs.map(|c| c[i]));
        }
    }
    metric
}

/// [`run`] with the eight states in one register.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_avx2(t: &mut Trellis, z: &[f32], ratio: &[f32]) -> [f32; STATES] {
    use std::arch::x86_64::{
        _CMP_LT_OQ, _mm256_add_ps, _mm256_castpd_ps, _mm256_castps_pd, _mm256_cmp_ps,
        _mm256_loadu_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_permutevar8x32_ps,
        _mm256_setr_epi32, _mm256_storeu_ps, _mm256_unpackhi_pd, _mm256_unpackhi_ps,
        _mm256_unpacklo_pd, _mm256_unpacklo_ps,
    };
    prepare(t, z, ratio);
    let pick = |of: [usize; STATES], lane: usize| {
        let [a, b, c, d, e, f, g, h] = of.map(|i| (i + lane) as i32);
        _mm256_setr_epi32(a, b, c, d, e, f, g, h)
    };
    // The costs of channels 0 to 3 come to lie in lower halves, those of 4 to 7 in upper ones.
    let from_low = [pick(FROM_LOW, 0), pick(FROM_LOW, 4)];
    let from_high = [pick(FROM_HIGH, 0), pick(FROM_HIGH, 4)];
    let low_states = pick([0, 0, 1, 1, 2, 2, 3, 3], 0);
    let high_states = pick([4, 4, 5, 5, 6, 6, 7, 7], 0);
    // SAFETY: eight floats are read from an array of eight.
    let mut metric = unsafe { _mm256_loadu_ps(BEGIN.as_ptr()) };
    for (costs, origins) in t.costs.iter().zip(t.origins.chunks_mut(WIDE)) {
        // SAFETY: as above, four times.
        let [a, b, c, d] = unsafe {
            [
                _mm256_loadu_ps(costs[0].as_ptr()),
                _mm256_loadu_ps(costs[1].as_ptr()),
                _mm256_loadu_ps(costs[2].as_ptr()),
                _mm256_loadu_ps(costs[3].as_ptr()),
            ]
        };
        // From a subset a register to a channel a half register.
        let pairs = |a, b| {
            (
                _mm256_castps_pd(_mm256_unpacklo_ps(a, b)),
                _mm256_castps_pd(_mm256_unpackhi_ps(a, b)),
            )
        };
        let ((ab0, ab1), (cd0, cd1)) = (pairs(a, b), pairs(c, d));
        let quads = [
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab0, cd0)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab0, cd0)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab1, cd1)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab1, cd1)),
        ];
        // A whole group has a length that the compiler knows, and needs no loop.
        let mut column = |i: usize| {
            let costs = quads[i % 4];
            let low = _mm256_add_ps(
                _mm256_permutevar8x32_ps(metric, low_states),
                _mm256_permutevar8x32_ps(costs, from_low[i / 4]),
            );
            let high = _mm256_add_ps(
                _mm256_permutevar8x32_ps(metric, high_states),
                _mm256_permutevar8x32_ps(costs, from_high[i / 4]),
            );
            metric = _mm256_min_ps(high, low);
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(high, low)) as u8
        };
        if let Ok(whole) = <&mut [u8; WIDE]>::try_from(&mut *origins) {
            for (i, origins) in whole.iter_mut().enumerate() {
                *origins = column(i);
            }
        } else {
            for (i, origins) in origins.iter_mut().enumerate() {
                *origins = column(i);
            }
        }
    }
    let mut out = [0.0; STATES];
    // SAFETY: eight floats are written to an array of eight.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), metric) };
    out
}

impl Trellis {
    /// Codes for `z`, steps from the mean by channel, NaN for an outlier; `ratio` is the step over
    /// the spread. Appends one `(state, code)` for each.
    pub(super) fn quantise(&mut self, z: &[f32], ratio: &[f32], out: &mut Vec<(u8, i32)>) {
        #[cfg(target_arch = "x86_64")]
        let metric = if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, it was asked for.
            unsafe { run_avx2(self, z, ratio) }
        } else {
            run(self, z, ratio)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let metric = run(self, z, ratio);
        let best = |best: usize, n: usize| if metric[n] < metric[best] { n } else { best };
        let mut state = (1..STATES).fold(0, best);
        let start = out.len();
        out.resize(start + z.len(), (0, 0));
        for (c, slot) in out[start..].iter_mut().enumerate().rev() {
            let other = usize::from(self.origins[c] >> state & 1);
            let subset = if other == 1 {
                FROM_HIGH[state]
            } else {
                FROM_LOW[state]
            };
            state = state / 2 + 4 * other;
            *slot = (state as u8, self.codes[c / WIDE][subset][c % WIDE]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn both_ways_to_run_are_one() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        let z: Vec<f32> = (0..3000)
            .map(|i| ((i * 7919) % 1001) as f32 / 90.0 - 5.5)
            .collect();
        let ratio: Vec<f32> = (0..3000).map(|i| (i % 9) as f32 * 0.2).collect();
        let (mut a, mut b) = (Trellis::default(), Trellis::default());
        let plain = run(&mut a, &z, &ratio);
        // SAFETY: the processor has AVX2, it was asked for.
        let wide = unsafe { run_avx2(&mut b, &z, &ratio) };
        assert_eq!((plain, &a.origins), (wide, &b.origins));
    }

    #[test]
    fn the_way_found_is_one_the_decoder_can_go() {
        let mut x = 1u32;
        let mut noise = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) as f32 / (1 << 24) as f32 * 12.0 - 6.0
        };
        let mut z: Vec<f32> = (0..1000).map(|_| noise()).collect();
        z[17] = f32::NAN;
        let mut out = Vec::new();
        Trellis::default().quantise(&z, &[0.2; 1000], &mut out);
        let (mut state, mut square) = (0, 0.0);
        for (z, &(s, k)) in z.iter().zip(&out) {
            assert_eq!(usize::from(s), state);
            if z.is_nan() {
                assert_eq!(k, 0);
            } else {
                let e = z - point(state, k) as f32;
                assert!(e.abs() <= 2.0, "{z} became {}", point(state, k));
                square += e * e;
            }
            state = next(state, k);
        }
        // A quantiser of two steps has a third; one of one step a twelfth.
        assert!(square / 1000.0 < 0.27, "{square}");
    }
}
