//! One model against another: what its weights lost.

use std::sync::Arc;

use serde::Serialize;

use super::eval::{Scores, score};
use super::windows::windows;
use crate::cache::KvCache;
use crate::exec::Executor;
use crate::role::RunError;
use crate::text::Tokenizer;

/// Rows that go through a model at once.
const CHUNK: usize = 128;

/// How far a model is from its source.
#[derive(Clone, Debug, Serialize)]
pub struct AgainstReport {
    /// Perplexity of the model.
    pub perplexity: f64,
    /// Perplexity of the source.
    pub perplexity_source: f64,
    /// Mean divergence from the source, nats.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its largest value.
    pub kl_max: f64,
    /// Share of scored places with the source's likeliest token.
    pub top1_agreement: f64,
    /// Tokens scored.
    pub tokens_scored: usize,
    /// Windows run.
    pub windows: usize,
    /// Tokens of a window.
    pub ctx: usize,
}

/// A model in one or more parts, and its state in a window.
struct Run<'a> {
    parts: &'a [Arc<dyn Executor>],
    caches: Vec<KvCache>,
    rows: Vec<f32>,
    logits: Vec<f32>,
}

impl<'a> Run<'a> {
    fn new(parts: &'a [Arc<dyn Executor>], n: usize) -> Result<Self, RunError> {
        let caches = parts.iter().map(|p| p.new_cache(n));
        Ok(Self {
            parts,
            caches: caches.collect::<Result<_, _>>()?,
            rows: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// Runs `ids`; leaves the logits of those places among `scored`, counted from the first id.
    fn step(&mut self, ids: &[u32], scored: std::ops::Range<usize>) -> Result<(), RunError> {
        let (Some(front), Some(last)) = (self.parts.first(), self.parts.last()) else {
            return Err(RunError::Request("a model without parts".into()));
        };
        front.embed(ids, &mut self.rows)?;
        for (part, cache) in self.parts.iter().zip(&mut self.caches) {
            part.forward(cache, &mut self.rows)?;
        }
        let width = front.hparams().n_embd;
        if !scored.is_empty() {
            let rows = &self.rows[scored.start * width..scored.end * width];
            last.logits(rows, &mut self.logits)?;
        }
        Ok(())
    }
}

/// Measures how far `model` is from `source` on `text`, both in one or two parts. Windows as in
/// [`evaluate`](super::evaluate); both models run in step, a few rows at a time.
///
/// # Errors
/// When the two have other vocabularies, the text is too short, or a part refuses.
pub fn evaluate_against(
    model: &[Arc<dyn Executor>],
    source: &[Arc<dyn Executor>],
    tokenizer: &Tokenizer,
    text: &str,
    ctx: usize,
    chunks: Option<usize>,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<AgainstReport, RunError> {
    let vocab = |m: &[Arc<dyn Executor>]| m.first().map_or(0, |p| p.hparams().n_vocab);
    if vocab(model) != vocab(source) {
        return Err(RunError::Request(format!(
            "--against: the model has a vocabulary of {}, the other one of {}; take the model that the pair was made from",
            vocab(model),
            vocab(source)
        )));
    }
    let windows = windows(tokenizer, text, ctx, chunks)?;
    let mut total = Scores::default();
    for (w, window) in windows.iter().enumerate() {
        let (mut a, mut b) = (Run::new(source, ctx)?, Run::new(model, ctx)?);
        for (i, ids) in window.chunks(CHUNK).enumerate() {
            let start = i * CHUNK;
            // The last position predicts what is outside the window.
            let scored = (ctx / 2).max(start)..(start + ids.len()).min(ctx - 1);
            let within = scored.start.saturating_sub(start)..scored.end.saturating_sub(start);
            let within = if scored.is_empty() { 0..0 } else { within };
            a.step(ids, within.clone())?;
            b.step(ids, within)?;
            if !scored.is_empty() {
                let targets = &window[scored.start + 1..=scored.end];
                score(&a.logits, Some(&b.logits), targets, &mut total);
            }
        }
        progress(w + 1, windows.len(), total.kl().mean);
    }
    let kl = total.kl();
    let count = total.count as f64;
    Ok(AgainstReport {
        perplexity: (total.nll / count).exp(),
        perplexity_source: (total.nll_plain / count).exp(),
        kl_mean: kl.mean,
        kl_p99: kl.p99,
        kl_max: kl.max,
        top1_agreement: kl.same_top,
        tokens_scored: total.count,
        windows: windows.len(),
        ctx,
    })
}
