//! The back half of a generation: boundary rows in, tokens out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::wire::Codec;

use super::controller::Controller;
use super::error::RunError;
use crate::cache::KvCache;
use crate::exec::{ExecError, Executor};
use crate::link::{Sampled, TokenOut};
use crate::text::{Sampler, SamplingParams, top_logprobs};

/// Where the front hands its rows.
pub trait Back {
    /// A generation begins: what was waited for before is nobody's time.
    fn begin(&mut self) {}

    /// Takes rows that stand at `first..`; with `want_token` the token after the last row is
    /// computed, to be fetched by [`token`](Self::token). May return before it is done. Returns the
    /// time that encoding took: it is the edge's, all that follows is not.
    ///
    /// # Errors
    /// Any; the generation is over then.
    fn rows(&mut self, first: u32, rows: &[f32], want_token: bool) -> Result<Duration, RunError>;

    /// Waits for the next token asked for.
    ///
    /// # Errors
    /// Any; the generation is over then.
    fn token(&mut self) -> Result<TokenOut, RunError>;

    /// Forgets positions from `len` on.
    ///
    /// # Errors
    /// Any; the generation is over then.
    fn truncate(&mut self, len: u32) -> Result<(), RunError>;

    /// Bytes of frames sent so far; 0 when nothing is encoded.
    fn uplink_bytes(&self) -> u64;

    /// How rows are encoded, `auto` resolved; `None` when they are not.
    fn codec(&self) -> Option<Codec>;

    /// What chooses the codec of each frame, where there is a link.
    fn controller(&self) -> Option<&Controller> {
        None
    }

    /// Positions there is room for.
    fn n_ctx(&self) -> usize;

    /// Rows that one call of [`rows`](Self::rows) may carry.
    fn max_rows(&self) -> usize;
}

/// How a session samples.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// Sampling parameters.
    pub sampling: SamplingParams,
    /// How many of the likeliest tokens come with each token; 0 for none.
    pub top_logprobs: usize,
    /// The last prompt ids, for the repeat penalty.
    pub tail_ids: Vec<u32>,
}

/// Layers, head and sampler of one sequence. The cloud process holds one per edge; a process that
/// runs both halves holds one too.
pub struct BackSession {
    exec: Arc<dyn Executor>,
    /// `None` when another executor has run all layers and only norm and head are left.
    cache: Option<KvCache>,
    len: usize,
    sampler: Sampler,
    top_logprobs: usize,
    recent: Vec<u32>,
    /// Positions of the sampled tokens at the end of `recent`.
    sampled_at: Vec<usize>,
    logits: Vec<f32>,
}

impl BackSession {
    /// A session over the layers and the head of `exec`.
    ///
    /// # Errors
    /// When there is no memory for the cache.
    pub fn new(
        exec: Arc<dyn Executor>,
        n_ctx: usize,
        options: SessionOptions,
    ) -> Result<Self, ExecError> {
        let cache = exec.new_cache(n_ctx)?;
        Ok(Self::with_cache(exec, Some(cache), options))
    }

    /// A session over the head of `exec` alone: the rows have passed all layers.
    pub fn head_only(exec: Arc<dyn Executor>, options: SessionOptions) -> Self {
        Self::with_cache(exec, None, options)
    }

    fn with_cache(
        exec: Arc<dyn Executor>,
        cache: Option<KvCache>,
        options: SessionOptions,
    ) -> Self {
        Self {
            exec,
            cache,
            len: 0,
            sampler: Sampler::new(options.sampling),
            top_logprobs: options.top_logprobs,
            recent: options.tail_ids,
            sampled_at: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Runs `rows` (changed in place) and samples what follows the last one if `want_token`.
    ///
    /// # Errors
    /// When the context is full.
    pub fn run(
        &mut self,
        rows: &mut [f32],
        want_token: bool,
    ) -> Result<Option<Sampled>, ExecError> {
        let width = self.exec.hparams().n_embd;
        let want_token = want_token && rows.len() >= width;
        // Nobody wants to see logits: the device need not send them.
        let id_only = self.top_logprobs == 0 && self.sampler.is_argmax(&self.recent);
        let mut likeliest = None;
        match (&mut self.cache, want_token) {
            (Some(cache), true) if id_only => {
                likeliest = Some(self.exec.forward_argmax(cache, rows, &mut self.logits)?);
            }
            (Some(cache), true) => {
                self.exec.forward_logits(cache, rows, 1, &mut self.logits)?;
            }
            (Some(cache), false) => self.exec.forward(cache, rows)?,
            (None, true) => {
                let last = &rows[rows.len() - width..];
                self.exec.logits(last, &mut self.logits)?;
            }
            (None, false) => {}
        }
        self.len += rows.len() / width;
        if !want_token {
            return Ok(None);
        }
        let id = likeliest.unwrap_or_else(|| {
            let at = self.len as u64;
            self.sampler.sample(&self.logits, at, &self.recent)
        });
        self.recent.push(id);
        self.sampled_at.push(self.len);
        let mut sampled = Sampled {
            id,
            logprob: None,
            top_logprobs: Vec::new(),
        };
        if self.top_logprobs > 0 {
            sampled.top_logprobs = top_logprobs(&self.logits, self.top_logprobs);
            sampled.logprob = Some(logprob_of(&self.logits, id));
        }
        Ok(Some(sampled))
    }

    /// Forgets positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if let Some(cache) = &mut self.cache {
            cache.truncate(len);
        }
        self.len = self.len.min(len);
        // A token that is rolled back was never said.
        while self.sampled_at.last().is_some_and(|at| *at >= len) {
            self.sampled_at.pop();
            self.recent.pop();
        }
    }
}

/// Natural log of the probability of `id`.
fn logprob_of(logits: &[f32], id: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(l - max))).sum();
    let own = logits
        .get(id as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    (f64::from(own - max) - libm::log(sum)) as f32
}

/// A token with the time since `start` as compute time.
pub(super) fn token_out(sampled: Sampled, position: usize, start: Instant) -> TokenOut {
    TokenOut {
        id: sampled.id,
        position: position as u32,
        logprob: sampled.logprob,
        top_logprobs: sampled.top_logprobs,
        cloud: start.elapsed(),
    }
}
