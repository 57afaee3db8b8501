//! The generation loop, the same for every role.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::back::Back;
use super::controller::{Controller, LinkReport};
use super::error::RunError;
use crate::cache::KvCache;
use crate::exec::{ExecError, Executor};
use crate::link::{LinkError, TokenOut};
use crate::text::{StreamDecoder, Tokenizer};

/// How far and in which pieces.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to generate at most; `None` until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// Rows of a prompt that travel together: small enough that both halves work at once.
    pub chunk: usize,
    /// Whether an end-of-generation token stops.
    pub ignore_eos: bool,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model ended it.
    EndOfGeneration,
    /// As many tokens as asked for.
    Length,
    /// No position is left.
    Context,
    /// The user interrupted.
    Interrupted,
}

/// The likeliest tokens at one place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprobs {
    /// The token taken.
    pub id: u32,
    /// Its natural log probability.
    pub logprob: f32,
    /// The likeliest, best first.
    pub top: Vec<TopLogprob>,
}

/// One of the likeliest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TopLogprob {
    /// The token.
    pub id: u32,
    /// Its natural log probability.
    pub logprob: f32,
}

/// What a generation was and what it cost.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// The text.
    pub text: String,
    /// The generated ids, an end-of-generation token included.
    pub ids: Vec<u32>,
    /// With `--top-logprobs`: one entry per id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub stop: Stop,
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// From the start to the first token.
    pub ttft_ms: f64,
    /// Tokens after the first, by the time they took.
    pub tokens_per_s: f64,
    /// Frame bytes per decoded token (one-row frames), 0 when nothing is encoded.
    pub uplink_bytes_per_token: f64,
    /// Frame bytes per prompt token (frames of a chunk of rows).
    pub prompt_uplink_bytes_per_token: f64,
    /// Embedding, front layers and encoding, per decoded token.
    pub edge_ms_per_token: f64,
    /// Back layers, head and sampling, per decoded token.
    pub cloud_ms_per_token: f64,
    /// The rest of a step: the way there and back. 0 in one process.
    pub rtt_ms: f64,
    /// How rows were encoded, `auto` resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// What the link was seen to do, and the codecs that the frames of the session travelled in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkReport>,
}

/// One sequence: the front here, the back wherever it is.
pub struct Generator<B> {
    front: Arc<dyn Executor>,
    cache: KvCache,
    back: B,
    rows: Vec<f32>,
}

impl<B: Back> Generator<B> {
    /// A sequence over `front` and `back`, with as many positions as both have.
    ///
    /// # Errors
    /// When there is no memory for the cache.
    pub fn new(front: Arc<dyn Executor>, back: B, n_ctx: usize) -> Result<Self, ExecError> {
        let cache = front.new_cache(n_ctx.min(back.n_ctx()))?;
        Ok(Self {
            front,
            cache,
            back,
            rows: Vec::new(),
        })
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Positions there are.
    pub fn n_ctx(&self) -> usize {
        self.cache.n_ctx()
    }

    /// Forgets positions from `len` on, in both halves.
    ///
    /// # Errors
    /// When the back is gone.
    pub fn rollback(&mut self, len: usize) -> Result<(), RunError> {
        if len < self.cache.len() {
            self.cache.truncate(len);
            self.back.truncate(len as u32)?;
        }
        Ok(())
    }

    /// The back, to look at.
    pub fn back(&self) -> &B {
        &self.back
    }

    /// The back, to close it.
    pub fn into_back(self) -> B {
        self.back
    }

    /// Runs `ids` and hands their rows on; returns the time that the front side took.
    fn step(&mut self, ids: &[u32], want_token: bool) -> Result<Duration, RunError> {
        let begun = Instant::now();
        let first = self.cache.len() as u32;
        self.front.embed(ids, &mut self.rows)?;
        self.front.forward(&mut self.cache, &mut self.rows)?;
        let front = begun.elapsed();
        Ok(front + self.back.rows(first, &self.rows, want_token)?)
    }

    /// The next token, `None` when the user interrupted the wait for it.
    fn token(&mut self) -> Result<Option<TokenOut>, RunError> {
        match self.back.token() {
            Ok(token) => Ok(Some(token)),
            Err(RunError::Link(LinkError::Interrupted { .. })) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Runs `prompt` after what the sequence holds and generates; `print` gets text as it is made.
    ///
    /// # Errors
    /// When the prompt does not fit the context, or a half fails. What was printed stands.
    pub fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &GenerateOptions,
        stop: &AtomicBool,
        print: &mut dyn FnMut(&str),
    ) -> Result<Generation, RunError> {
        if prompt.is_empty() {
            return Err(RunError::Request(
                "the prompt is empty; give it at least one token".into(),
            ));
        }
        if self.cache.len() + prompt.len() > self.cache.n_ctx() {
            return Err(ExecError::ContextFull {
                used: self.cache.len(),
                n_ctx: self.cache.n_ctx(),
                more: prompt.len(),
            }
            .into());
        }
        self.back.begin();
        let start = Instant::now();
        let mut out = Generation {
            text: String::new(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            stop: Stop::Length,
            prompt_tokens: prompt.len(),
            ttft_ms: 0.0,
            tokens_per_s: 0.0,
            uplink_bytes_per_token: 0.0,
            prompt_uplink_bytes_per_token: 0.0,
            edge_ms_per_token: 0.0,
            cloud_ms_per_token: 0.0,
            rtt_ms: 0.0,
            codec: self.back.codec().map(|c| c.to_string()),
            link: None,
        };
        if options.max_tokens == Some(0) {
            return Ok(out);
        }
        let sent_before = self.back.uplink_bytes();
        let chunk = options.chunk.clamp(1, self.back.max_rows());
        let chunks = prompt.len().div_ceil(chunk);
        for (i, ids) in prompt.chunks(chunk).enumerate() {
            if stop.load(Ordering::Relaxed) {
                out.stop = Stop::Interrupted;
                return Ok(out);
            }
            self.step(ids, i + 1 == chunks)?;
        }
        let Some(mut token) = self.token()? else {
            out.stop = Stop::Interrupted;
            return Ok(out);
        };
        out.ttft_ms = ms(start.elapsed());
        let sent_prompt = self.back.uplink_bytes();
        let (mut edge, mut cloud, mut total) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut steps = 0;
        let mut decoder = StreamDecoder::new(tokenizer);
        loop {
            out.ids.push(token.id);
            if let Some(logprob) = token.logprob {
                let top = token.top_logprobs.iter();
                out.logprobs.push(TokenLogprobs {
                    id: token.id,
                    logprob,
                    top: top
                        .map(|(id, logprob)| TopLogprob {
                            id: *id,
                            logprob: *logprob,
                        })
                        .collect(),
                });
            }
            if tokenizer.is_eog(token.id) && !options.ignore_eos {
                out.stop = Stop::EndOfGeneration;
                break;
            }
            let piece = decoder.push(token.id);
            if !piece.is_empty() {
                print(piece);
                out.text.push_str(piece);
            }
            if options.max_tokens.is_some_and(|n| out.ids.len() >= n) {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                out.stop = Stop::Interrupted;
                break;
            }
            if self.cache.len() + 1 > self.cache.n_ctx() {
                out.stop = Stop::Context;
                break;
            }
            let begun = Instant::now();
            let here = self.step(&[token.id], true)?;
            let Some(next) = self.token()? else {
                out.stop = Stop::Interrupted;
                break;
            };
            token = next;
            total += begun.elapsed();
            edge += here;
            cloud += token.cloud;
            steps += 1;
        }
        let rest = decoder.finish();
        if !rest.is_empty() {
            print(rest);
            out.text.push_str(rest);
        }
        if steps > 0 {
            let decoded = f64::from(steps);
            out.tokens_per_s = decoded / total.as_secs_f64();
            out.uplink_bytes_per_token = (self.back.uplink_bytes() - sent_prompt) as f64 / decoded;
            out.edge_ms_per_token = ms(edge) / decoded;
            out.cloud_ms_per_token = ms(cloud) / decoded;
            out.rtt_ms = ms(total.saturating_sub(edge + cloud)) / decoded;
        }
        out.link = self.back.controller().map(Controller::report);
        out.prompt_uplink_bytes_per_token =
            (sent_prompt - sent_before) as f64 / prompt.len() as f64;
        Ok(out)
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}
