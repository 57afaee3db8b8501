//! Two models on the same questions: how sure is it that one is better?

use serde::Serialize;

use super::{Pick, Question};

/// The difference of two models' shares of right answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The other model, or the file of its results.
    pub other: String,
    /// By summed log-probability.
    #[serde(flatten)]
    pub sum: PairedCounts,
    /// By log-probability per byte.
    pub norm: PairedCounts,
    /// Questions where both take the same choice (by summed log-probability).
    pub same_answer: usize,
}

/// Who was right where, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedCounts {
    /// The other's share of right answers.
    pub accuracy_other: f64,
    /// This model's share less the other's.
    pub difference: f64,
    /// Lower end of its interval of 95 %.
    pub difference_low: f64,
    /// Upper end.
    pub difference_high: f64,
    /// Questions that both answer rightly.
    pub both: usize,
    /// Questions that only this model answers rightly.
    pub only_this: usize,
    /// Questions that only the other answers rightly.
    pub only_other: usize,
    /// Questions that neither answers rightly.
    pub neither: usize,
    /// McNemar's exact test: how likely it is that a difference at least as large comes by chance
    /// where there is none.
    pub mcnemar_exact_p: f64,
    /// The same with half the weight on what was observed (mid-p), which is less cautious
    /// (Fagerland, Lydersen, Laake 2013).
    pub mcnemar_mid_p: f64,
}

/// The 97.5th percentile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

impl PairedCounts {
    /// From whether this and the other model are right, question by question.
    pub fn of(outcomes: impl Iterator<Item = (bool, bool)>) -> Self {
        let mut count = [[0_usize; 2]; 2];
        for (this, other) in outcomes {
            count[usize::from(this)][usize::from(other)] += 1;
        }
        let [[neither, only_other], [only_this, both]] = count;
        let n = (neither + only_other + only_this + both).max(1) as f64;
        // Bonett and Price 2012: a question is added to each of the two cells that differ, so that
        // the interval has a width where they are empty.
        let (a, b) = (
            (only_this + 1) as f64 / (n + 2.0),
            (only_other + 1) as f64 / (n + 2.0),
        );
        let half = Z * ((a + b - (a - b) * (a - b)) / (n + 2.0)).sqrt();
        let (exact, mid) = mcnemar(only_this, only_other);
        Self {
            accuracy_other: (both + only_other) as f64 / n,
            difference: (only_this as f64 - only_other as f64) / n,
            difference_low: (a - b - half).max(-1.0),
            difference_high: (a - b + half).min(1.0),
            both,
            only_this,
            only_other,
            neither,
            mcnemar_exact_p: exact,
            mcnemar_mid_p: mid,
        }
    }
}

/// Two-sided exact and mid-p values: of `b + c` questions answered differently, each is one or the
/// other with the same probability.
fn mcnemar(b: usize, c: usize) -> (f64, f64) {
    let (n, least) = (b + c, b.min(c));
    let ln_half = n as f64 * std::f64::consts::LN_2;
    let ln_choose = |k: usize| {
        let ln = |x: usize| libm::lgamma(x as f64 + 1.0);
        ln(n) - ln(k) - ln(n - k)
    };
    let point = |k: usize| libm::exp(ln_choose(k) - ln_half);
    let tail: f64 = (0..=least).map(point).sum();
    let exact = (2.0 * tail).min(1.0);
    (exact, (2.0 * tail - point(least)).clamp(0.0, 1.0))
}

impl Paired {
    /// This model's picks against the `other`'s, both of `questions`.
    pub fn of(other_name: &str, this: &[Pick], other: &[Pick], questions: &[Question]) -> Self {
        let counts = |f: fn(&Pick) -> usize| {
            let each = this.iter().zip(other).zip(questions);
            PairedCounts::of(each.map(|((a, b), q)| (f(a) == q.gold, f(b) == q.gold)))
        };
        Self {
            other: other_name.to_owned(),
            sum: counts(|p| p.sum),
            norm: counts(|p| p.per_byte),
            same_answer: (this.iter().zip(other))
                .filter(|(a, b)| a.sum == b.sum)
                .count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(both: usize, this: usize, other: usize, neither: usize) -> PairedCounts {
        let repeat = |v, n| std::iter::repeat_n(v, n);
        PairedCounts::of(
            repeat((true, true), both)
                .chain(repeat((true, false), this))
                .chain(repeat((false, true), other))
                .chain(repeat((false, false), neither)),
        )
    }

    #[test]
    fn figures_of_the_literature() {
        // Fagerland, Lydersen, Laake 2013, table 1 (AHR before and after stem cell
        // transplantation): 1 and 7 of 21 differ; exact p 0.0703, mid-p 0.0391.
        let c = counts(1, 1, 7, 12);
        assert!((c.mcnemar_exact_p - 0.0703).abs() < 1e-4, "{c:?}");
        assert!((c.mcnemar_mid_p - 0.0391).abs() < 1e-4, "{c:?}");
        assert!((c.difference + 6.0 / 21.0).abs() < 1e-12);
        // The interval by hand: p₁ = 2/23, p₂ = 8/23, −0.2609 ± 1.96 · 0.1264.
        assert!((c.difference_low + 0.508_6).abs() < 1e-3, "{c:?}");
        assert!((c.difference_high + 0.013_1).abs() < 1e-3, "{c:?}");
        assert_eq!((c.accuracy_other * 21.0).round(), 8.0);
    }

    #[test]
    fn no_difference_is_no_proof_of_none() {
        let c = counts(5, 0, 0, 5);
        assert_eq!((c.mcnemar_exact_p, c.difference), (1.0, 0.0));
        assert!(c.difference_low < -0.05 && c.difference_high > 0.05);
        let c = counts(0, 10, 0, 0);
        assert!((c.mcnemar_exact_p - 2.0 / 1024.0).abs() < 1e-9);
        assert!((c.mcnemar_mid_p - 1.0 / 1024.0).abs() < 1e-9);
        let c = counts(100_000, 40_000, 40_200, 100_000);
        assert!((0.4..0.6).contains(&c.mcnemar_exact_p), "{c:?}");
        assert!((counts(1, 3, 3, 1).mcnemar_exact_p - 1.0).abs() < 1e-12);
    }
}
