//! Codecs side by side: the edge half and the pass without a codec run once for all of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use formats::wire::baselines::{Baseline, Fitted};
use formats::wire::{self, Codec, CutStatistics, Expect, Origin, PairTag, Scratch};
use serde::Serialize;

use super::eval::{Scores, score};
use super::windows::windows;
use crate::exec::Executor;
use crate::role::RunError;
use crate::text::Tokenizer;

/// Rows of the longer frames.
const MANY: usize = 64;
/// The pair that frames are of; of no matter here.
const PAIR_TAG: PairTag = PairTag([0; 4]);

/// What is measured with `--codecs all`: what travels, from many bytes to few, then what others do.
const ALL: [&str; 15] = [
    "f16",
    "int8",
    "ts-tabq:tau=5s,delta=0,bits=5",
    "ts-tabq:tau=4s,delta=0,bits=4",
    "ts-tabq:tau=4s,delta=0,bits=3",
    "tcq:step=0.02",
    "tcq:step=0.06",
    "tcq:step=0.2",
    "tcq:step=0.4",
    "tcq:step=0.58",
    "tcq:step=0.7",
    "tcq:step=1",
    "tcq:step=1.3",
    "auto",
    "auto:max-kl=0.02",
];

/// One of the codings to compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Candidate {
    /// One that travels.
    Codec(Codec),
    /// One that others use.
    Baseline(Baseline),
}

impl Candidate {
    /// All that `--codecs all` stands for; those that need a calibrated pair only if it is one.
    pub fn all(calibrated: bool) -> Vec<Self> {
        let ours = ALL.iter().filter_map(|s| s.parse::<Codec>().ok());
        let ours = ours.filter(|c| calibrated || !c.needs_calibration());
        let theirs = Baseline::ALL.into_iter().map(Self::Baseline);
        ours.map(Self::Codec).chain(theirs).collect()
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codec(c) => c.fmt(f),
            Self::Baseline(b) => b.fmt(f),
        }
    }
}

impl FromStr for Candidate {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Ok(b) = s.parse() {
            return Ok(Self::Baseline(b));
        }
        let names = Baseline::ALL.map(|b| b.to_string()).join(", ");
        s.parse()
            .map(Self::Codec)
            .map_err(|e: wire::SpecError| format!("{e}; or, to compare with, {names}"))
    }
}

/// What to measure on.
#[derive(Clone, Debug)]
pub struct CodecsOptions {
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows; `None` for as many as the text has.
    pub chunks: Option<usize>,
    /// What the pair knows of its rows.
    pub cut: Option<CutStatistics>,
    /// The codings.
    pub candidates: Vec<Candidate>,
    /// Text whose rows the baselines learn from, and how many windows of it.
    pub calibration: Option<(String, usize)>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct CodecsReport {
    /// Tokens scored.
    pub tokens_scored: usize,
    /// Windows run.
    pub windows: usize,
    /// Tokens of a window.
    pub ctx: usize,
    /// Values of a row.
    pub width: usize,
    /// Layers in front of the boundary.
    pub cut: usize,
    /// Perplexity without a codec.
    pub perplexity_no_codec: f64,
    /// One entry a coding, in the order asked for.
    pub codecs: Vec<CodecFigures>,
}

/// What one coding cost.
#[derive(Clone, Debug, Serialize)]
pub struct CodecFigures {
    /// As asked for.
    pub asked: String,
    /// The coding, `auto` resolved.
    pub codec: String,
    /// Bytes of complete frames of one row, per row.
    pub bytes_per_token: f64,
    /// Bytes of complete frames of 64 rows, per row.
    pub bytes_per_token_64: f64,
    /// Bytes of the largest frame of one row.
    pub bytes_max_frame: usize,
    /// Mean divergence from no codec, nats.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its largest value.
    pub kl_max: f64,
    /// Perplexity with the coding.
    pub perplexity: f64,
    /// The same over that without one.
    pub perplexity_ratio: f64,
    /// Share of scored places with the same likeliest token as without codec.
    pub top1_agreement: f64,
    /// Microseconds to encode a row into a frame of its own, the median.
    pub encode_us: f64,
    /// Microseconds to decode such a frame, the median.
    pub decode_us: f64,
}

/// How one candidate codes.
enum Coder {
    Codec(Codec, Box<Scratch>),
    Baseline(Box<Fitted>),
}

/// One candidate and what it has cost so far.
struct Runner {
    asked: String,
    name: String,
    coder: Coder,
    frame: Vec<u8>,
    back: Vec<f32>,
    bytes: [usize; 2],
    rows: usize,
    largest: usize,
    encode_us: Vec<f64>,
    decode_us: Vec<f64>,
    scores: Scores,
}

impl Runner {
    fn encode(&mut self, first: usize, width: usize, rows: &[f32]) -> Result<(), RunError> {
        let origin = Origin {
            pair_tag: PAIR_TAG,
            first_position: first as u32,
            width,
        };
        match &mut self.coder {
            Coder::Codec(codec, scratch) => {
                wire::encode(codec, &origin, rows, scratch, &mut self.frame)?;
            }
            Coder::Baseline(fitted) => fitted.encode(&origin, rows, &mut self.frame)?,
        }
        Ok(())
    }

    fn decode(&mut self, width: usize) -> Result<(), RunError> {
        let expect = Expect {
            pair_tag: PAIR_TAG,
            width,
            max_rows: MANY,
        };
        match &mut self.coder {
            Coder::Codec(_, scratch) => {
                wire::decode(&self.frame, &expect, scratch, &mut self.back)?;
            }
            Coder::Baseline(fitted) => fitted.decode(&self.frame, &expect, &mut self.back)?,
        }
        Ok(())
    }

    /// What arrives of the rows of a window, each in a frame of its own.
    fn travel(&mut self, width: usize, rows: &[f32]) -> Result<Vec<f32>, RunError> {
        let mut out = Vec::with_capacity(rows.len());
        for (position, row) in rows.chunks_exact(width).enumerate() {
            let begun = Instant::now();
            self.encode(position, width, row)?;
            self.encode_us.push(begun.elapsed().as_secs_f64() * 1e6);
            let begun = Instant::now();
            self.decode(width)?;
            self.decode_us.push(begun.elapsed().as_secs_f64() * 1e6);
            out.extend_from_slice(&self.back);
            self.bytes[0] += self.frame.len();
            self.largest = self.largest.max(self.frame.len());
            self.rows += 1;
        }
        for (i, part) in rows.chunks(MANY * width).enumerate() {
            self.encode(i * MANY, width, part)?;
            self.bytes[1] += self.frame.len();
        }
        Ok(out)
    }

    fn figures(&mut self) -> CodecFigures {
        let kl = self.scores.kl();
        let count = self.scores.count as f64;
        let perplexity = (self.scores.nll / count).exp();
        let median = |v: &mut Vec<f64>| {
            v.sort_by(f64::total_cmp);
            v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let rows = self.rows as f64;
        CodecFigures {
            asked: self.asked.clone(),
            codec: self.name.clone(),
            bytes_per_token: self.bytes[0] as f64 / rows,
            bytes_per_token_64: self.bytes[1] as f64 / rows,
            bytes_max_frame: self.largest,
            kl_mean: kl.mean,
            kl_p99: kl.p99,
            kl_max: kl.max,
            perplexity,
            perplexity_ratio: perplexity / (self.scores.nll_plain / count).exp(),
            top1_agreement: kl.same_top,
            encode_us: median(&mut self.encode_us),
            decode_us: median(&mut self.decode_us),
        }
    }
}

/// The rows of some windows at the cut.
fn rows_of(front: &Arc<dyn Executor>, windows: &[Vec<u32>]) -> Result<Vec<f32>, RunError> {
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for window in windows {
        let mut cache = front.new_cache(window.len())?;
        front.embed(window, &mut rows)?;
        front.forward(&mut cache, &mut rows)?;
        all.extend_from_slice(&rows);
    }
    Ok(all)
}

/// Candidates ready to run.
fn runners(
    front: &Arc<dyn Executor>,
    tokenizer: &Tokenizer,
    options: &CodecsOptions,
) -> Result<Vec<Runner>, RunError> {
    let width = front.hparams().n_embd;
    let cut = options.cut.as_ref();
    let learns = |c: &&Candidate| matches!(c, Candidate::Baseline(b) if b.needs_calibration());
    let seen = match (options.candidates.iter().find(learns), &options.calibration) {
        (None, _) => Vec::new(),
        (Some(one), None) => {
            return Err(RunError::Usage(format!(
                "`{one}` learns from a calibration text; give one with --calibration FILE"
            )));
        }
        (Some(_), Some((text, chunks))) => {
            let windows = windows(tokenizer, text, options.ctx, Some(*chunks))?;
            rows_of(front, &windows)?
        }
    };
    let one = |candidate: &Candidate| {
        let (coder, name) = match candidate {
            Candidate::Codec(codec) => {
                let codec = codec.resolve(cut);
                let scratch = Scratch::calibrated(cut.and_then(|c| c.channels(width)));
                (Coder::Codec(codec, Box::new(scratch)), codec.to_string())
            }
            Candidate::Baseline(b) => (
                Coder::Baseline(Box::new(b.fit(&seen, width)?)),
                b.to_string(),
            ),
        };
        Ok(Runner {
            asked: candidate.to_string(),
            name,
            coder,
            frame: Vec::new(),
            back: Vec::new(),
            bytes: [0; 2],
            rows: 0,
            largest: 0,
            encode_us: Vec::new(),
            decode_us: Vec::new(),
            scores: Scores::default(),
        })
    };
    options.candidates.iter().map(one).collect()
}

/// Measures every candidate over the same rows of `text`, scored as [`evaluate`](super::evaluate)
/// does. `progress` hears of each run of the back half and how many there are.
///
/// # Errors
/// When the text is too short for one window, a candidate cannot code the rows, a baseline lacks
/// its calibration text, or a half refuses.
pub fn compare_codecs(
    front: &Arc<dyn Executor>,
    back: &Arc<dyn Executor>,
    tokenizer: &Tokenizer,
    text: &str,
    options: &CodecsOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<CodecsReport, RunError> {
    let windows = windows(tokenizer, text, options.ctx, options.chunks)?;
    let width = front.hparams().n_embd;
    let mut runners = runners(front, tokenizer, options)?;
    let runs = windows.len() * runners.len();
    let mut done = 0;
    let mut plain_scores = Scores::default();
    for window in &windows {
        let rows = rows_of(front, std::slice::from_ref(window))?;
        let scored = window.len() / 2..window.len() - 1;
        let targets = &window[scored.start + 1..=scored.end];
        let part = scored.start * width..scored.end * width;
        let answer = |mut rows: Vec<f32>, logits: &mut Vec<f32>| -> Result<(), RunError> {
            let mut cache = back.new_cache(window.len())?;
            back.forward(&mut cache, &mut rows)?;
            Ok(back.logits(&rows[part.clone()], logits)?)
        };
        let (mut plain, mut coded) = (Vec::new(), Vec::new());
        answer(rows.clone(), &mut plain)?;
        score(&plain, None, targets, &mut plain_scores);
        for runner in &mut runners {
            answer(runner.travel(width, &rows)?, &mut coded)?;
            score(&plain, Some(&coded), targets, &mut runner.scores);
            done += 1;
            progress(done, runs);
        }
    }
    let count = plain_scores.count;
    Ok(CodecsReport {
        tokens_scored: count,
        windows: windows.len(),
        ctx: options.ctx,
        width,
        cut: front.layers().end,
        perplexity_no_codec: (plain_scores.nll_plain / count as f64).exp(),
        codecs: runners.iter_mut().map(Runner::figures).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_read_and_all_of_them_are_known() {
        let all = Candidate::all(true);
        assert_eq!(all.len(), ALL.len() + Baseline::ALL.len());
        for c in &all {
            assert_eq!(c.to_string().parse::<Candidate>().as_ref(), Ok(c));
        }
        let plain = Candidate::all(false);
        assert!(plain.iter().all(|c| !c.to_string().starts_with("tcq")));
        let text = "f17".parse::<Candidate>().unwrap_err();
        assert!(
            text.contains("f17") && text.contains("omniquant:bits=4"),
            "{text}"
        );
    }
}
