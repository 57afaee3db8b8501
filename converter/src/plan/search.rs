//! Exact search: every combination of the discrete choices is looked at; the context, which is
//! none of them, follows in logarithmic time, because memory and time never fall as it grows.

use super::problem::{Choice, Objective, Outcome, Problem};

/// Calls `f` with every combination of cut, bits and codec, at the context asked for.
pub fn each(p: &Problem, mut f: impl FnMut(Choice)) {
    for (cut, offers) in p.cuts.iter().enumerate() {
        for edge in 0..offers.edge.len() {
            for cloud in 0..offers.cloud.len() {
                if offers.edge[edge].kv_type != offers.cloud[cloud].kv_type {
                    continue;
                }
                for codec in 0..offers.codecs.len() {
                    f(Choice {
                        cut,
                        edge,
                        cloud,
                        codec,
                        context: p.limits.context,
                    });
                }
            }
        }
    }
}

/// The longest context, up to what the model can use, with which `c` is within the limits;
/// `None` when it is not with one position.
pub fn longest_context(p: &Problem, c: &Choice) -> Option<u64> {
    let fits = |context| p.fits(&p.outcome(&Choice { context, ..*c }));
    let (mut good, mut bad) = (0, p.limits.longest + 1);
    if bad > 1 && fits(bad - 1) {
        return Some(bad - 1);
    }
    while bad - good > 1 {
        let middle = u64::midpoint(good, bad);
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    (good > 0).then_some(good)
}

/// What makes a choice better than another: the numbers are compared in this order, less is
/// better. What the objective leaves open goes to the faster, then the truer, then the smaller
/// one; among equals the first cut with the fewest bits wins.
pub fn rank(p: &Problem, c: &Choice, o: &Outcome) -> [f64; 5] {
    let [edge, _] = p.file_bytes(c);
    let tail = edge as f64;
    match p.objective {
        Objective::Context => [-(c.context as f64), o.token_ms, o.kl, o.bytes, tail],
        Objective::Speed => [o.token_ms, o.kl, o.bytes, tail, 0.0],
        Objective::Quality => [o.kl, o.token_ms, o.bytes, tail, 0.0],
        Objective::ServerLoad => [o.server_ms, o.token_ms, o.kl, o.bytes, tail],
    }
}

/// Whether rank `a` comes before rank `b`.
pub fn before(a: &[f64; 5], b: &[f64; 5]) -> bool {
    for (a, b) in a.iter().zip(b) {
        if a != b {
            return a < b;
        }
    }
    false
}

/// A choice within the limits, and the longest context it could have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The choice.
    pub choice: Choice,
    /// What it needs and costs.
    pub outcome: Outcome,
    /// Positions with which it would still be within the limits.
    pub longest: u64,
}

/// Every combination that is within the limits with the context asked for. Where the longest
/// context is what counts, each has its longest.
pub fn candidates(p: &Problem) -> Vec<Candidate> {
    let mut found = Vec::new();
    each(p, |choice| {
        if !p.fits(&p.outcome(&choice)) {
            return;
        }
        let Some(longest) = longest_context(p, &choice) else {
            return;
        };
        let context = match p.objective {
            Objective::Context => longest.max(choice.context),
            _ => choice.context,
        };
        let choice = Choice { context, ..choice };
        found.push(Candidate {
            choice,
            outcome: p.outcome(&choice),
            longest: longest.max(context),
        });
    });
    found
}

/// The best of `candidates`.
pub fn best<'a>(p: &Problem, candidates: &'a [Candidate]) -> Option<&'a Candidate> {
    let mut best: Option<(&Candidate, [f64; 5])> = None;
    for c in candidates {
        let rank = rank(p, &c.choice, &c.outcome);
        if best.as_ref().is_none_or(|(_, b)| before(&rank, b)) {
            best = Some((c, rank));
        }
    }
    best.map(|(c, _)| c)
}

/// The candidates that no other is at least as good as in context, time, divergence, bytes and
/// server time, and better in one; in order of time. At most `most`: those nearest to `best`, and
/// the best in each of the five.
pub fn pareto(candidates: &[Candidate], best: &Candidate, most: usize) -> Vec<Candidate> {
    let axes = |c: &Candidate| {
        let o = &c.outcome;
        [o.token_ms, -(c.longest as f64), o.kl, o.bytes, o.server_ms]
    };
    let mut sorted: Vec<(&Candidate, [f64; 5])> = candidates.iter().map(|c| (c, axes(c))).collect();
    // Nothing further down can beat what is above it.
    sorted.sort_by(|(_, a), (_, b)| {
        let order = a.iter().zip(b).map(|(a, b)| a.total_cmp(b));
        order.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    let mut front: Vec<(&Candidate, [f64; 5])> = Vec::new();
    for (c, a) in sorted {
        // The latest are the likeliest to beat it.
        let beaten = front
            .iter()
            .rev()
            .any(|(_, b)| b.iter().zip(&a).all(|(b, a)| b <= a));
        if !beaten {
            front.push((c, a));
        }
    }
    if front.len() > most {
        thin(&mut front, &axes(best), most);
    }
    front.into_iter().map(|(c, _)| *c).collect()
}

/// Keeps the best in each axis, and of the others those nearest to `centre` in units of the
/// spread of each axis.
fn thin(front: &mut Vec<(&Candidate, [f64; 5])>, centre: &[f64; 5], most: usize) {
    let mut keep = vec![false; front.len()];
    let mut spread = [0.0_f64; 5];
    for (axis, spread) in spread.iter_mut().enumerate() {
        let value = |i: &usize| front[*i].1[axis];
        let least = (0..front.len()).min_by(|a, b| value(a).total_cmp(&value(b)));
        let largest = front.iter().map(|(_, a)| a[axis]).fold(f64::MIN, f64::max);
        if let Some(i) = least {
            keep[i] = true;
            *spread = largest - value(&i);
        }
    }
    let distance = |a: &[f64; 5]| -> f64 {
        let axes = a.iter().zip(centre).zip(&spread);
        axes.filter(|(_, s)| **s > 0.0)
            .map(|((a, c), s)| ((a - c) / s).powi(2))
            .sum()
    };
    let mut order: Vec<usize> = (0..front.len()).filter(|i| !keep[*i]).collect();
    order.sort_by(|a, b| distance(&front[*a].1).total_cmp(&distance(&front[*b].1)));
    let kept = keep.iter().filter(|k| **k).count();
    for i in order.into_iter().take(most.saturating_sub(kept)) {
        keep[i] = true;
    }
    let mut keep = keep.into_iter();
    front.retain(|_| keep.next() == Some(true));
}
