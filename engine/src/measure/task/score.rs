//! Log-probabilities of choices: several questions in one pass, what choices share run once.

use std::sync::Arc;

use formats::wire::{Codec, CutStatistics};

use super::Answered;
use super::tokens::Cut;
use crate::cache::KvCache;
use crate::exec::{ExecError, Executor, Sequence};
use crate::measure::boundary::Boundary;
use crate::role::RunError;

/// Questions of one pass, if the memory for their keys and values allows.
const BATCH: usize = 16;
/// Bytes of keys and values of all questions of a pass, at most.
const MOST_KV: usize = 1 << 30;
/// Rows that go through a half at once, of one question.
const CHUNK: usize = 128;
/// Rows that go through the head at once.
const HEAD_ROWS: usize = 32;

/// A model in one part or two, and how rows cross between them.
pub struct TaskModel {
    /// The parts in order.
    pub parts: Vec<Arc<dyn Executor>>,
    /// The codec between two parts; `None` for every bit.
    pub codec: Option<Codec>,
    /// What the pair knows of its rows.
    pub cut: Option<CutStatistics>,
}

/// Runs questions through a model.
pub struct Scorer<'a> {
    front: &'a Arc<dyn Executor>,
    back: Option<&'a Arc<dyn Executor>>,
    boundary: Option<Boundary>,
    caches: Vec<Caches>,
    positions: usize,
}

/// The caches of one question.
struct Caches {
    front: KvCache,
    back: Option<KvCache>,
}

/// Some tokens of one question, and what came of them.
struct Step<'a> {
    caches: &'a mut Caches,
    ids: &'a [u32],
    rows: Vec<f32>,
    sent: u64,
    bytes: u64,
}

/// A row whose distribution is wanted, and the token asked about.
struct Ask<'a> {
    row: &'a [f32],
    /// The question, the choice (`None`: all of them), the token.
    of: (usize, Option<usize>),
    token: u32,
}

impl<'a> Scorer<'a> {
    /// A scorer over `model`.
    ///
    /// # Errors
    /// When the model has no part.
    pub fn new(model: &'a TaskModel) -> Result<Self, RunError> {
        let front = (model.parts.first())
            .ok_or_else(|| RunError::Request("a model without parts".into()))?;
        let back = model.parts.get(1);
        // A whole model has no boundary.
        let codec = model.codec.as_ref().filter(|_| back.is_some());
        let width = front.hparams().n_embd;
        Ok(Self {
            boundary: codec.map(|c| Boundary::new(c, model.cut.as_ref(), width, 1)),
            front,
            back,
            caches: Vec::new(),
            positions: 0,
        })
    }

    /// The codec, `auto` resolved; none for an unsplit model.
    pub fn codec(&self) -> Option<String> {
        self.boundary.as_ref().map(|b| b.codec.to_string())
    }

    /// Questions of one pass.
    pub fn batch(&self) -> usize {
        self.caches.len().max(1)
    }

    /// Makes room for questions of up to `positions` tokens.
    ///
    /// # Errors
    /// When a part has no memory for it.
    pub fn reserve(&mut self, positions: usize) -> Result<(), RunError> {
        if positions <= self.positions && !self.caches.is_empty() {
            return Ok(());
        }
        let back = self.back.map_or(0, |b| b.cache_bytes(positions));
        let each = (self.front.cache_bytes(positions) + back).max(1);
        let make = || {
            Ok::<_, ExecError>(Caches {
                front: self.front.new_cache(positions)?,
                back: self.back.map(|b| b.new_cache(positions)).transpose()?,
            })
        };
        let n = (MOST_KV / each).clamp(1, BATCH);
        self.caches = (0..n).map(|_| make()).collect::<Result<_, _>>()?;
        self.positions = positions;
        Ok(())
    }

    /// A number that stands for the arithmetic of the parts: a hash of their answer to a few
    /// tokens. Results of equal numbers may stand in one file.
    ///
    /// # Errors
    /// When a part refuses.
    pub fn fingerprint(&mut self) -> Result<String, RunError> {
        const TOKENS: u32 = 8;
        self.reserve(TOKENS as usize)?;
        let vocab = self.front.hparams().n_vocab.max(1) as u32;
        let ids: Vec<u32> = (0..TOKENS).map(|i| (i * 97 + 1) % vocab).collect();
        let mut caches = std::mem::take(&mut self.caches);
        let mut steps: Vec<Step<'_>> = caches.iter_mut().take(1).map(|c| step(c, &ids)).collect();
        for s in &mut steps {
            s.caches.truncate(0);
        }
        let boundary = self.boundary.take();
        let done = self.forward(&mut steps);
        self.boundary = boundary;
        let rows = steps.into_iter().next().map(|s| s.rows);
        self.caches = caches;
        done?;
        let mut logits = Vec::new();
        self.last().logits(&rows.unwrap_or_default(), &mut logits)?;
        let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
        Ok(blake3::hash(&bytes).to_hex()[..16].to_owned())
    }

    fn last(&self) -> &'a Arc<dyn Executor> {
        self.back.unwrap_or(self.front)
    }

    /// Scores the choices of some questions, [`Scorer::batch`] at most.
    ///
    /// # Errors
    /// When a part refuses.
    pub fn run(&mut self, cuts: &[&Cut]) -> Result<Vec<Answered>, RunError> {
        let mut caches = std::mem::take(&mut self.caches);
        let answered = self.run_in(&mut caches, cuts);
        self.caches = caches;
        answered
    }

    fn run_in(&mut self, caches: &mut [Caches], cuts: &[&Cut]) -> Result<Vec<Answered>, RunError> {
        if cuts.len() > caches.len() {
            return Err(RunError::Request(format!(
                "{} questions in a pass of {}",
                cuts.len(),
                caches.len()
            )));
        }
        let width = self.front.hparams().n_embd;
        let mut answered: Vec<Answered> = cuts.iter().map(|c| empty(c)).collect();
        let mut steps = Vec::new();
        for (caches, cut) in caches.iter_mut().zip(cuts) {
            caches.truncate(0);
            steps.push(step(caches, &cut.shared));
        }
        self.forward(&mut steps)?;
        let mut lasts = Vec::new();
        for (s, a) in steps.iter().zip(&mut answered) {
            a.rows += s.sent;
            a.frame_bytes += s.bytes;
            lasts.push(s.rows[s.rows.len() - width..].to_vec());
        }
        let mut asks = Vec::new();
        for (q, (cut, s)) in cuts.iter().zip(&steps).enumerate() {
            for at in cut.first_scored..cut.shared.len() {
                let row = &s.rows[(at - 1) * width..at * width];
                let (of, token) = ((q, None), cut.shared[at]);
                asks.push(Ask { row, of, token });
            }
            for (c, rest) in cut.rests.iter().enumerate() {
                if let Some(&token) = rest.first() {
                    let (of, row) = ((q, Some(c)), lasts[q].as_slice());
                    asks.push(Ask { row, of, token });
                }
            }
        }
        self.score(&asks, &mut answered)?;
        drop(asks);
        drop(steps);
        let most = cuts.iter().map(|c| c.rests.len()).max().unwrap_or(0);
        for c in 0..most {
            let mut steps = Vec::new();
            for (q, (caches, cut)) in caches.iter_mut().zip(cuts).enumerate() {
                caches.truncate(cut.shared.len());
                // The last token predicts what comes after the choice, which nobody asks about.
                if let Some([ids @ .., _]) = cut.rests.get(c).map(Vec::as_slice)
                    && !ids.is_empty()
                {
                    steps.push((q, step(caches, ids)));
                }
            }
            let (which, mut steps): (Vec<usize>, Vec<_>) = steps.into_iter().unzip();
            self.forward(&mut steps)?;
            let mut asks = Vec::new();
            for (&q, s) in which.iter().zip(&steps) {
                answered[q].rows += s.sent;
                answered[q].frame_bytes += s.bytes;
                let next = cuts[q].rests[c].iter().skip(1);
                for (row, &token) in s.rows.chunks_exact(width).zip(next) {
                    let of = (q, Some(c));
                    asks.push(Ask { row, of, token });
                }
            }
            self.score(&asks, &mut answered)?;
        }
        for a in &mut answered {
            for l in &mut a.logprobs {
                *l = rounded(*l);
            }
        }
        Ok(answered)
    }

    /// Runs the tokens of all steps; their rows are then those in front of the head.
    fn forward(&mut self, steps: &mut [Step<'_>]) -> Result<(), RunError> {
        let width = self.front.hparams().n_embd;
        for s in &mut *steps {
            self.front.embed(s.ids, &mut s.rows)?;
        }
        // Long questions go in pieces, all at once: what they need beside their caches is bounded.
        let longest = steps.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        for from in (0..longest).step_by(CHUNK) {
            let piece = |s: &Step<'_>| {
                let end = (from + CHUNK).min(s.ids.len());
                from.min(end) * width..end * width
            };
            let starts: Vec<usize> = steps.iter().map(|s| s.caches.front.len()).collect();
            let mut sequences = Vec::new();
            for s in &mut *steps {
                let piece = piece(s);
                if !piece.is_empty() {
                    let (cache, rows) = (&mut s.caches.front, &mut s.rows[piece]);
                    sequences.push(Sequence { cache, rows });
                }
            }
            self.front.forward_batch(&mut sequences)?;
            let Some(back) = self.back else { continue };
            if let Some(boundary) = &mut self.boundary {
                for (s, start) in steps.iter_mut().zip(starts) {
                    let piece = piece(s);
                    let before = boundary.bytes;
                    boundary.pass(start, width, &mut s.rows[piece.clone()])?;
                    s.bytes += (boundary.bytes - before) as u64;
                    s.sent += (piece.len() / width) as u64;
                }
            }
            let mut sequences = Vec::new();
            for s in &mut *steps {
                let piece = piece(s);
                if let (Some(cache), false) = (s.caches.back.as_mut(), piece.is_empty()) {
                    let rows = &mut s.rows[piece];
                    sequences.push(Sequence { cache, rows });
                }
            }
            back.forward_batch(&mut sequences)?;
        }
        Ok(())
    }

    /// Adds the log-probabilities of what `asks` ask about.
    fn score(&self, asks: &[Ask<'_>], answered: &mut [Answered]) -> Result<(), RunError> {
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        let mut rest = asks;
        while !rest.is_empty() {
            // Asks about one row stand together: the head is multiplied with it once.
            rows.clear();
            let (mut n, mut at, mut taken) = (0, Vec::new(), 0);
            let mut previous: Option<&[f32]> = None;
            for ask in rest {
                if previous.is_none_or(|p| !std::ptr::eq(p, ask.row)) {
                    if n == HEAD_ROWS {
                        break;
                    }
                    rows.extend_from_slice(ask.row);
                    previous = Some(ask.row);
                    n += 1;
                }
                at.push(n - 1);
                taken += 1;
            }
            self.last().logits(&rows, &mut logits)?;
            let vocab = logits.len() / n.max(1);
            let sums = log_sums(&logits, vocab);
            for (ask, row) in rest[..taken].iter().zip(at) {
                let logit = logits[row * vocab..(row + 1) * vocab].get(ask.token as usize);
                let lp = logit.map_or(f64::NAN, |l| f64::from(*l) - sums[row]);
                let (q, choice) = ask.of;
                let Answered {
                    logprobs, tokens, ..
                } = &mut answered[q];
                for (c, (sum, n)) in logprobs.iter_mut().zip(tokens).enumerate() {
                    if choice.is_none_or(|of| of == c) {
                        *sum += lp;
                        *n += 1;
                    }
                }
            }
            rest = &rest[taken..];
        }
        Ok(())
    }
}

impl Caches {
    fn truncate(&mut self, len: usize) {
        self.front.truncate(len);
        if let Some(back) = &mut self.back {
            back.truncate(len);
        }
    }
}

fn step<'a>(caches: &'a mut Caches, ids: &'a [u32]) -> Step<'a> {
    Step {
        caches,
        ids,
        rows: Vec::new(),
        sent: 0,
        bytes: 0,
    }
}

fn empty(cut: &Cut) -> Answered {
    Answered {
        logprobs: vec![0.0; cut.rests.len()],
        tokens: vec![0; cut.rests.len()],
        truncated: cut.truncated,
        rows: 0,
        frame_bytes: 0,
    }
}

/// To a billionth, so that what is read from a file again is the same number.
pub(super) fn rounded(x: f64) -> f64 {
    (x * 1e9).round() / 1e9
}

/// ln Σ exp of each row of `vocab` logits; rows are shared among the machine's threads.
fn log_sums(logits: &[f32], vocab: usize) -> Vec<f64> {
    let one = |row: &[f32]| {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = row.iter().map(|l| libm::exp(f64::from(*l) - max)).sum();
        max + libm::log(sum)
    };
    let rows: Vec<&[f32]> = logits.chunks(vocab.max(1)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let per = rows.len().div_ceil(threads).max(1);
    std::thread::scope(|s| {
        let workers: Vec<_> = rows
            .chunks(per)
            .map(|rows| s.spawn(move || rows.iter().map(|r| one(r)).collect::<Vec<_>>()))
            .collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect()
    })
}
