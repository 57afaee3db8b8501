//! Codec `auto` on a live link: which step a frame gets, from what the link was seen to do.
//!
//! The ladder begins with the coarsest step that keeps to the bound, which calibration has found;
//! every further rung is finer by a factor of √2. So any choice keeps to the bound, and the
//! question is only what better rows may cost: two percent of a token's time. A decoded row says
//! how long it was away; from rows of different length follows what a byte costs. Everything here
//! is a function of the events it is told, so a trace of them gives the same choices again.

use std::collections::VecDeque;

use formats::wire::{Codec, CutStatistics, Tcq};
use serde::{Deserialize, Serialize};

/// Rungs of the ladder at most: the finest has an eighth of the coarsest's step.
const RUNGS: usize = 7;
/// Steps below this have no use: their error is below that of every other part of a half.
const FINEST: f32 = 0.02;
/// Share of a token's time that finer rows may cost.
const MAY_COST: f64 = 0.02;
/// The rung that is tried to learn what a byte costs.
const PROBE: usize = 4;
/// Every second one of so many first rows is a probe, then one of as many.
const LEARNING: u64 = 16;
/// Rows that the cost of a byte is taken from.
const KEPT: usize = 64;
/// Events kept for a trace.
const MOST_EVENTS: usize = 1 << 16;

/// What happened on a link, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A frame of so many rows is to be sent, which the front computed in this time; the rung it
    /// got, 0 the coarsest.
    Send {
        /// Rows.
        rows: u32,
        /// Microseconds of the front.
        edge_us: u32,
        /// The choice.
        rung: u8,
    },
    /// What it came to.
    Sent {
        /// Bytes of the frame.
        bytes: u32,
    },
    /// The token of a frame of one row has come.
    Answer {
        /// Microseconds since the frame was sent, those of the back not counted.
        wait_us: u32,
        /// Microseconds of the back.
        cloud_us: u32,
    },
}

/// How many frames travelled in one codec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// The codec.
    pub codec: String,
    /// Frames.
    pub frames: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is known of the link.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkReport {
    /// Round trip without the bytes' own time, milliseconds; absent before the first answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Throughput, kilobits a second; absent where a byte costs too little to be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplink_kbit_per_s: Option<f64>,
    /// What the frames travelled in, the coarsest first.
    pub choices: Vec<Chosen>,
}

/// A line through what rows of different length took.
#[derive(Clone, Copy, Debug)]
struct Fit {
    /// Microseconds at no bytes.
    base: f64,
    /// Microseconds a byte, and how uncertain that is.
    slope: f64,
    error: f64,
}

/// Chooses the codec of each frame.
#[derive(Clone, Debug)]
pub struct Controller {
    ladder: Vec<Codec>,
    width: usize,
    /// Bytes of a row at the lowest rung, as last seen.
    base_bytes: f64,
    /// Frame that is out: rows and rung, bytes once known.
    out: Option<(u32, usize, u32)>,
    /// One-row frames so far.
    decoded: u64,
    edge_us: f64,
    cloud_us: f64,
    seen: VecDeque<(f64, f64)>,
    chosen: Vec<Chosen>,
    events: Vec<Event>,
}

/// The median; `None` of nothing.
fn middle(values: &mut [f64]) -> Option<f64> {
    let half = values.len() / 2;
    (half < values.len()).then(|| *values.select_nth_unstable_by(half, f64::total_cmp).1)
}

/// A mean that follows.
fn follow(mean: &mut f64, new: f64) {
    *mean = if *mean == 0.0 {
        new
    } else {
        0.8 * *mean + 0.2 * new
    };
}

impl Controller {
    /// For rows of `width` under the codec asked for, `cut` being what the pair knows of them.
    /// Only `auto` on a pair whose calibration has measured steps has a choice.
    pub fn new(asked: &Codec, cut: Option<&CutStatistics>, width: usize) -> Self {
        let coarsest = asked.resolve(cut);
        let ladder = match (asked, coarsest) {
            (Codec::Auto { .. }, Codec::Tcq(Tcq { step })) => (0..RUNGS)
                .map(|i| step * 0.5f32.powf(i as f32 / 2.0))
                .enumerate()
                .filter(|(i, step)| *i == 0 || *step >= FINEST)
                .map(|(_, step)| Codec::Tcq(Tcq { step }))
                .collect(),
            _ => vec![coarsest],
        };
        Self::with_ladder(ladder, width)
    }

    /// One codec and no choice.
    pub fn fixed(codec: Codec, width: usize) -> Self {
        Self::with_ladder(vec![codec], width)
    }

    fn with_ladder(ladder: Vec<Codec>, width: usize) -> Self {
        let none = |codec: &Codec| Chosen {
            codec: codec.to_string(),
            frames: 0,
            rows: 0,
            bytes: 0,
        };
        Self {
            chosen: ladder.iter().map(none).collect(),
            ladder,
            width,
            base_bytes: width as f64 / 2.0,
            out: None,
            decoded: 0,
            edge_us: 0.0,
            cloud_us: 0.0,
            seen: VecDeque::new(),
            events: Vec::new(),
        }
    }

    /// The codec that a session is opened with: the coarsest.
    pub fn coarsest(&self) -> Codec {
        self.ladder[0]
    }

    /// The codec of the next frame, of `rows` rows that the front computed in `edge_us`.
    pub fn choose(&mut self, rows: u32, edge_us: u32) -> Codec {
        let last = self.ladder.len() - 1;
        let rung = if last == 0 {
            0
        } else if rows == 1 {
            follow(&mut self.edge_us, f64::from(edge_us));
            self.decoded += 1;
            self.rung_of_a_token()
        } else {
            self.rung_of_a_chunk(rows, f64::from(edge_us))
        };
        self.out = Some((rows, rung, 0));
        self.note(Event::Send {
            rows,
            edge_us,
            rung: rung as u8,
        });
        self.ladder[rung]
    }

    /// The frame has so many bytes.
    pub fn sent(&mut self, bytes: u32) {
        self.note(Event::Sent { bytes });
        let Some((rows, rung, seen)) = &mut self.out else {
            return;
        };
        *seen = bytes;
        let (rows, rung) = (*rows, *rung);
        let each = f64::from(bytes) / f64::from(rows.max(1));
        let lowest = (each - self.more_bytes(rung)).max(1.0);
        follow(&mut self.base_bytes, lowest);
        let chosen = &mut self.chosen[rung];
        chosen.frames += 1;
        chosen.rows += u64::from(rows);
        chosen.bytes += u64::from(bytes);
    }

    /// The token of the last frame has come.
    pub fn answered(&mut self, wait_us: u32, cloud_us: u32) {
        self.note(Event::Answer { wait_us, cloud_us });
        let Some((1, _, bytes)) = self.out.take() else {
            // A prompt's answer tells of its chunks and what was computed meanwhile.
            return;
        };
        follow(&mut self.cloud_us, f64::from(cloud_us));
        self.seen.push_back((f64::from(bytes), f64::from(wait_us)));
        if self.seen.len() > KEPT {
            self.seen.pop_front();
        }
    }

    fn note(&mut self, event: Event) {
        // Where nothing is chosen there is nothing to replay.
        if self.ladder.len() > 1 && self.events.len() < MOST_EVENTS {
            self.events.push(event);
        }
    }

    /// What a rung costs a row above the lowest: half a bit a value each.
    fn more_bytes(&self, rung: usize) -> f64 {
        (self.width * rung) as f64 / 16.0
    }

    fn rung_of_a_token(&self) -> usize {
        let last = self.ladder.len() - 1;
        let probe = PROBE.min(last);
        let turn = self.decoded - 1;
        if turn < LEARNING {
            return if turn % 2 == 1 { probe } else { 0 };
        }
        let Some(fit) = self.fit() else {
            return 0;
        };
        let least = fit.base + fit.slope * self.base_bytes + self.edge_us + self.cloud_us;
        let slope = fit.slope + fit.error;
        let good = |rung: &usize| slope * self.more_bytes(*rung) <= MAY_COST * least;
        let best = (0..=last).rev().find(good).unwrap_or(0);
        if turn % LEARNING == LEARNING - 1 {
            return if best == probe { 0 } else { probe };
        }
        best
    }

    /// Of a prompt's chunk only that counts which the halves would wait for.
    fn rung_of_a_chunk(&self, rows: u32, edge_us: f64) -> usize {
        let Some(fit) = self.fit() else {
            return 0;
        };
        let rows = f64::from(rows);
        let computed = edge_us.max(self.cloud_us);
        let takes = |rung: usize| {
            let bytes = rows * (self.base_bytes + self.more_bytes(rung));
            computed.max((fit.slope + fit.error) * bytes)
        };
        let most = takes(0) * (1.0 + MAY_COST);
        let rungs = 0..self.ladder.len();
        rungs.rev().find(|r| takes(*r) <= most).unwrap_or(0)
    }

    /// The middle one of the slopes between any two rows of different length (Theil 1950, Sen
    /// 1968): rows that the system held up do not move it. `None` before there are enough.
    fn fit(&self) -> Option<Fit> {
        if self.seen.len() < LEARNING as usize / 2 {
            return None;
        }
        let apart = (self.width as f64 / 32.0).max(1.0);
        let mut slopes = Vec::new();
        for (i, one) in self.seen.iter().enumerate() {
            let others = self.seen.iter().skip(i + 1);
            let far = others.filter(|o| (o.0 - one.0).abs() >= apart);
            slopes.extend(far.map(|o| (o.1 - one.1) / (o.0 - one.0)));
        }
        let slope = middle(&mut slopes)?.max(0.0);
        let rest = |s: &(f64, f64)| s.1 - slope * s.0;
        let base = middle(&mut self.seen.iter().map(rest).collect::<Vec<_>>())?;
        let off = self.seen.iter().map(|s| (rest(s) - base).abs());
        let off = middle(&mut off.collect::<Vec<_>>())?;
        let n = self.seen.len() as f64;
        let mean = self.seen.iter().map(|s| s.0).sum::<f64>() / n;
        let spread: f64 = self.seen.iter().map(|s| (s.0 - mean).powi(2)).sum();
        Some(Fit {
            base: base.max(0.0),
            slope,
            // Half of normal errors are within 0.6745 of their standard deviation.
            error: off / 0.6745 / spread.sqrt().max(1.0),
        })
    }

    /// What is known and what was chosen.
    pub fn report(&self) -> LinkReport {
        let fit = self.fit();
        let seen = fit.filter(|f| f.slope > 2.0 * f.error);
        let used = self.chosen.iter().filter(|c| c.frames > 0);
        LinkReport {
            rtt_ms: fit.map(|f| f.base / 1000.0),
            uplink_kbit_per_s: seen.map(|f| 8000.0 / f.slope),
            choices: used.cloned().collect(),
        }
    }

    /// The events so far, as JSON lines.
    pub fn trace(&self) -> String {
        let lines = self
            .events
            .iter()
            .filter_map(|e| serde_json::to_string(e).ok());
        lines.map(|l| l + "\n").collect()
    }

    /// Tells this controller what a trace says, and answers the rungs that it chooses and those that
    /// were chosen then.
    ///
    /// # Errors
    /// With the number of the first line that is no event, and why.
    pub fn replay(&mut self, trace: &str) -> Result<Vec<(u8, u8)>, String> {
        let mut choices = Vec::new();
        for (i, line) in trace.lines().enumerate() {
            let event = serde_json::from_str(line)
                .map_err(|e| format!("line {} of the trace is no event of a link: {e}", i + 1))?;
            match event {
                Event::Send {
                    rows,
                    edge_us,
                    rung,
                } => {
                    self.choose(rows, edge_us);
                    let now = self.out.map_or(0, |o| o.1 as u8);
                    choices.push((now, rung));
                }
                Event::Sent { bytes } => self.sent(bytes),
                Event::Answer { wait_us, cloud_us } => self.answered(wait_us, cloud_us),
            }
        }
        Ok(choices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::wire::KL_STEPS;

    const WIDTH: usize = 576;

    fn cut() -> CutStatistics {
        CutStatistics {
            mean: vec![0.0; WIDTH],
            sigma: vec![1.0; WIDTH],
            kl: KL_STEPS.iter().map(|s| 0.016 * s * s).collect(),
        }
    }

    fn auto() -> Controller {
        Controller::new(&Codec::default(), Some(&cut()), WIDTH)
    }

    /// Decodes `tokens` tokens over a link of `rtt_us` and `us_per_byte`, with some jitter; answers
    /// the mean rung of the last hundred.
    fn decode(c: &mut Controller, tokens: usize, rtt_us: f64, us_per_byte: f64) -> f64 {
        let mut x = 7u32;
        let mut random = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(x >> 8) / f64::from(1 << 24)
        };
        let mut sum = 0.0;
        for i in 0..tokens {
            c.choose(1, 2500 + (200.0 * random()) as u32);
            let rung = c.out.unwrap().1;
            let bytes = 280.0 + 40.0 * (random() - 0.5) + c.more_bytes(rung);
            c.sent(bytes as u32);
            let stall = if random() < 0.02 { 50_000.0 } else { 0.0 };
            let wait = rtt_us + bytes * us_per_byte + 300.0 * random() + stall;
            c.answered(wait as u32, 5000);
            if i + 100 >= tokens {
                sum += rung as f64 / 100.0;
            }
        }
        sum
    }

    #[test]
    fn a_fast_link_spends_and_a_thin_one_saves() {
        // 20 Mbit/s, 2 Mbit/s, 250 kbit/s.
        for rtt in [5000.0, 20_000.0, 80_000.0] {
            let (fast, thin) = (
                decode(&mut auto(), 300, rtt, 0.4),
                decode(&mut auto(), 300, rtt, 32.0),
            );
            assert!(fast > 3.0, "{rtt}: {fast}");
            // Over a long round trip a rung is two percent even there; a sixteenth are probes.
            assert!(thin < 1.3, "{rtt}: {thin}");
        }
        let mut c = auto();
        decode(&mut c, 300, 20_000.0, 32.0);
        let report = c.report();
        let kbit = report.uplink_kbit_per_s.unwrap();
        assert!((220.0..280.0).contains(&kbit), "{kbit}");
        assert!((report.rtt_ms.unwrap() - 20.0).abs() < 2.0);
        assert_eq!(report.choices.iter().map(|c| c.rows).sum::<u64>(), 300);
        // The link becomes thin, and then fast, under the same session.
        assert!(decode(&mut c, 400, 20_000.0, 0.4) > 3.0);
        assert!(decode(&mut c, 400, 20_000.0, 32.0) < 1.0);
    }

    #[test]
    fn no_rung_is_coarser_than_the_bound_allows() {
        let c = auto();
        let bound = c.ladder[0];
        assert_eq!(bound, Codec::default().resolve(Some(&cut())));
        assert_eq!(c.ladder.len(), RUNGS);
        let steps: Vec<f32> = c
            .ladder
            .iter()
            .map(|c| match c {
                Codec::Tcq(t) => t.step,
                other => panic!("{other}"),
            })
            .collect();
        assert!(steps.windows(2).all(|s| s[1] < s[0]), "{steps:?}");
    }

    #[test]
    fn prompts_are_sparing_until_the_link_is_known() {
        let mut c = auto();
        c.choose(64, 60_000);
        assert_eq!(c.out.unwrap().1, 0);
        decode(&mut c, 100, 5000.0, 0.4);
        c.choose(64, 60_000);
        assert!(c.out.unwrap().1 > 2);
        let mut c = auto();
        decode(&mut c, 100, 5000.0, 32.0);
        c.choose(64, 60_000);
        assert_eq!(c.out.unwrap().1, 0);
    }

    #[test]
    fn a_trace_replays_to_the_same_choices() {
        let mut c = auto();
        c.choose(64, 60_000);
        c.sent(64 * 270);
        c.answered(900_000, 50_000);
        decode(&mut c, 120, 20_000.0, 4.0);
        decode(&mut c, 120, 20_000.0, 32.0);
        let trace = c.trace();
        let choices = auto().replay(&trace).unwrap();
        assert_eq!(choices.len(), 241);
        assert!(choices.iter().all(|(now, then)| now == then));
        assert!(choices.iter().any(|c| c.0 > 0));
        let bad = auto().replay("{\"send\":{\"rows\":1}}\n").unwrap_err();
        assert!(bad.contains("line 1"), "{bad}");
    }

    #[test]
    fn without_a_choice_nothing_is_chosen() {
        for asked in ["f16", "tcq:step=0.5", "ts-tabq"] {
            let codec: Codec = asked.parse().unwrap();
            let mut c = Controller::new(&codec, Some(&cut()), WIDTH);
            assert_eq!(c.choose(1, 5), codec);
            assert_eq!(c.trace(), "");
        }
        // Nothing is known of the pair: one safe setting.
        let mut c = Controller::new(&Codec::default(), None, WIDTH);
        assert_eq!(c.choose(1, 5), Codec::TsTabQ(Codec::auto_default()));
        assert_eq!(decode(&mut c, 200, 5000.0, 0.0), 0.0);
    }
}
