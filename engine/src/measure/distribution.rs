//! Next-token distributions and the distance between two.

/// Log-probabilities of `logits`, in f64.
pub fn log_softmax(logits: &[f32], out: &mut Vec<f64>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l) - max)).sum();
    let shift = max + libm::log(sum);
    out.clear();
    out.extend(logits.iter().map(|l| f64::from(*l) - shift));
}

/// How a distribution differs from a reference one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Kullback–Leibler divergence D(reference ‖ other) in nats.
    pub kl: f64,
    /// Whether both have the same likeliest token.
    pub same_top: bool,
}

/// Compares two sets of log-probabilities.
pub fn compare(reference: &[f64], other: &[f64]) -> Comparison {
    let kl = reference
        .iter()
        .zip(other)
        .map(|(p, q)| libm::exp(*p) * (p - q))
        .sum::<f64>();
    let top = |lp: &[f64]| {
        lp.iter()
            .enumerate()
            .fold((0, f64::NEG_INFINITY), |best, (i, v)| {
                if *v > best.1 { (i, *v) } else { best }
            })
            .0
    };
    // Rounding can take an equal pair a hair below zero.
    Comparison {
        kl: kl.max(0.0),
        same_top: top(reference) == top(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_are_at_zero_and_others_above() {
        let (mut p, mut q) = (Vec::new(), Vec::new());
        log_softmax(&[1.0, 2.0, 3.0], &mut p);
        assert!((p.iter().map(|v| v.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(
            compare(&p, &p),
            Comparison {
                kl: 0.0,
                same_top: true
            }
        );
        log_softmax(&[3.0, 2.0, 1.0], &mut q);
        let c = compare(&p, &q);
        // Σ p (p − q) of softmax(1,2,3) against its reverse.
        assert!((c.kl - 1.150_4).abs() < 1e-3, "{c:?}");
        assert!(!c.same_top);
    }
}
