//! When nothing fits: which limit is in the way, and the nearest change that would help.

use super::problem::{Choice, Outcome, Problem};
use super::search::{before, each, longest_context, rank};

/// A limit that could be another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `--edge-memory`
    EdgeMemory,
    /// `--cloud-memory`
    CloudMemory,
    /// `--deadline`
    Deadline,
    /// `--max-kl`
    MaxKl,
    /// `--context`
    Context,
    /// `--uplink`, or the radio that stands for it
    Uplink,
}

impl Limit {
    /// The flag.
    pub fn flag(self) -> &'static str {
        match self {
            Self::EdgeMemory => "--edge-memory",
            Self::CloudMemory => "--cloud-memory",
            Self::Deadline => "--deadline",
            Self::MaxKl => "--max-kl",
            Self::Context => "--context",
            Self::Uplink => "--uplink",
        }
    }
}

/// A change of one limit after which something fits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub limit: Limit,
    /// What it is.
    pub given: f64,
    /// What it must be: bytes, milliseconds, nats, positions, bits per second.
    pub needed: f64,
    /// What fits then.
    pub choice: Choice,
}

impl Change {
    /// How far it is: the larger value by the smaller one.
    pub fn factor(&self) -> f64 {
        (self.needed / self.given).max(self.given / self.needed)
    }

    /// As it would be typed.
    pub fn typed(&self) -> String {
        format!("{} {}", self.limit.flag(), self.value(self.needed))
    }

    /// `v` in the unit of the limit; rounded so that it is enough.
    pub fn value(&self, v: f64) -> String {
        match self.limit {
            Limit::EdgeMemory | Limit::CloudMemory => {
                let mib = (v / 1_048_576.0).ceil();
                format!("{mib}MiB")
            }
            Limit::Deadline => format!("{}ms", (v * 10.0).ceil() / 10.0),
            Limit::MaxKl => {
                // Two significant digits, upwards.
                let digits = (1.0 - v.max(1e-12).log10().floor()).clamp(0.0, 12.0);
                let scale = 10_f64.powf(digits);
                format!("{}", (v * scale).ceil() / scale)
            }
            Limit::Context => format!("{}", v.floor()),
            Limit::Uplink => format!("{}kbit/s", (v / 1e3).ceil()),
        }
    }
}

/// Why nothing fits.
#[derive(Clone, Debug, PartialEq)]
pub struct Infeasible {
    /// Single changes that would help, nearest first; empty when several limits must change.
    pub changes: Vec<Change>,
    /// Where no single change helps: what the choice that is nearest to the limits needs.
    pub together: Vec<Change>,
}

impl Infeasible {
    /// In words.
    pub fn said(&self, p: &Problem) -> String {
        let what = |c: &Choice| {
            let (cut, [edge, cloud], codec) = p.parts(c);
            format!(
                "split {}, {} and {} bits, codec {}, context {}",
                cut.split, edge.bits, cloud.bits, codec.choice.spec, c.context
            )
        };
        if let Some(nearest) = self.changes.first() {
            let others: Vec<String> = self.changes[1..].iter().map(Change::typed).collect();
            let others = if others.is_empty() {
                String::new()
            } else {
                format!("; instead of it also {}", others.join(", or "))
            };
            return format!(
                "nothing fits: {} is in the way. With {} (now {}) it would: {}{others}",
                nearest.limit.flag(),
                nearest.typed(),
                nearest.value(nearest.given),
                what(&nearest.choice),
            );
        }
        let all: Vec<String> = self.together.iter().map(Change::typed).collect();
        match self.together.first() {
            Some(first) => format!(
                "nothing fits, and no single change helps. Nearest is {}: it needs {}",
                what(&first.choice),
                all.join(" and ")
            ),
            None => "nothing fits: the model offers no cut".to_owned(),
        }
    }
}

/// The limits that `o` exceeds, with what it needs.
fn exceeded(p: &Problem, c: &Choice, o: &Outcome) -> Vec<Change> {
    let l = &p.limits;
    let mut over = Vec::new();
    let mut check = |limit, given: f64, needed: f64| {
        if needed > given {
            over.push(Change {
                limit,
                given,
                needed,
                choice: *c,
            });
        }
    };
    check(Limit::EdgeMemory, l.edge_bytes as f64, o.resident[0] as f64);
    check(
        Limit::CloudMemory,
        l.cloud_bytes as f64,
        o.resident[1] as f64,
    );
    check(
        Limit::Deadline,
        l.deadline_ms.unwrap_or(f64::INFINITY),
        o.token_ms,
    );
    check(Limit::MaxKl, l.max_kl.unwrap_or(f64::INFINITY), o.kl);
    over
}

/// The faster uplink with which `c` keeps the deadline, if there is one.
fn uplink(p: &Problem, c: &Choice, o: &Outcome) -> Option<Change> {
    let sending = p.link.send_ms(o.bytes);
    let rest = o.edge_ms + o.codec_ms + o.link_ms + o.cloud_ms - sending;
    let left = p.limits.deadline_ms? - rest;
    let server = o.server_ms * p.edges as f64;
    let given = p.link.uplink_bits_per_s;
    (left > 0.0 && server <= p.limits.deadline_ms?).then(|| Change {
        limit: Limit::Uplink,
        given,
        needed: given * sending / left,
        choice: *c,
    })
}

/// Looks for the nearest changes; called when no choice is within the limits.
pub fn why(p: &Problem) -> Infeasible {
    let mut changes: Vec<Change> = Vec::new();
    let mut together: Option<(f64, Vec<Change>)> = None;
    // Among equals the one that would be the best plan.
    let better = |new: &Change, old: &Change| {
        let rank = |c: &Change| rank(p, &c.choice, &p.outcome(&c.choice));
        new.factor() < old.factor()
            || (new.factor() == old.factor() && before(&rank(new), &rank(old)))
    };
    let mut add = |change: Change| match changes.iter_mut().find(|c| c.limit == change.limit) {
        Some(c) if better(&change, c) => *c = change,
        Some(_) => {}
        None => changes.push(change),
    };
    each(p, |choice| {
        let o = p.outcome(&choice);
        let over = exceeded(p, &choice, &o);
        if let [only] = over.as_slice() {
            add(*only);
            if only.limit == Limit::Deadline
                && let Some(change) = uplink(p, &choice, &o)
            {
                add(change);
            }
        }
        if let Some(context) = longest_context(p, &choice) {
            add(Change {
                limit: Limit::Context,
                given: choice.context as f64,
                needed: context as f64,
                choice: Choice { context, ..choice },
            });
        }
        let distance: f64 = over.iter().map(|c| c.factor().ln()).sum();
        if together.as_ref().is_none_or(|(d, _)| distance < *d) {
            together = Some((distance, over));
        }
    });
    changes.sort_by(|a, b| a.factor().total_cmp(&b.factor()));
    Infeasible {
        together: match together {
            Some((_, over)) if changes.is_empty() => over,
            _ => Vec::new(),
        },
        changes,
    }
}
