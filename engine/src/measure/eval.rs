//! Perplexity as llama-perplexity measures it, and what a codec does to the distribution.

use std::sync::Arc;

use formats::wire::{Codec, CutStatistics};
use serde::Serialize;

use super::boundary::Boundary;
use super::distribution::{Comparison, compare, log_softmax};
use super::windows::windows;
use crate::exec::Executor;
use crate::role::RunError;
use crate::text::Tokenizer;

/// Rows that go through a half at once, if frames are no longer.
const CHUNK: usize = 128;

/// What to measure on.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows; `None` for as many as the text has.
    pub chunks: Option<usize>,
    /// The codec at the boundary; `None` for none.
    pub codec: Option<Codec>,
    /// What the pair knows of its rows.
    pub cut: Option<CutStatistics>,
    /// Rows of a frame.
    pub frame_rows: usize,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// exp of the mean negative log-probability of the scored tokens (with the codec, if any).
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens_scored: usize,
    /// Windows run.
    pub windows: usize,
    /// Tokens of a window.
    pub ctx: usize,
    /// With a codec: what it cost.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub codec: Option<CodecReport>,
}

/// What a codec cost.
#[derive(Clone, Debug, Serialize)]
pub struct CodecReport {
    /// The codec, `auto` resolved.
    pub codec: String,
    /// Rows of a frame.
    pub frame_rows: usize,
    /// Bytes of complete frames per row.
    pub bytes_per_token: f64,
    /// Bytes of the largest frame.
    pub bytes_max_frame: usize,
    /// Mean divergence from no codec, nats.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its largest value.
    pub kl_max: f64,
    /// Share of scored places with the same likeliest token as without codec.
    pub top1_agreement: f64,
    /// Perplexity without codec.
    pub perplexity_no_codec: f64,
}

/// Scores so far.
#[derive(Default)]
pub(super) struct Scores {
    pub(super) nll: f64,
    pub(super) nll_plain: f64,
    comparisons: Vec<Comparison>,
    pub(super) count: usize,
}

/// What the comparisons say together.
pub(super) struct Kl {
    pub(super) mean: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    /// Share of places with the same likeliest token.
    pub(super) same_top: f64,
}

impl Scores {
    pub(super) fn kl(&self) -> Kl {
        let mut kl: Vec<f64> = self.comparisons.iter().map(|c| c.kl).collect();
        kl.sort_by(f64::total_cmp);
        let count = kl.len() as f64;
        let p99 = ((count * 0.99).ceil() as usize).saturating_sub(1);
        let same = self.comparisons.iter().filter(|c| c.same_top).count();
        Kl {
            mean: kl.iter().sum::<f64>() / count,
            p99: kl.get(p99).copied().unwrap_or(f64::NAN),
            max: kl.last().copied().unwrap_or(f64::NAN),
            same_top: same as f64 / count,
        }
    }
}

/// Measures `text` over `front` and, when the model is in two halves, `back`.
///
/// Windows do not overlap; of each, the second half is scored (positions `ctx/2 ..`), as
/// llama-perplexity does. `progress` hears of each finished window and the perplexity so far.
///
/// # Errors
/// When the text is too short for one window, or a half refuses.
pub fn evaluate(
    front: &Arc<dyn Executor>,
    back: Option<&Arc<dyn Executor>>,
    tokenizer: &Tokenizer,
    text: &str,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize, usize, f64),
) -> Result<EvalReport, RunError> {
    let windows = windows(tokenizer, text, options.ctx, options.chunks)?;
    // A whole model has no boundary.
    let mut boundary = options
        .codec
        .as_ref()
        .filter(|_| back.is_some())
        .map(|codec| {
            Boundary::new(
                codec,
                options.cut.as_ref(),
                front.hparams().n_embd,
                // A window has no more rows than this.
                options.frame_rows.min(options.ctx),
            )
        });
    let mut total = Scores::default();
    for (w, window) in windows.iter().enumerate() {
        score_window(front, back, window, boundary.as_mut(), &mut total)?;
        let so_far = (total.nll / total.count as f64).exp();
        progress(w + 1, windows.len(), so_far);
    }
    let count = total.count as f64;
    let perplexity = (total.nll / count).exp();
    let codec = boundary.map(|b| {
        let kl = total.kl();
        CodecReport {
            codec: b.codec.to_string(),
            frame_rows: b.frame_rows,
            bytes_per_token: b.bytes as f64 / b.rows as f64,
            bytes_max_frame: b.largest,
            kl_mean: kl.mean,
            kl_p99: kl.p99,
            kl_max: kl.max,
            top1_agreement: kl.same_top,
            perplexity_no_codec: (total.nll_plain / count).exp(),
        }
    });
    Ok(EvalReport {
        perplexity,
        tokens_scored: total.count,
        windows: windows.len(),
        ctx: options.ctx,
        codec,
    })
}

fn score_window(
    front: &Arc<dyn Executor>,
    back: Option<&Arc<dyn Executor>>,
    window: &[u32],
    mut boundary: Option<&mut Boundary>,
    total: &mut Scores,
) -> Result<(), RunError> {
    let n = window.len();
    let first_scored = n / 2;
    let width = front.hparams().n_embd;
    let mut front_cache = front.new_cache(n)?;
    let last = back.unwrap_or(front);
    let mut back_cache = back.map(|b| b.new_cache(n)).transpose()?;
    let mut coded_cache = match (&boundary, back) {
        (Some(_), Some(b)) => Some(b.new_cache(n)?),
        _ => None,
    };
    let (mut rows, mut plain, mut coded) = (Vec::new(), Vec::new(), Vec::new());
    // Whole frames only: one that is cut short would cost more bytes a row.
    let frame = boundary.as_ref().map_or(1, |b| b.frame_rows);
    let chunk = frame * (CHUNK / frame).max(1);
    for start in (0..n).step_by(chunk) {
        let ids = &window[start..(start + chunk).min(n)];
        front.embed(ids, &mut rows)?;
        front.forward(&mut front_cache, &mut rows)?;
        let mut coded_rows = match (boundary.as_deref_mut(), back, coded_cache.as_mut()) {
            (Some(boundary), Some(back), Some(cache)) => {
                let mut r = rows.clone();
                boundary.pass(start, width, &mut r)?;
                back.forward(cache, &mut r)?;
                Some(r)
            }
            _ => None,
        };
        if let (Some(back), Some(cache)) = (back, back_cache.as_mut()) {
            back.forward(cache, &mut rows)?;
        }
        // The last position predicts what is outside the window.
        let scored = first_scored.max(start)..(start + ids.len()).min(n - 1);
        if scored.is_empty() {
            continue;
        }
        let part = (scored.start - start) * width..(scored.end - start) * width;
        last.logits(&rows[part.clone()], &mut plain)?;
        let targets = &window[scored.start + 1..=scored.end];
        if let Some(r) = coded_rows.as_mut() {
            last.logits(&r[part], &mut coded)?;
        }
        let with_codec = coded_rows.as_ref().map(|_| coded.as_slice());
        score(&plain, with_codec, targets, total);
    }
    Ok(())
}

/// Adds the scores of `targets` under their logits; rows are shared among two threads or more.
pub(super) fn score(plain: &[f32], coded: Option<&[f32]>, targets: &[u32], total: &mut Scores) {
    let vocab = plain.len() / targets.len();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let per = targets.len().div_ceil(threads);
    let one = |i: usize| {
        let (mut p, mut q) = (Vec::with_capacity(vocab), Vec::new());
        let row = i * vocab..(i + 1) * vocab;
        let target = targets[i] as usize;
        log_softmax(&plain[row.clone()], &mut p);
        let nll_plain = -p.get(target).copied().unwrap_or(f64::NEG_INFINITY);
        match coded {
            Some(coded) => {
                log_softmax(&coded[row], &mut q);
                let nll = -q.get(target).copied().unwrap_or(f64::NEG_INFINITY);
                (nll, nll_plain, Some(compare(&p, &q)))
            }
            None => (nll_plain, nll_plain, None),
        }
    };
    let results: Vec<_> = std::thread::scope(|s| {
        let one = &one;
        let workers: Vec<_> = (0..targets.len())
            .step_by(per)
            .map(|a| {
                s.spawn(move || {
                    (a..(a + per).min(targets.len()))
                        .map(one)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect()
    });
    // Summed in order, so that the figure does not depend on the number of threads.
    for (nll, nll_plain, comparison) in results {
        total.nll += nll;
        total.nll_plain += nll_plain;
        total.comparisons.extend(comparison);
        total.count += 1;
    }
}
