//! When nothing fits: which limit is in the way, and the nearest change that would help.

use super::flags;
use super::link::{Link, Radio};
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
    /// `--uplink`
    Uplink,
    /// `--radio-bandwidth`, where a radio stands for the uplink
    Bandwidth,
    /// `--snr`, likewise
    Snr,
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
            Self::Bandwidth => "--radio-bandwidth",
            Self::Snr => "--snr",
        }
    }

    /// What the flag makes of `text`; `None` when it refuses it.
    pub fn read(self, text: &str) -> Option<f64> {
        match self {
            Self::EdgeMemory | Self::CloudMemory => flags::size(text).ok().map(|n| n as f64),
            Self::Deadline => flags::deadline(text).ok(),
            Self::MaxKl => flags::nats(text).ok(),
            Self::Context => text.parse::<u32>().ok().map(f64::from),
            Self::Uplink => flags::rate(text).ok(),
            Self::Bandwidth => flags::frequency(text).ok(),
            Self::Snr => flags::snr(text).ok(),
        }
    }

    /// `v` as a person would type it, rounded to the side on which it is enough; `None` when the
    /// flag takes nothing that is.
    pub fn enough(self, v: f64) -> Option<String> {
        if self == Self::Context {
            return Some(format!("{}", v.floor()));
        }
        // In steps of so much, and how a number of them is written.
        let digits = (1.0 - v.log10().floor()).clamp(0.0, 12.0);
        let steps = |k: f64| match self {
            Self::EdgeMemory | Self::CloudMemory => format!("{k}MiB"),
            Self::Deadline => format!("{}ms", k / 10.0),
            // Two significant digits.
            Self::MaxKl => format!("{}", k / 10_f64.powf(digits)),
            Self::Context => format!("{k}"),
            Self::Uplink => format!("{k}kbit/s"),
            Self::Bandwidth => format!("{k}kHz"),
            Self::Snr => format!("{}dB", k / 10.0),
        };
        let step = match self {
            Self::EdgeMemory | Self::CloudMemory => v / 1_048_576.0,
            Self::Deadline => v * 10.0,
            Self::MaxKl => v * 10_f64.powf(digits),
            Self::Context => v,
            Self::Uplink | Self::Bandwidth => v / 1e3,
            Self::Snr => v.log10() * 100.0,
        };
        // The division rounds, so that a step more may be needed.
        (0..3)
            .map(|more| steps(step.ceil() + f64::from(more)))
            .find(|text| self.read(text).is_some_and(|read| read >= v))
    }

    /// `v` as it is.
    fn exactly(self, v: f64) -> String {
        match self {
            Self::EdgeMemory | Self::CloudMemory if v % 1_048_576.0 == 0.0 => {
                format!("{}MiB", v / 1_048_576.0)
            }
            Self::EdgeMemory | Self::CloudMemory => format!("{v}B"),
            Self::Deadline => format!("{v}ms"),
            Self::MaxKl | Self::Context => format!("{v}"),
            Self::Uplink => format!("{}kbit/s", v / 1e3),
            Self::Bandwidth => format!("{}kHz", v / 1e3),
            Self::Snr => format!("{:.1}dB", 10.0 * v.log10()),
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
    /// What it must be: bytes, milliseconds, nats, positions, bits per second, hertz, a ratio.
    pub needed: f64,
    /// What fits then.
    pub choice: Choice,
}

impl Change {
    /// How far it is: the larger value by the smaller one.
    pub fn factor(&self) -> f64 {
        (self.needed / self.given).max(self.given / self.needed)
    }

    /// As it would be typed; `None` when the flag takes nothing that is enough.
    pub fn typed(&self) -> Option<String> {
        let value = self.limit.enough(self.needed)?;
        Some(format!("{} {value}", self.limit.flag()))
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
            let others: Vec<String> = typed(&self.changes[1..]);
            let others = if others.is_empty() {
                String::new()
            } else {
                format!("; instead of it also {}", others.join(", or "))
            };
            return format!(
                "nothing fits: {} is in the way. With {} (now {}) it would: {}{others}",
                nearest.limit.flag(),
                nearest.typed().unwrap_or_default(),
                nearest.limit.exactly(nearest.given),
                what(&nearest.choice),
            );
        }
        let all = typed(&self.together);
        match self.together.first() {
            Some(first) => format!(
                "nothing fits, and no single change helps. Nearest is {}: it needs {}",
                what(&first.choice),
                all.join(" and ")
            ),
            None if p.cuts.is_empty() => "nothing fits: the model offers no cut".to_owned(),
            None => "nothing fits, nor would it with anything that the flags take".to_owned(),
        }
    }
}

/// As they would be typed.
pub fn typed(changes: &[Change]) -> Vec<String> {
    changes.iter().filter_map(Change::typed).collect()
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

/// The faster links with which `c` keeps the deadline: a larger rate, or what makes a radio faster.
fn faster(p: &Problem, c: &Choice, o: &Outcome) -> Vec<Change> {
    let Some(deadline) = p.limits.deadline_ms else {
        return Vec::new();
    };
    let sending = p.link.send_ms(o.bytes);
    let rest = o.edge_ms + o.codec_ms + o.link_ms + o.cloud_ms - sending;
    let left = deadline - rest;
    let server = o.server_ms * p.edges as f64;
    if left <= 0.0 || server > deadline {
        return Vec::new();
    }
    let rate = p.link.uplink_bits_per_s * sending / left;
    let change = |limit, given, needed| Change {
        limit,
        given,
        needed,
        choice: *c,
    };
    let Some(radio) = p.link.radio else {
        let found = change(Limit::Uplink, p.link.uplink_bits_per_s, rate);
        let link = |uplink_bits_per_s| Link {
            uplink_bits_per_s,
            ..p.link
        };
        return settled(p, found, link).into_iter().collect();
    };
    let bandwidth = radio.bandwidth_hz * rate / p.link.uplink_bits_per_s;
    let wider = change(Limit::Bandwidth, radio.bandwidth_hz, bandwidth);
    let louder = change(Limit::Snr, radio.snr, radio.snr_for(rate));
    let wide = |bandwidth_hz| {
        p.link.with_radio(Radio {
            bandwidth_hz,
            ..radio
        })
    };
    let loud = |snr| p.link.with_radio(Radio { snr, ..radio });
    let found = [settled(p, wider, wide), settled(p, louder, loud)];
    found.into_iter().flatten().collect()
}

/// `change`, a hair larger where rounding has left the deadline just out of reach of `link`.
fn settled(p: &Problem, change: Change, link: impl Fn(f64) -> Link) -> Option<Change> {
    let enough = |v: &f64| p.fits(&p.outcome_over(&change.choice, &link(*v)));
    let hairs = (0..8).map(|i| change.needed * (1.0 + 1e-13 * f64::from(i * i)));
    let needed = hairs.into_iter().find(enough)?;
    Some(Change { needed, ..change })
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
    let mut add = |change: Change| {
        let known = changes.iter_mut().find(|c| c.limit == change.limit);
        match known {
            Some(c) if better(&change, c) && change.typed().is_some() => *c = change,
            None if change.typed().is_some() => changes.push(change),
            Some(_) | None => {}
        }
    };
    each(p, |choice| {
        let o = p.outcome(&choice);
        let over = exceeded(p, &choice, &o);
        if let [only] = over.as_slice() {
            add(*only);
            if only.limit == Limit::Deadline {
                faster(p, &choice, &o).into_iter().for_each(&mut add);
            }
        }
        if let Some(context) = longest_context(p, &choice)
            && context >= p.limits.least
        {
            add(Change {
                limit: Limit::Context,
                given: choice.context as f64,
                needed: context as f64,
                choice: Choice { context, ..choice },
            });
        }
        let distance: f64 = over.iter().map(|c| c.factor().ln()).sum();
        let nearer = together.as_ref().is_none_or(|(d, _)| distance < *d);
        if nearer && over.iter().all(|c| c.typed().is_some()) {
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
