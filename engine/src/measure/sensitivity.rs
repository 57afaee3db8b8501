//! How much the final distribution feels an error in each matrix.
//!
//! Every weight of a matrix is multiplied with 1 ± √ε, the sign from a hash of its place: an error
//! of squared relative size ε whatever weighs the columns, random from row to row of the matrix
//! and the same at every token, as that of a quantiser is. The Kullback-Leibler divergence from
//! the undisturbed model, divided by ε, is the sensitivity.
//!
//! Layers run one after the other over all tokens, and the undisturbed rows in front of each are
//! kept: what disturbs layer `l` is run from there.

use std::sync::Arc;

use formats::blocks::dequantize_row;
use formats::imatrix::{KINDS, Sensitivity};

use super::windows::windows;
use crate::cache::KvCache;
use crate::exec::Executor as _;
use crate::exec::cpu::CpuExecutor;
use crate::model::{LayerTensors, Tensor};
use crate::role::RunError;
use crate::text::Tokenizer;

/// Squared relative error of a disturbed matrix: between those of three and four bits. Within
/// these sizes the divergence grows in proportion to it.
const ERROR: f64 = 0.01;

/// Tokens of one window at least, if the text has them.
const PIECE: usize = 128;
/// Rows that go through the head at once.
const HEAD_ROWS: usize = 32;
/// Bytes of undisturbed rows and logits that may be kept.
const MOST_BYTES: usize = 2 << 30;

/// What to measure sensitivities on.
#[derive(Clone, Copy, Debug)]
pub struct SensitivityOptions {
    /// Tokens to run, at least; fewer when the text has no more.
    pub tokens: usize,
    /// Tokens of a window, at most.
    pub ctx: usize,
    /// Windows to take them from, the first of the text; `None` for all it has.
    pub chunks: Option<usize>,
}

/// Measures the sensitivity of every matrix of every layer of a model in `parts`, in order, on
/// tokens from all over `text`.
///
/// It does not depend on the number of threads nor on where the model is cut. `progress` hears
/// how many layers have been run, and of how many.
///
/// # Errors
/// When the text is too short, there are too many tokens to keep, a part refuses, or a result is
/// not finite.
pub fn sensitivity(
    parts: &[Arc<CpuExecutor>],
    tokenizer: &Tokenizer,
    text: &str,
    options: &SensitivityOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Sensitivity, RunError> {
    let all = windows(tokenizer, text, options.ctx, options.chunks)?;
    let windows = pick(all, options.tokens);
    let mut model = Undisturbed::run(parts, &windows, 0)?;
    let n_layer = model.layers.len();
    let all = KINDS.len() * n_layer * (n_layer + 1) / 2;
    let mut done = 0;
    let mut layers = vec![[0.0; KINDS.len()]; n_layer];
    for (l, row) in layers.iter_mut().enumerate() {
        for (kind, value) in row.iter_mut().enumerate() {
            *value = model.disturbed(l, kind)? as f32;
            done += n_layer - l;
            progress(done, all);
        }
    }
    Ok(Sensitivity {
        tokens: windows.iter().map(Vec::len).sum::<usize>() as u64,
        layers,
    })
}

/// The beginnings of windows from all over the text, of equal length, `tokens` together if there
/// are as many.
fn pick(all: Vec<Vec<u32>>, tokens: usize) -> Vec<Vec<u32>> {
    pick_pieces(all, tokens, PIECE)
}

/// [`pick`] with windows of at least `piece` tokens, if the text has them.
pub(super) fn pick_pieces(mut all: Vec<Vec<u32>>, tokens: usize, piece: usize) -> Vec<Vec<u32>> {
    let n = all.len();
    let piece = all.first().map_or(1, Vec::len).clamp(1, piece);
    let count = (tokens / piece).clamp(1, n.max(1));
    let len = tokens.div_ceil(count);
    (0..count.min(n))
        .map(|i| {
            let mut window = std::mem::take(&mut all[i * n / count]);
            window.truncate(len);
            window
        })
        .collect()
}

/// The most tokens of a model whose undisturbed rows and logits may be kept.
pub(super) fn most_tokens(parts: &[Arc<CpuExecutor>]) -> usize {
    let per_token = parts.first().map_or(0, |p| {
        let hp = p.hparams();
        4 * (hp.n_layer * hp.n_embd + hp.n_vocab)
    });
    MOST_BYTES / per_token.max(1)
}

/// A model, and what its rows are when nothing is disturbed.
pub(super) struct Undisturbed<'a> {
    pub(super) layers: Vec<(&'a CpuExecutor, &'a LayerTensors)>,
    last: &'a CpuExecutor,
    cache: KvCache,
    /// Values of the rows of one window.
    pub(super) window: usize,
    /// Values of the rows at the beginning of each window that are not scored.
    skip: usize,
    /// The rows of all windows in front of each layer.
    pub(super) before: Vec<Vec<f32>>,
    logits: Vec<f32>,
    /// Logarithm of the sum of exponentials of each row of `logits`.
    log_sums: Vec<f64>,
}

impl<'a> Undisturbed<'a> {
    /// Runs `windows`, of which the first `skip` rows are not scored.
    pub(super) fn run(
        parts: &'a [Arc<CpuExecutor>],
        windows: &[Vec<u32>],
        skip: usize,
    ) -> Result<Self, RunError> {
        let (Some(front), Some(last), Some(window)) =
            (parts.first(), parts.last(), windows.first())
        else {
            return Err(RunError::Request("there is no model to calibrate".into()));
        };
        let hp = front.hparams();
        let (width, len) = (hp.n_embd, window.len());
        let tokens = len * windows.len();
        let most = most_tokens(parts);
        if tokens > most {
            return Err(RunError::Usage(format!(
                "--sensitivity: {tokens} tokens of this model are too many to keep; {most} are the most"
            )));
        }
        let cache = front.layer_cache(len).ok_or_else(|| {
            RunError::Request(format!(
                "there is no memory for the keys and values of {len} tokens; lower --ctx"
            ))
        })?;
        let mut model = Self {
            layers: parts
                .iter()
                .flat_map(|p| p.part().blocks.iter().map(move |w| (&**p, w)))
                .collect(),
            last,
            cache,
            window: len * width,
            skip: skip.min(len.saturating_sub(1)) * width,
            before: Vec::new(),
            logits: Vec::new(),
            log_sums: Vec::new(),
        };
        let (mut rows, mut embedded) = (Vec::new(), Vec::new());
        for ids in windows {
            front.embed(ids, &mut embedded)?;
            rows.extend_from_slice(&embedded);
        }
        for l in 0..model.layers.len() {
            model.before.push(rows.clone());
            let own = model.layers[l].1;
            model.layer(l, own, &mut rows)?;
        }
        for rows in model.scored(&rows).chunks(HEAD_ROWS * width) {
            let mut logits = Vec::new();
            last.logits(rows, &mut logits)?;
            let sums = each(logits.chunks(hp.n_vocab), last.threads(), log_sum);
            model.log_sums.extend(sums);
            model.logits.extend(logits);
        }
        Ok(model)
    }

    /// The rows among those of all windows that are scored.
    fn scored(&self, rows: &[f32]) -> Vec<f32> {
        let windows = rows.chunks(self.window.max(1));
        windows.flat_map(|w| &w[self.skip..]).copied().collect()
    }

    /// Tokens that are scored.
    pub(super) fn tokens(&self) -> usize {
        self.log_sums.len()
    }

    /// Threads that compute.
    pub(super) fn threads(&self) -> usize {
        self.last.threads()
    }

    /// Nats per scored token of each of `windows`, which are those that were run.
    pub(super) fn surprise(&self, windows: &[Vec<u32>]) -> Vec<f64> {
        let hp = self.last.hparams();
        let scored = (self.window - self.skip) / hp.n_embd.max(1);
        let own = self.log_sums.chunks(scored.max(1)).enumerate();
        own.zip(windows)
            .map(|((w, sums), ids)| {
                let targets = &ids[(ids.len() + 1).saturating_sub(sums.len()).min(ids.len())..];
                let first = w * scored;
                let nats = sums.iter().zip(targets).enumerate().map(|(i, (sum, id))| {
                    let logits = &self.logits[(first + i) * hp.n_vocab..];
                    sum - logits.get(*id as usize).map_or(0.0, |l| f64::from(*l))
                });
                // The last row predicts what is outside of the window.
                nats.sum::<f64>() / targets.len().max(1) as f64
            })
            .collect()
    }

    /// Divergence when `rows` are those in front of layer `from`.
    pub(super) fn behind(&mut self, from: usize, rows: Vec<f32>) -> Result<f64, RunError> {
        let kls = self.behind_each(from, rows)?;
        Ok(kls.iter().sum::<f64>() / kls.len().max(1) as f64)
    }

    /// Likewise of each window.
    pub(super) fn behind_by_window(
        &mut self,
        from: usize,
        rows: Vec<f32>,
    ) -> Result<Vec<f64>, RunError> {
        let scored = (self.window - self.skip) / self.last.hparams().n_embd.max(1);
        let kls = self.behind_each(from, rows)?;
        let windows = kls.chunks(scored.max(1));
        Ok(windows
            .map(|w| w.iter().sum::<f64>() / w.len() as f64)
            .collect())
    }

    /// Likewise of each scored token.
    fn behind_each(&mut self, from: usize, mut rows: Vec<f32>) -> Result<Vec<f64>, RunError> {
        for l in from..self.layers.len() {
            let own = self.layers[l].1;
            self.layer(l, own, &mut rows)?;
        }
        self.divergences(&rows)
    }

    /// Layer `l` over the rows of all windows, with `weights` in place of its own.
    pub(super) fn layer(
        &mut self,
        l: usize,
        weights: &LayerTensors,
        rows: &mut [f32],
    ) -> Result<(), RunError> {
        let exec = self.layers[l].0;
        for rows in rows.chunks_mut(self.window) {
            self.cache.truncate(0);
            exec.forward_layer(l, weights, &mut self.cache, rows)?;
        }
        Ok(())
    }

    /// Divergence per unit of squared relative error in the matrix `kind` of `layer`.
    fn disturbed(&mut self, layer: usize, kind: usize) -> Result<f64, RunError> {
        let mut rows = self.before[layer].clone();
        let other = disturb(self.layers[layer].1, layer, kind, self.last.threads())?;
        self.layer(layer, &other, &mut rows)?;
        let sensitivity = self.behind(layer + 1, rows)? / ERROR;
        if sensitivity.is_finite() {
            // Rounding can take an equal pair a hair below zero.
            return Ok(sensitivity.max(0.0));
        }
        Err(RunError::Request(format!(
            "with a small error in {} of layer {layer} the model's logits are not finite; it is damaged",
            KINDS[kind]
        )))
    }

    /// Divergences of the distributions behind `rows` from the undisturbed ones.
    fn divergences(&self, rows: &[f32]) -> Result<Vec<f64>, RunError> {
        let hp = self.last.hparams();
        let (mut all, mut logits) = (Vec::new(), Vec::new());
        for (c, rows) in self.scored(rows).chunks(HEAD_ROWS * hp.n_embd).enumerate() {
            self.last.logits(rows, &mut logits)?;
            let first = c * HEAD_ROWS;
            let plain = self.logits[first * hp.n_vocab..].chunks(hp.n_vocab);
            let rows = plain
                .zip(&self.log_sums[first..])
                .zip(logits.chunks(hp.n_vocab));
            let kls = each(rows, self.last.threads(), |((p, p_sum), q)| {
                divergence(p, *p_sum, q)
            });
            // In order, so that a sum does not depend on the number of threads.
            all.extend(kls);
        }
        Ok(all)
    }
}

/// `f` of each item, in order, on `threads` threads.
pub(super) fn each<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    threads: usize,
    f: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let mut items: Vec<T> = items.collect();
    let per = items.len().div_ceil(threads.max(1)).max(1);
    let f = &f;
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        while !items.is_empty() {
            let rest = items.split_off(per.min(items.len()));
            let mine = std::mem::replace(&mut items, rest);
            workers.push(scope.spawn(move || mine.into_iter().map(f).collect::<Vec<R>>()));
        }
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect()
    })
}

/// ln Σ exp of logits.
fn log_sum(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l) - max)).sum();
    max + libm::log(sum)
}

/// D(p ‖ q) of two rows of logits, nats.
fn divergence(p: &[f32], p_sum: f64, q: &[f32]) -> f64 {
    let q_sum = log_sum(q);
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
        libm::exp(p) * (p - q)
    };
    p.iter().zip(q).map(term).sum()
}

/// The matrix of a layer that is the `kind`th of [`KINDS`].
pub(super) fn matrix_mut(weights: &mut LayerTensors, kind: usize) -> Option<&mut Tensor> {
    [
        &mut weights.attn_q,
        &mut weights.attn_k,
        &mut weights.attn_v,
        &mut weights.attn_output,
        &mut weights.ffn_gate,
        &mut weights.ffn_up,
        &mut weights.ffn_down,
    ]
    .into_iter()
    .nth(kind)
}

/// `weights` with an error in the matrix `kind`.
fn disturb(
    weights: &LayerTensors,
    layer: usize,
    kind: usize,
    threads: usize,
) -> Result<LayerTensors, RunError> {
    let mut out = weights.clone();
    let tensor = matrix_mut(&mut out, kind);
    if let Some(tensor) = tensor {
        let seed = mix((layer * KINDS.len() + kind) as u64);
        *tensor = with_error(tensor, seed, threads).ok_or_else(|| {
            RunError::Request(format!("tensor `{}` cannot be decoded", tensor.name))
        })?;
    }
    Ok(out)
}

/// `t` with each weight times 1 ± √[`ERROR`]. `None` when it cannot be decoded.
fn with_error(t: &Tensor, seed: u64, threads: usize) -> Option<Tensor> {
    let size = ERROR.sqrt() as f32;
    let mut values = vec![0_u8; t.rows.checked_mul(t.cols)?.checked_mul(4)?];
    if values.is_empty() {
        return None;
    }
    let per = t.rows.div_ceil(threads.max(1));
    let rows = t.data().chunks(per * t.row_bytes());
    let shares = rows.zip(values.chunks_mut(per * t.cols * 4)).enumerate();
    let done = each(shares, threads, |(share, (from, to))| {
        let mut row = vec![0.0; t.cols];
        let rows = from
            .chunks(t.row_bytes())
            .zip(to.chunks_mut(t.cols * 4))
            .enumerate();
        for (r, (from, to)) in rows {
            if dequantize_row(t.block_type, from, &mut row).is_err() {
                return false;
            }
            let seed = mix(seed ^ (share * per + r) as u64);
            let (words, _) = to.as_chunks_mut::<4>();
            for (at, (x, to)) in row.chunks(64).zip(words.chunks_mut(64)).enumerate() {
                let mut signs = mix(seed.wrapping_add(at as u64));
                for (x, to) in x.iter().zip(to) {
                    let factor = if signs & 1 == 0 {
                        1.0 + size
                    } else {
                        1.0 - size
                    };
                    signs >>= 1;
                    *to = (x * factor).to_le_bytes();
                }
            }
        }
        true
    });
    if done.contains(&false) {
        return None;
    }
    t.with_values(values)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014), of `x` one step on.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_from_all_over() {
        let text: Vec<Vec<u32>> = (0..4).map(|w| vec![w; 200]).collect();
        let lens = |t: usize| {
            let picked = pick(text.clone(), t);
            picked.iter().map(|w| (w[0], w.len())).collect::<Vec<_>>()
        };
        assert_eq!(lens(256), [(0, 128), (2, 128)]);
        assert_eq!(lens(100), [(0, 100)]);
        assert_eq!(pick(vec![vec![0; 64]; 8], 256).len(), 4);
        assert_eq!(lens(600), [(0, 150), (1, 150), (2, 150), (3, 150)]);
        assert_eq!(lens(9000), [(0, 200), (1, 200), (2, 200), (3, 200)]);
        assert!(pick(Vec::new(), 256).is_empty());
    }

    #[test]
    fn divergence_of_known_distributions() {
        let (p, q) = ([0.0, 3_f32.ln()], [0.0, 0.0]);
        let sum = log_sum(&p);
        assert!((sum - 4_f64.ln()).abs() < 1e-7, "{sum}");
        // ¼ ln(¼ / ½) + ¾ ln(¾ / ½)
        let want = 0.25 * 0.5_f64.ln() + 0.75 * 1.5_f64.ln();
        assert!((divergence(&p, sum, &q) - want).abs() < 1e-7);
        assert_eq!(divergence(&p, sum, &p), 0.0);
    }

    #[test]
    fn each_keeps_the_order() {
        for threads in [0, 1, 3, 7, 40] {
            let out = each(0..10, threads, |i| f64::from(i) * 2.0);
            assert_eq!(out, (0..10).map(|i| f64::from(i) * 2.0).collect::<Vec<_>>());
        }
        assert!(each(std::iter::empty::<u8>(), 2, |_| 0.0).is_empty());
    }
}
