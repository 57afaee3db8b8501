//! Logits to the next id.
//!
//! Names, defaults and the order of the stages are llama.cpp's. The randomness is a function of
//! seed and position alone, so a generation that moves to another server goes on as it would have.

use std::cmp::Ordering;

use rand_core::Rng as _;
use rand_pcg::Pcg64;

/// How to pick a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 or less takes the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the likeliest until their probabilities sum to this; 1 or more keeps all.
    pub top_p: f32,
    /// Keep what has at least this fraction of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of recent tokens; 1 changes none.
    pub repeat_penalty: f32,
    /// How many tokens are recent; 0 none, negative all that are given.
    pub repeat_last_n: i32,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

/// Picks tokens. Holds no state: equal arguments give equal tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
}

#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    /// Never NaN.
    logit: f32,
}

/// Likelier first, then the lower id.
fn order(a: Candidate, b: Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// NaN counts as impossible; the sum makes −0 equal 0.
fn clean(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::NEG_INFINITY
    } else {
        logit + 0.0
    }
}

impl Sampler {
    /// With these parameters; NaN ones are taken as off.
    pub fn new(params: SamplingParams) -> Self {
        Self { params }
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The tokens among `recent` that the repeat penalty looks at: none unless it is on.
    pub fn penalised<'r>(&self, recent: &'r [u32]) -> &'r [u32] {
        let p = &self.params;
        if p.repeat_penalty == 1.0 || !p.repeat_penalty.is_finite() || p.repeat_penalty <= 0.0 {
            return &[];
        }
        match usize::try_from(p.repeat_last_n) {
            Ok(n) => recent
                .get(recent.len().saturating_sub(n)..)
                .unwrap_or_default(),
            Err(_) => recent,
        }
    }

    /// Whether the token is the likeliest one, whatever came before but `recent`.
    pub fn is_argmax(&self, recent: &[u32]) -> bool {
        let t = self.params.temperature;
        (t.is_nan() || t <= 0.0) && self.penalised(recent).is_empty()
    }

    /// The token at `position` of the sequence. `logits` has one entry per token of the
    /// vocabulary, `recent` are the tokens so far, oldest first. Without any logits it is 0.
    pub fn sample(&self, logits: &[f32], position: u64, recent: &[u32]) -> u32 {
        let p = &self.params;
        let penalised = self.penalised(recent);
        let greedy = p.temperature.is_nan() || p.temperature <= 0.0;
        if self.is_argmax(recent) {
            return argmax(logits);
        }
        let mut all: Vec<Candidate> = logits
            .iter()
            .enumerate()
            .map(|(id, l)| Candidate {
                id: id as u32,
                logit: clean(*l),
            })
            .collect();
        let mut seen: Vec<u32> = penalised.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            if let Some(c) = all.get_mut(id as usize) {
                c.logit = clean(if c.logit <= 0.0 {
                    c.logit * p.repeat_penalty
                } else {
                    c.logit / p.repeat_penalty
                });
            }
        }
        if greedy {
            return all
                .iter()
                .min_by(|a, b| order(**a, **b))
                .map_or(0, |c| c.id);
        }
        let k = usize::try_from(p.top_k).unwrap_or(0);
        if k > 0 && k < all.len() {
            all.select_nth_unstable_by(k - 1, |a, b| order(*a, *b));
            all.truncate(k);
        }
        all.sort_unstable_by(|a, b| order(*a, *b));
        if p.top_p < 1.0 {
            let weights = weights(&all, 1.0);
            let wanted = f64::from(p.top_p) * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let keep = weights.iter().position(|w| {
                sum += w;
                sum >= wanted
            });
            all.truncate(keep.map_or(all.len(), |i| i + 1));
        }
        if p.min_p > 0.0 {
            let weights = weights(&all, 1.0);
            // sorted, and the first weighs 1
            let keep = weights.partition_point(|w| *w >= f64::from(p.min_p));
            all.truncate(keep.max(1));
        }
        draw(&all, f64::from(p.temperature), uniform(p.seed, position))
    }
}

/// Weights relative to the first, likeliest candidate.
fn weights(sorted: &[Candidate], temperature: f64) -> Vec<f64> {
    let max = sorted.first().map_or(0.0, |c| c.logit);
    sorted
        .iter()
        .map(|c| {
            if c.logit == max {
                1.0 // also where both are infinite
            } else {
                libm::exp((f64::from(c.logit) - f64::from(max)) / temperature)
            }
        })
        .collect()
}

/// The candidate in whose stretch of [0, 1) `u` falls.
fn draw(sorted: &[Candidate], temperature: f64, u: f64) -> u32 {
    let weights = weights(sorted, temperature);
    let wanted = u * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let hit = sorted.iter().zip(&weights).find(|(_, w)| {
        sum += **w;
        sum > wanted
    });
    hit.map(|(c, _)| c.id)
        .or(sorted.first().map(|c| c.id))
        .unwrap_or(0)
}

/// The `position`-th number of the seed's sequence, in [0, 1). The generator jumps there in
/// O(log position).
fn uniform(seed: u64, position: u64) -> f64 {
    let mut rng = Pcg64::new(
        u128::from(seed),
        0xa02b_dbf7_bb3c_0a7a_c28f_a16a_64ab_f96c_u128,
    );
    rng.advance(u128::from(position));
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// The likeliest id, the lowest among equals; NaN counts as impossible, and without logits it
/// is 0.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, l) in logits.iter().enumerate() {
        if *l > best.1 {
            best = (id as u32, *l);
        }
    }
    best.0
}

/// The `k` likeliest ids with the natural logarithms of their probabilities (softmax in f64),
/// likeliest first, the lower id among equals. NaN logits count as impossible.
pub fn top_logprobs(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(id, l)| Candidate {
            id: id as u32,
            logit: clean(*l),
        })
        .collect();
    let k = k.min(all.len());
    if k == 0 {
        return Vec::new();
    }
    // before anything moves: the sum runs in the order of ids
    let max = all
        .iter()
        .map(|c| c.logit)
        .fold(f32::NEG_INFINITY, f32::max);
    let shifted = |l: f32| {
        if l == max {
            0.0
        } else {
            f64::from(l) - f64::from(max)
        }
    };
    let log_sum = libm::log(all.iter().map(|c| libm::exp(shifted(c.logit))).sum::<f64>());
    if k < all.len() {
        all.select_nth_unstable_by(k - 1, |a, b| order(*a, *b));
        all.truncate(k);
    }
    all.sort_unstable_by(|a, b| order(*a, *b));
    all.iter()
        .map(|c| (c.id, (shifted(c.logit) - log_sum) as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..SamplingParams::default()
        }
    }

    /// How often each of `n` ids comes over 20 000 positions.
    fn shares(params: SamplingParams, logits: &[f32], recent: &[u32]) -> Vec<f64> {
        let sampler = Sampler::new(params);
        let mut counts = vec![0.0; logits.len()];
        for position in 0..20_000 {
            counts[sampler.sample(logits, position, recent) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn shares_follow_the_probabilities() {
        let logits = [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln);
        for seed in [0, 1, 12345] {
            let s = shares(SamplingParams { seed, ..off() }, &logits, &[]);
            for (got, want) in s.iter().zip([0.1, 0.2, 0.3, 0.4]) {
                assert!((got - want).abs() < 0.015, "{s:?}");
            }
        }
        let s = shares(
            SamplingParams {
                temperature: 0.5,
                ..off()
            },
            &logits,
            &[],
        );
        assert!((s[3] - 0.16 / 0.30).abs() < 0.015, "{s:?}");
    }

    #[test]
    fn each_stage_cuts() {
        let logits = [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln);
        let kept = |p| {
            let s = shares(p, &logits, &[]);
            (0..4).filter(|i| s[*i] > 0.0).collect::<Vec<_>>()
        };
        assert_eq!(kept(SamplingParams { top_k: 2, ..off() }), [2, 3]);
        assert_eq!(
            kept(SamplingParams {
                top_p: 0.65,
                ..off()
            }),
            [2, 3]
        );
        assert_eq!(
            kept(SamplingParams {
                top_p: 0.75,
                ..off()
            }),
            [1, 2, 3]
        );
        assert_eq!(
            kept(SamplingParams {
                min_p: 0.6,
                ..off()
            }),
            [2, 3]
        );
        assert_eq!(
            kept(SamplingParams {
                min_p: 2.0,
                top_p: 0.0,
                ..off()
            }),
            [3]
        );
    }

    #[test]
    fn the_penalty_looks_back() {
        let p = SamplingParams {
            temperature: 0.0,
            repeat_penalty: 2.0,
            repeat_last_n: 2,
            ..off()
        };
        let s = Sampler::new(p);
        assert_eq!(s.sample(&[3.0, 2.0, -1.0], 0, &[]), 0);
        assert_eq!(s.sample(&[3.0, 2.0, -1.0], 0, &[0]), 1);
        assert_eq!(s.sample(&[3.0, 2.0, -1.0], 0, &[0, 2, 2]), 0);
        assert_eq!(s.sample(&[3.0, 2.0, -1.0], 0, &[99, 0]), 1);
        // once per token, not once per occurrence; negative logits fall too
        assert_eq!(s.sample(&[-3.0, -5.0], 0, &[0, 0]), 1);
        assert_eq!(s.sample(&[-3.0, -6.5], 0, &[0, 0]), 0);
    }

    #[test]
    fn equal_seed_and_position_give_equal_tokens() {
        let logits: Vec<f32> = (0..1000_u16).map(|i| (f32::from(i) * 0.37).sin()).collect();
        let run = |seed| -> Vec<u32> {
            let s = Sampler::new(SamplingParams { seed, ..off() });
            (0..50).map(|p| s.sample(&logits, p, &[])).collect()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let s = Sampler::new(SamplingParams { seed: 7, ..off() });
        assert_eq!(s.sample(&logits, 31, &[]), run(7)[31]);
        let mut distinct = run(7);
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 40, "{}", distinct.len());
    }

    #[test]
    fn strange_logits() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for params in [
            SamplingParams::default(),
            off(),
            SamplingParams {
                temperature: nan,
                top_p: nan,
                min_p: nan,
                repeat_penalty: nan,
                top_k: -1,
                ..off()
            },
        ] {
            let s = Sampler::new(params);
            assert_eq!(s.sample(&[], 0, &[1]), 0);
            assert_eq!(s.sample(&[nan, 1.0, nan], 3, &[0]), 1);
            assert_eq!(s.sample(&[0.0, inf, -inf], 3, &[]), 1);
            assert!(s.sample(&[nan, nan], 3, &[]) < 2);
            assert!(s.sample(&[-inf, -inf], u64::MAX, &[]) < 2);
        }
        assert_eq!(argmax(&[nan, -1.0, 2.0, 2.0]), 2);
        assert_eq!(top_logprobs(&[nan, 1.0], 5)[0], (1, 0.0));
        assert!(top_logprobs(&[], 5).is_empty());
        assert!(top_logprobs(&[1.0], 0).is_empty());
    }

    #[test]
    fn logprobs() {
        let logits = [0.2_f32, 0.1, 0.4, 0.2, 0.1].map(|p| p.ln() + 100.0);
        let top = top_logprobs(&logits, 3);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 0, 3]);
        for ((_, lp), p) in top.iter().zip([0.4_f32, 0.2, 0.2]) {
            assert!((lp - p.ln()).abs() < 1e-5, "{lp}");
        }
    }
}
