//! Running a range of layers.
//!
//! A *half* is a function from rows to rows (or to logits) over a layer range, with its own KV
//! cache. Edge, cloud and whole model are the same executor over another range.

pub mod cpu;
mod embed;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(not(feature = "gpu"))]
#[path = "no_gpu.rs"]
pub mod gpu;
mod memory;
#[cfg(test)]
pub(crate) mod noise;
mod rope;

use std::ops::Range;

use formats::model::KvType;

use crate::cache::KvCache;
use crate::model::{HParams, ModelPart};
use crate::text::argmax;

/// Runs one range of layers of one model. Shared by all sequences; each sequence brings its own
/// [`KvCache`].
pub trait Executor: Send + Sync {
    /// The whole model's shape.
    fn hparams(&self) -> &HParams;

    /// The layers this executor holds.
    fn layers(&self) -> Range<usize>;

    /// Whether the processor computes, and no device that has to be waited for.
    fn is_on_host(&self) -> bool {
        false
    }

    /// In what form its caches keep keys and values.
    fn kv_type(&self) -> KvType {
        KvType::F16
    }

    /// Bytes of a cache for up to `n_ctx` positions, in whole pages of 16 (a card may take fewer).
    fn cache_bytes(&self, n_ctx: usize) -> usize {
        self.hparams()
            .kv_bytes(self.kv_type(), &self.layers(), n_ctx)
    }

    /// An empty cache for up to `n_ctx` positions of this executor's layers.
    ///
    /// # Errors
    /// When `n_ctx` is zero or more than the memory allows.
    fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError>;

    /// Bytes that caches may take where this executor keeps them; `None` where nobody tells.
    fn cache_memory(&self) -> Option<usize> {
        memory::available()
    }

    /// Embeds `ids` into `rows` (`ids.len() × n_embd`, row after row).
    ///
    /// # Errors
    /// When this half holds no embedding or an id is outside the vocabulary.
    fn embed(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<(), ExecError>;

    /// Runs the layers in place over `rows` (`n × n_embd`), which stand at positions
    /// `cache.len()..cache.len() + n`, and advances the cache by `n`.
    ///
    /// # Errors
    /// When the context is full or `rows` is not whole rows; the cache is then unchanged.
    fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError>;

    /// [`forward`](Self::forward) for several sequences, in one pass where they fit: weights are then
    /// read once for all. A sequence's result does not depend on the others.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), at the first sequence that fails.
    fn forward_batch(&self, sequences: &mut [Sequence<'_>]) -> Result<(), ExecError> {
        sequences
            .iter_mut()
            .try_for_each(|s| self.forward(s.cache, s.rows))
    }

    /// Final norm and head: `rows` (`n × n_embd`) to `logits` (`n × n_vocab`).
    ///
    /// # Errors
    /// When this half holds no head.
    fn logits(&self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError>;

    /// [`forward`](Self::forward), then the [`logits`](Self::logits) of the last `last` rows. What
    /// `rows` holds afterwards is of no use: a device need not send it back.
    ///
    /// # Errors
    /// As both.
    fn forward_logits(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        last: usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecError> {
        self.forward(cache, rows)?;
        let from = rows.len().saturating_sub(last * self.hparams().n_embd);
        self.logits(&rows[from..], logits)
    }

    /// [`forward`](Self::forward), then the likeliest token after the last row, the lowest id among
    /// equals: all that greedy decoding needs of the logits, so a device need not send them. `logits` is room for them
    /// where they come all the same.
    ///
    /// # Errors
    /// As [`forward_logits`](Self::forward_logits).
    fn forward_argmax(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        logits: &mut Vec<f32>,
    ) -> Result<u32, ExecError> {
        self.forward_logits(cache, rows, 1, logits)?;
        Ok(argmax(logits))
    }
}

/// Rows of one sequence, and its cache.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// The cache.
    pub cache: &'a mut KvCache,
    /// The rows (`n × n_embd`), changed in place.
    pub rows: &'a mut [f32],
}

/// Why a half could not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// More positions than the cache has.
    #[error(
        "the context is full: {used} of {n_ctx} positions used and {more} more asked for; raise it with -c or shorten the prompt"
    )]
    ContextFull {
        /// Positions in use.
        used: usize,
        /// Positions there are.
        n_ctx: usize,
        /// Positions asked for.
        more: usize,
    },
    /// An id that is no token.
    #[error("token id {id} is outside the vocabulary of {n_vocab}")]
    BadToken {
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        n_vocab: usize,
    },
    /// Rows of the wrong size.
    #[error("{len} values are not whole rows of {width}")]
    BadRows {
        /// Values given.
        len: usize,
        /// Width of a row.
        width: usize,
    },
    /// This half lacks a part.
    #[error("this half (layers {first}..{end}) holds no {what}")]
    Missing {
        /// `token embedding` or `head`.
        what: &'static str,
        /// First layer here.
        first: usize,
        /// End layer here.
        end: usize,
    },
    /// No memory for a cache.
    #[error("cannot hold a KV cache of {n_ctx} positions ({bytes} bytes); lower -c")]
    CacheTooLarge {
        /// Positions asked for.
        n_ctx: usize,
        /// Bytes they need.
        bytes: usize,
    },
    /// Heads that are not whole blocks.
    #[error(
        "keys and values in {kv_type} are blocks of 32, and heads of {head_dim} values are not whole ones; use --kv-type f16"
    )]
    KvBlocks {
        /// The form asked for.
        kv_type: KvType,
        /// Values of a head.
        head_dim: usize,
    },
    /// A cache that another kind of executor made.
    #[error("this cache belongs to another device than the layers {first}..{end}")]
    OtherCache {
        /// First layer here.
        first: usize,
        /// End layer here.
        end: usize,
    },
    /// A pass that another session was to run with its own, which did not end.
    #[error("the pass that these rows went with was not finished; the server's log says why")]
    Abandoned,
    /// The graphics processor cannot do it, or failed.
    #[error(transparent)]
    Gpu(#[from] gpu::GpuError),
}

/// The error of a half without `what`.
fn missing(part: &ModelPart, what: &'static str) -> ExecError {
    ExecError::Missing {
        what,
        first: part.layers.start,
        end: part.layers.end,
    }
}
