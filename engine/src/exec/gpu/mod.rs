//! The executor on a graphics processor: WGSL kernels through wgpu (Vulkan, Metal, D3D12).
//!
//! Weights lie on the device in GGML's own blocks, cut into aligned planes (`shaders::repack`);
//! activations are f32, keys and values f16. A pass of all layers of a half is one submission, and nothing
//! comes back but the rows that travel, or logits.
//!
//! Sums run in a fixed order, so equal runs give equal bits; the order is not the one of
//! [`cpu`](super::cpu), and a prompt in other chunks may be summed in another.

mod adapter;
mod bandwidth;
mod device;
mod error;
mod forward;
mod kv;
mod ops;
mod pipeline_cache;
mod record;
mod report;
mod shapes;
#[cfg(test)]
mod tests;
mod variants;
mod wanted;
mod weights;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use adapter::Adapter;
pub use bandwidth::copy_gb_per_s;
pub use device::Gpu;
pub use error::GpuError;
pub use report::{AdapterKind, AdapterReport, KernelTime, ShapeOptions, ShapeReport, ShapeTime};
pub use shapes::bench_shapes;
pub use wanted::{Names, UnknownVariant, Variants};

use self::forward::{ALL, Buffers, HEAD, Head, Layers, MAX_LOGITS, MAX_ROWS};
use self::kv::GpuKv;
use self::ops::attention::part_of;
use self::ops::matrix::FEW;
use self::record::{Clock, Pass, Recorder, Slots};
use self::weights::{Upload, device_bytes};
use super::rope::RopeTable;
use super::{ExecError, Executor, Sequence, embed, missing};
use crate::cache::KvCache;
use crate::model::{HParams, LayerTensors, ModelPart};
use crate::text::argmax;

/// Runs a [`ModelPart`] on a device.
#[derive(Debug)]
pub struct GpuExecutor {
    id: u64,
    gpu: Arc<Gpu>,
    part: ModelPart,
    rope: RopeTable,
    layers: Layers,
    head: Option<Head>,
    /// What a pass works in; one pass at a time.
    work: Mutex<Work>,
    device_bytes: u64,
    /// Weights of a layer, the largest.
    layer_weights: u64,
}

#[derive(Debug)]
struct Work {
    buffers: Buffers,
    slots: Slots,
    turns: Vec<(f32, f32)>,
    angles: Vec<[f32; 2]>,
    flat: Vec<f32>,
    clock: Option<Clock>,
}

/// What a submission brings back.
enum Wanted<'a> {
    /// All rows, to where they came from.
    Rows,
    /// Logits of the last `n` rows, appended.
    Logits { n: usize, to: &'a mut Vec<f32> },
    /// The likeliest token after the last row.
    Id(&'a mut u32),
}

impl Wanted<'_> {
    /// Rows that go to the head.
    fn head_rows(&self) -> usize {
        match self {
            Self::Rows => 0,
            Self::Logits { n, .. } => *n,
            Self::Id(_) => 1,
        }
    }
}

impl GpuExecutor {
    /// Copies the weights of `part` to `gpu` and compiles what they need.
    ///
    /// # Errors
    /// When the device has too little memory, the model a shape that the kernels are not made
    /// for, or the driver refuses.
    pub fn new(part: ModelPart, gpu: Arc<Gpu>) -> Result<Self, GpuError> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        check_shape(&part.hparams)?;
        let device_bytes = check_memory(&gpu, &part)?;
        let mut upload = Upload::default();
        let mut made = || -> Result<_, GpuError> {
            let buffers = Buffers::new(&gpu, &part)?;
            let layers = Layers::new(&gpu, &part, &buffers, &mut upload)?;
            let head = Head::new(&gpu, &part, &buffers, &mut upload)?;
            upload.finish(&gpu)?;
            let slots = forward::slots(&gpu)?;
            Ok((buffers, layers, head, slots))
        };
        let (buffers, layers, head, slots) = made().map_err(|e| match e {
            GpuError::Memory { .. } => too_large(&gpu, &part, device_bytes),
            e => e,
        })?;
        gpu.save_pipelines();
        let weights = |b: &LayerTensors| b.matrices().map(|t| (t.rows * t.cols) as u64).sum();
        Ok(Self {
            layer_weights: part.blocks.iter().map(weights).max().unwrap_or(0),
            id: IDS.fetch_add(1, Ordering::Relaxed),
            rope: RopeTable::new(&part.hparams.rope),
            work: Mutex::new(Work {
                buffers,
                slots,
                turns: Vec::new(),
                angles: Vec::new(),
                flat: Vec::new(),
                clock: None,
            }),
            part,
            layers,
            head,
            device_bytes,
            gpu,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Bytes of weights on the device.
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// Begins to take the time of every kernel; whether the device can.
    pub fn start_clock(&self) -> bool {
        if !self.gpu.timestamps {
            return false;
        }
        self.work().clock = Some(Clock::new(&self.gpu));
        true
    }

    /// Stops the clock: what each kernel has cost since it was started.
    pub fn stop_clock(&self) -> Vec<KernelTime> {
        self.work().clock.take().map_or(Vec::new(), |c| c.times())
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of rows in `len` values.
    fn rows(&self, len: usize) -> Result<usize, ExecError> {
        let width = self.part.hparams.n_embd;
        if !len.is_multiple_of(width) {
            return Err(ExecError::BadRows { len, width });
        }
        Ok(len / width)
    }

    /// Whether `cache` is ours and has room for `n` more.
    fn check_cache(&self, cache: &mut KvCache, n: usize) -> Result<(), ExecError> {
        let (used, n_ctx) = (cache.len(), cache.n_ctx());
        if used + n > n_ctx {
            return Err(ExecError::ContextFull {
                used,
                n_ctx,
                more: n,
            });
        }
        match cache.device_mut::<GpuKv>() {
            Some(kv) if kv.owner == self.id => Ok(()),
            _ => Err(ExecError::OtherCache {
                first: self.part.layers.start,
                end: self.part.layers.end,
            }),
        }
    }

    /// One pass: the rows of `sequences`, [`MAX_ROWS`] in all at most, through the layers. One
    /// submission, or several in a row where it is much work; nothing is waited for but the end.
    fn submit(
        &self,
        work: &mut Work,
        sequences: &mut [Sequence<'_>],
        wanted: Wanted<'_>,
    ) -> Result<(), ExecError> {
        let (gpu, width) = (&*self.gpu, self.part.hparams.n_embd);
        gpu.check()?;
        if sequences.iter().all(|s| s.rows.is_empty()) {
            return Ok(());
        }
        let Work {
            buffers,
            slots,
            turns,
            angles,
            flat,
            clock,
        } = work;
        turns.clear();
        flat.clear();
        let mut passes = vec![Pass::default(); 2];
        let mut ends = Vec::with_capacity(sequences.len());
        for s in &mut *sequences {
            let (start, n) = (s.cache.len(), s.rows.len() / width);
            let (end, n_ctx) = (start + n, s.cache.n_ctx());
            passes.push(Pass {
                rows: n as u32,
                start: start as u32,
                first: (flat.len() / width) as u32,
                // Parts are added up in another order, and 8-bit activations feel that.
                part: if gpu.variants.int8 {
                    0
                } else {
                    part_of(n, end) as u32
                },
            });
            (start..end).for_each(|p| self.rope.fill(p, turns));
            flat.extend_from_slice(s.rows);
            if let Some(kv) = s.cache.device_mut::<GpuKv>() {
                kv.reserve(gpu, &self.layers, start, end, n_ctx)?;
            }
            ends.push(end);
        }
        let rows = flat.len() / width;
        passes[ALL].rows = rows as u32;
        passes[HEAD] = Pass {
            rows: wanted.head_rows() as u32,
            first: (rows - wanted.head_rows()) as u32,
            ..Pass::default()
        };
        slots.set(gpu, passes);
        gpu.queue
            .write_buffer(&buffers.x, 0, bytemuck::cast_slice(flat));
        angles.clear();
        angles.extend(turns.iter().map(|t| [t.0, t.1]));
        gpu.queue
            .write_buffer(&buffers.turns, 0, bytemuck::cast_slice(angles));
        let mut encoder = gpu.encoder();
        {
            let caches: Vec<(&GpuKv, usize)> = sequences
                .iter_mut()
                .zip(ends)
                .filter_map(|(s, end)| Some((&*s.cache.device_mut::<GpuKv>()?, end)))
                .collect();
            let step = gpu.most_work / (rows as u64 * self.layer_weights).max(1);
            let (step, mut at) = (step.clamp(1, 1 << 16) as usize, 0);
            loop {
                let end = self.layers.len().min(at + step);
                let mut to = Recorder::new(&mut encoder, slots, clock.as_mut());
                self.layers.record(&mut to, &caches, at..end);
                if end < self.layers.len() {
                    drop(to);
                    let full = std::mem::replace(&mut encoder, gpu.encoder());
                    gpu.queue.submit([full.finish()]);
                    at = end;
                    continue;
                }
                if let (1.., Some(head)) = (wanted.head_rows(), &self.head) {
                    head.record(&mut to);
                    if matches!(wanted, Wanted::Id(_)) {
                        head.argmax.record(&mut to);
                    }
                }
                break;
            }
        }
        match wanted {
            Wanted::Rows => {
                let mut at = 0;
                self.finish(
                    encoder,
                    buffers,
                    clock,
                    &buffers.x,
                    flat.len(),
                    &mut |all| {
                        for s in &mut *sequences {
                            s.rows.copy_from_slice(&all[at..at + s.rows.len()]);
                            at += s.rows.len();
                        }
                    },
                )?;
            }
            Wanted::Logits { n, to } => {
                let len = n * self.head.as_ref().map_or(0, |h| h.vocab);
                self.finish(encoder, buffers, clock, &buffers.logits, len, &mut |all| {
                    to.extend_from_slice(all);
                })?;
            }
            Wanted::Id(to) => {
                let from = self.head.as_ref().map_or(&buffers.logits, |h| &h.argmax.id);
                self.finish(encoder, buffers, clock, from, 1, &mut |id| {
                    *to = id.first().map_or(0, |bits| bits.to_bits());
                })?;
            }
        }
        for s in sequences {
            s.cache.advance(s.rows.len() / width);
        }
        Ok(())
    }

    /// Submits, waits, and shows the first `len` values of `from`.
    fn finish(
        &self,
        mut encoder: wgpu::CommandEncoder,
        buffers: &Buffers,
        clock: &mut Option<Clock>,
        from: &wgpu::Buffer,
        len: usize,
        f: &mut dyn FnMut(&[f32]),
    ) -> Result<(), GpuError> {
        encoder.copy_buffer_to_buffer(from, 0, &buffers.staging, 0, 4 * len as u64);
        if let Some(clock) = clock {
            clock.resolve(&self.gpu, &mut encoder)?;
        }
        self.gpu.queue.submit([encoder.finish()]);
        self.gpu.read(&buffers.staging, len, f)?;
        match clock {
            Some(clock) => clock.collect(&self.gpu),
            None => Ok(()),
        }
    }
}

impl Executor for GpuExecutor {
    fn hparams(&self) -> &HParams {
        &self.part.hparams
    }

    fn layers(&self) -> Range<usize> {
        self.part.layers.clone()
    }

    fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
        if n_ctx == 0 {
            return Err(ExecError::CacheTooLarge { n_ctx, bytes: 0 });
        }
        let kv = GpuKv::new(self.id, self.part.hparams.kv_width());
        let layers = self.part.layers.len();
        Ok(KvCache::on_device(layers, n_ctx, Box::new(kv)))
    }

    fn cache_memory(&self) -> Option<usize> {
        let report = self.gpu.report();
        let there = report
            .memory_bytes
            .map(|n| usize::try_from(n.saturating_sub(self.device_bytes)).unwrap_or(usize::MAX));
        match report.kind {
            AdapterKind::Discrete => there,
            // What it computes from is the processor's memory, where others are too.
            _ => there.into_iter().chain(super::memory::available()).min(),
        }
    }

    fn embed(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<(), ExecError> {
        embed::rows(&self.part, ids, rows)
    }

    fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError> {
        let n = self.rows(rows.len())?;
        self.check_cache(cache, n)?;
        let mut work = self.work();
        let start = cache.len();
        for rows in rows.chunks_mut(MAX_ROWS * self.part.hparams.n_embd) {
            let sequence = Sequence { cache, rows };
            let done = self.submit(&mut work, &mut [sequence], Wanted::Rows);
            if done.is_err() {
                cache.truncate(start);
                return done;
            }
        }
        Ok(())
    }

    fn forward_batch(&self, sequences: &mut [Sequence<'_>]) -> Result<(), ExecError> {
        let width = self.part.hparams.n_embd;
        for s in &mut *sequences {
            let n = self.rows(s.rows.len())?;
            self.check_cache(s.cache, n)?;
        }
        // Few rows are multiplied one by one, so those of several sequences can go together without
        // a difference; a longer stretch takes other kernels and goes alone.
        let mut rest = sequences;
        while let Some(first) = rest.first() {
            let mut rows = first.rows.len() / width;
            let mut n = 1;
            while let Some(next) = rest.get(n).map(|s| s.rows.len() / width)
                && rows + next <= FEW as usize
            {
                rows += next;
                n += 1;
            }
            let (group, others) = rest.split_at_mut(n);
            match group {
                [one] => self.forward(one.cache, one.rows)?,
                _ => self.submit(&mut self.work(), group, Wanted::Rows)?,
            }
            rest = others;
        }
        Ok(())
    }

    fn logits(&self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
        let head = self
            .head
            .as_ref()
            .ok_or_else(|| missing(&self.part, "head"))?;
        let n = self.rows(rows.len())?;
        let width = self.part.hparams.n_embd;
        logits.clear();
        logits.reserve(n * head.vocab);
        let mut work = self.work();
        let Work {
            buffers,
            slots,
            clock,
            ..
        } = &mut *work;
        for rows in rows.chunks(MAX_LOGITS * width) {
            self.gpu.check()?;
            let n = rows.len() / width;
            let pass = Pass {
                rows: n as u32,
                ..Pass::default()
            };
            slots.set(&self.gpu, [pass, pass]);
            self.gpu
                .queue
                .write_buffer(&buffers.x, 0, bytemuck::cast_slice(rows));
            let mut encoder = self.gpu.encoder();
            head.record(&mut Recorder::new(&mut encoder, slots, clock.as_mut()));
            let (from, len) = (&buffers.logits, n * head.vocab);
            self.finish(encoder, buffers, clock, from, len, &mut |all| {
                logits.extend_from_slice(all);
            })?;
        }
        Ok(())
    }

    fn forward_logits(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        last: usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecError> {
        if self.head.is_none() {
            return Err(missing(&self.part, "head"));
        }
        let n = self.rows(rows.len())?;
        let last = last.min(n);
        if n > MAX_ROWS || last > MAX_LOGITS {
            self.forward(cache, rows)?;
            let from = (n - last) * self.part.hparams.n_embd;
            return self.logits(&rows[from..], logits);
        }
        self.check_cache(cache, n)?;
        logits.clear();
        let wanted = Wanted::Logits {
            n: last,
            to: logits,
        };
        self.submit(&mut self.work(), &mut [Sequence { cache, rows }], wanted)
    }

    fn forward_argmax(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        logits: &mut Vec<f32>,
    ) -> Result<u32, ExecError> {
        if self.head.is_none() {
            return Err(missing(&self.part, "head"));
        }
        let n = self.rows(rows.len())?;
        if n == 0 || n > MAX_ROWS {
            self.forward_logits(cache, rows, 1, logits)?;
            return Ok(argmax(logits));
        }
        self.check_cache(cache, n)?;
        let mut id = 0;
        let sequence = Sequence { cache, rows };
        self.submit(&mut self.work(), &mut [sequence], Wanted::Id(&mut id))?;
        Ok(id)
    }
}

/// Kernels take four values at a time.
fn check_shape(hp: &HParams) -> Result<(), GpuError> {
    let widths = [
        ("width", hp.n_embd),
        ("head width", hp.head_dim),
        ("rotated part of a head", hp.rope.dims),
        ("feed-forward width", hp.n_ff),
    ];
    for (what, n) in widths {
        if !n.is_multiple_of(4) || n == 0 {
            return Err(GpuError::Unsupported {
                what: format!("a {what} of {n}, no multiple of 4,"),
            });
        }
    }
    if hp.head_dim > ops::attention::MAX_HEAD_DIM {
        return Err(GpuError::Unsupported {
            what: format!("a head of {} values", hp.head_dim),
        });
    }
    Ok(())
}

/// Bytes that the weights of `part` will take, if the device can have as many.
fn check_memory(gpu: &Gpu, part: &ModelPart) -> Result<u64, GpuError> {
    let mut needed = 0;
    for tensor in part.matrices() {
        needed += device_bytes(gpu, tensor)?;
    }
    match gpu.report().memory_bytes {
        Some(there) if needed > there => Err(too_large(gpu, part, needed)),
        _ => Ok(needed),
    }
}

/// The error of a half that does not fit, with what would.
fn too_large(gpu: &Gpu, part: &ModelPart, needed: u64) -> GpuError {
    let available = gpu.report().memory_bytes;
    let layers = part.layers.len() as u64;
    let advice = match available {
        Some(there) if needed <= there => {
            "others use it, or what comes besides weights takes the rest: end what runs there, or let fewer layers run here".to_owned()
        }
        // A tenth is left for keys, values and activations.
        Some(there) => {
            let there = there / 10 * 9;
            let fit = u128::from(layers) * u128::from(there) / u128::from(needed.max(1));
            let weights: u64 = part.matrices().map(|t| (t.rows * t.cols) as u64).sum();
            let bits = 8.0 * there as f64 / weights.max(1) as f64;
            format!(
                "about {fit} of these {layers} layers would fit (cut the model there with `splitconv MODEL --split N`), or all of them in {bits:.1} bits per weight"
            )
        }
        _ => "cut the model so that fewer layers run here, or give them fewer bits".to_owned(),
    };
    GpuError::Weights {
        adapter: gpu.report().name.clone(),
        first: part.layers.start,
        end: part.layers.end,
        needed,
        available,
        advice,
    }
}
