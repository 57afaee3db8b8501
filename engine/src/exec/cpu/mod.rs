//! The CPU executor.
//!
//! Weights are multiplied as they are, from the memory map or, the usual way for products in whole numbers,
//! from a copy in the order in which they are read (`repack`). Activations are f32; keys and
//! values are f16, q8_0 or q4_0. Every sum runs in one order, that of [`lanes`] or of [`kv_floats`], so the result does not depend on
//! the instruction set, the number of threads, or how a prompt is cut into chunks.

mod attention;
#[cfg(test)]
mod attention_tests;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bandwidth;
mod clock;
mod forward;
mod hadamard;
mod integer;
mod isa;
mod kv_floats;
mod lanes;
mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
mod observe;
mod placement;
mod pool;
mod repack;
mod scalar;
#[cfg(test)]
mod tests;

use std::ops::Range;

use arrayvec::ArrayVec;
use formats::model::KvType;

pub use clock::Phase;
pub use isa::{Isa, IsaError};
pub use matmul::Activations;
pub use observe::{Observer, Rows, Site};
pub use repack::RepackError;

use self::clock::Clock;
use self::forward::{Part, Scratch, Span};
use self::matmul::{Math, matmul};
use self::pool::Pool;
use super::memory;
use super::rope::RopeTable;
use super::{ExecError, Executor, Sequence, embed, missing};
use crate::cache::{KvCache, KvShape};
use crate::model::{HParams, LayerTensors, ModelPart};

/// Rows that go through the layers at once; a longer chunk is run in pieces, so that scratch
/// memory is bounded and activations stay in cache.
const MAX_ROWS: usize = 128;

/// Runs a [`ModelPart`] on the processor.
pub struct CpuExecutor {
    part: ModelPart,
    isa: Isa,
    activations: Activations,
    kv_type: KvType,
    /// Its threads, and the buffers of a pass, which the one that runs has.
    pool: Pool<Scratch>,
    rope: RopeTable,
    clock: Clock,
}

impl CpuExecutor {
    /// An executor with `threads` threads, which multiplies with activations as they are.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(part: ModelPart, threads: usize, isa: Isa) -> std::io::Result<Self> {
        let rope = RopeTable::new(&part.hparams.rope);
        Ok(Self {
            part,
            isa,
            activations: Activations::F32,
            kv_type: KvType::F16,
            pool: Pool::with(threads, Scratch::default())?,
            rope,
            clock: Clock::default(),
        })
    }

    /// The same with other activations.
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> Self {
        self.activations = activations;
        self
    }

    /// Lays the weights out in the order in which they are read, which costs a copy and makes decoding faster;
    /// to be called when it is known how products are computed. `reserve` bytes are left for others, keys and
    /// values among them. Returns the bytes of the copy; products in floats read rows and need none.
    ///
    /// # Errors
    /// Without the memory for it: then they are read where they are.
    pub fn repack(&mut self, reserve: usize) -> Result<usize, RepackError> {
        if self.activations == Activations::F32 {
            return Ok(0);
        }
        let (threads, free) = (self.pool.threads(), memory::available());
        repack::repack(&mut self.part, self.isa, threads, reserve, free)
    }

    /// The same with keys and values in another form.
    ///
    /// # Errors
    /// When the model's heads are not whole blocks.
    pub fn with_kv_type(mut self, kv_type: KvType) -> Result<Self, ExecError> {
        let head_dim = self.part.hparams.head_dim;
        if !kv_type.fits(head_dim) {
            return Err(ExecError::KvBlocks { kv_type, head_dim });
        }
        self.kv_type = kv_type;
        Ok(self)
    }

    /// An empty cache for one layer; `None` without the memory for it.
    pub(crate) fn layer_cache(&self, n_ctx: usize) -> Option<KvCache> {
        KvCache::new(1, n_ctx, KvShape::of(&self.part.hparams, self.kv_type))
    }

    /// Starts to sum up the time of phases.
    pub fn start_clock(&self) {
        self.clock.start();
    }

    /// Stops it: milliseconds of each phase since.
    pub fn stop_clock(&self) -> Vec<(Phase, f64)> {
        self.clock.stop()
    }

    /// GB a second that the executor's threads read from memory together; `None` where there is
    /// no memory to measure it.
    pub fn memory_gb_per_s(&self) -> Option<f64> {
        bandwidth::read_gb_per_s(&self.pool)
    }

    fn math(&self) -> Math {
        Math {
            isa: self.isa,
            activations: self.activations,
        }
    }

    /// The model part it runs.
    pub fn part(&self) -> &ModelPart {
        &self.part
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The number of rows in `len` values.
    fn rows(&self, len: usize) -> Result<usize, ExecError> {
        let width = self.part.hparams.n_embd;
        if !len.is_multiple_of(width) {
            return Err(ExecError::BadRows { len, width });
        }
        Ok(len / width)
    }

    /// [`Executor::forward`] with somebody looking on.
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub fn forward_observed(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        seen: &mut impl Observer,
    ) -> Result<(), ExecError> {
        let span = Span {
            first: self.part.layers.start,
            blocks: &self.part.blocks,
        };
        self.run(span, cache, rows, seen)
    }

    /// Runs one layer in place over `rows`, with weights that need not be the model's own but
    /// have the shapes of it. `cache` covers this layer only.
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub(crate) fn forward_layer(
        &self,
        layer: usize,
        weights: &LayerTensors,
        cache: &mut KvCache,
        rows: &mut [f32],
    ) -> Result<(), ExecError> {
        let span = Span {
            first: layer,
            blocks: std::slice::from_ref(weights),
        };
        self.run(span, cache, rows, &mut ())
    }

    fn run(
        &self,
        span: Span<'_>,
        cache: &mut KvCache,
        rows: &mut [f32],
        seen: &mut impl Observer,
    ) -> Result<(), ExecError> {
        self.fits(cache, rows)?;
        let width = self.part.hparams.n_embd;
        for rows in rows.chunks_mut(MAX_ROWS * width) {
            let n = rows.len() / width;
            let parts = &mut [Part { cache, n }];
            let mut turn = self.pool.session();
            let (session, scratch) = turn.parts();
            forward::run(self, span, session, scratch, parts, rows, seen);
        }
        Ok(())
    }

    /// Whether `rows` are whole, and `cache` is this executor's and has room for them.
    fn fits(&self, cache: &KvCache, rows: &[f32]) -> Result<(), ExecError> {
        let n = self.rows(rows.len())?;
        let shape = KvShape::of(&self.part.hparams, cache.kv_type());
        if cache.host_shape() != Some(shape) {
            return Err(ExecError::OtherCache {
                first: self.part.layers.start,
                end: self.part.layers.end,
            });
        }
        if cache.len() + n > cache.n_ctx() {
            return Err(ExecError::ContextFull {
                used: cache.len(),
                n_ctx: cache.n_ctx(),
                more: n,
            });
        }
        Ok(())
    }

    /// Runs the rows of `sequences`, no more than [`MAX_ROWS`], in one pass.
    fn together(&self, sequences: &mut [Sequence<'_>]) {
        if sequences.iter().all(|s| s.rows.is_empty()) {
            return;
        }
        let span = Span {
            first: self.part.layers.start,
            blocks: &self.part.blocks,
        };
        let width = self.part.hparams.n_embd;
        let mut turn = self.pool.session();
        let (session, scratch) = turn.parts();
        let mut all = std::mem::take(&mut scratch.batch);
        all.clear();
        // Each has a row at least.
        let mut parts = ArrayVec::<_, MAX_ROWS>::new();
        for s in sequences.iter_mut().filter(|s| !s.rows.is_empty()) {
            all.extend_from_slice(s.rows);
            let n = s.rows.len() / width;
            parts.push(Part { cache: s.cache, n });
        }
        forward::run(self, span, session, scratch, &mut parts, &mut all, &mut ());
        drop(parts);
        let mut rest = &all[..];
        for s in sequences {
            let (own, others) = rest.split_at(s.rows.len());
            s.rows.copy_from_slice(own);
            rest = others;
        }
        scratch.batch = all;
    }

    /// Shows `seen` what the head would be multiplied with; the product itself is not made.
    ///
    /// # Errors
    /// When this half holds no head.
    pub fn observe_head(&self, rows: &[f32], seen: &mut impl Observer) -> Result<(), ExecError> {
        let (norm, _) = self
            .part
            .head
            .as_ref()
            .ok_or_else(|| missing(&self.part, "head"))?;
        self.rows(rows.len())?;
        let hp = &self.part.hparams;
        let (width, eps) = (hp.n_embd, hp.rms_eps);
        for rows in rows.chunks(MAX_ROWS * width) {
            let mut turn = self.pool.session();
            let (session, scratch) = turn.parts();
            let x = &mut scratch.normed;
            forward::norm(session, self.isa, rows, width, norm, eps, x);
            seen.input(hp.n_layer, Site::Head, Rows::of(x));
        }
        Ok(())
    }
}

impl Executor for CpuExecutor {
    fn hparams(&self) -> &HParams {
        &self.part.hparams
    }

    fn layers(&self) -> Range<usize> {
        self.part.layers.clone()
    }

    fn is_on_host(&self) -> bool {
        true
    }

    fn kv_type(&self) -> KvType {
        self.kv_type
    }

    fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
        let bytes = self.cache_bytes(n_ctx);
        if n_ctx == 0 {
            return Err(ExecError::CacheTooLarge { n_ctx, bytes });
        }
        let shape = KvShape::of(&self.part.hparams, self.kv_type);
        KvCache::new(self.part.layers.len(), n_ctx, shape)
            .ok_or(ExecError::CacheTooLarge { n_ctx, bytes })
    }

    fn embed(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<(), ExecError> {
        embed::rows(&self.part, ids, rows)
    }

    fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError> {
        self.forward_observed(cache, rows, &mut ())
    }

    fn forward_batch(&self, sequences: &mut [Sequence<'_>]) -> Result<(), ExecError> {
        for s in &*sequences {
            self.fits(s.cache, s.rows)?;
        }
        let most = MAX_ROWS * self.part.hparams.n_embd;
        let mut rest = sequences;
        while let Some(first) = rest.first() {
            let (mut len, mut n) = (first.rows.len(), 1);
            while let Some(next) = rest.get(n).map(|s| s.rows.len())
                && len + next <= most
            {
                len += next;
                n += 1;
            }
            let (group, others) = rest.split_at_mut(n);
            match group {
                [one] => self.forward(one.cache, one.rows)?,
                _ => self.together(group),
            }
            rest = others;
        }
        Ok(())
    }

    fn logits(&self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
        let (norm, head) = self
            .part
            .head
            .as_ref()
            .ok_or_else(|| missing(&self.part, "head"))?;
        let n = self.rows(rows.len())?;
        logits.clear();
        logits.resize(n * head.rows, 0.0);
        let (width, eps) = (self.part.hparams.n_embd, self.part.hparams.rms_eps);
        let pieces = rows
            .chunks(MAX_ROWS * width)
            .zip(logits.chunks_mut(MAX_ROWS * head.rows));
        for (rows, logits) in pieces {
            let mut turn = self.pool.session();
            let (session, scratch) = turn.parts();
            let x = &mut scratch.normed;
            let mut lap = self.clock.lap();
            forward::norm(session, self.isa, rows, width, norm, eps, x);
            lap.mark(Phase::Norm);
            matmul(session, self.math(), head, x, logits, head.rows);
            lap.mark(Phase::Head);
        }
        Ok(())
    }
}
