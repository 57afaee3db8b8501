//! Recording the dispatches of one pass, with times when somebody asks for them.

use std::collections::BTreeMap;

use shaders::Kernel;
use wgpu::BufferUsages as Usage;

use super::device::{Gpu, Pipeline, SLOT};
use super::error::GpuError;
use super::report::KernelTime;

/// The rows that a dispatch is about, as shaders know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) rows: u32,
    /// Position of the first of them.
    pub(super) start: u32,
    /// Where they begin among all rows.
    pub(super) first: u32,
    /// Positions of a part of attention; 0 where it is not parted.
    pub(super) part: u32,
}

/// The passes of a submission: slot 0 is all rows, 1 the rows of the head, then one a sequence.
#[derive(Debug)]
pub(super) struct Slots {
    buffer: wgpu::Buffer,
    group: wgpu::BindGroup,
    passes: Vec<Pass>,
    bytes: Vec<u8>,
}

impl Slots {
    pub(super) fn new(gpu: &Gpu, slots: usize) -> Result<Self, GpuError> {
        let buffer = gpu.buffer(
            "passes",
            slots as u64 * SLOT,
            Usage::UNIFORM | Usage::COPY_DST,
        )?;
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("pass"),
            layout: &gpu.pass_layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &buffer,
                    offset: 0,
                    size: std::num::NonZeroU64::new(16),
                }),
            }],
        });
        Ok(Self {
            buffer,
            group,
            passes: Vec::with_capacity(slots),
            bytes: vec![0; slots * SLOT as usize],
        })
    }

    /// Sets the passes of the next submission.
    pub(super) fn set(&mut self, gpu: &Gpu, passes: impl IntoIterator<Item = Pass>) {
        self.passes.clear();
        self.passes.extend(passes);
        for (pass, slot) in self.passes.iter().zip(self.bytes.chunks_mut(SLOT as usize)) {
            let words = [pass.rows, pass.start, pass.first, pass.part];
            slot[..16].copy_from_slice(bytemuck::cast_slice(&words));
        }
        let bytes = self.passes.len() * SLOT as usize;
        gpu.queue
            .write_buffer(&self.buffer, 0, &self.bytes[..bytes]);
    }
}

/// Where dispatches go.
pub(super) struct Recorder<'a> {
    pass: wgpu::ComputePass<'a>,
    slots: &'a Slots,
    clock: Option<&'a mut Clock>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        encoder: &'a mut wgpu::CommandEncoder,
        slots: &'a Slots,
        clock: Option<&'a mut Clock>,
    ) -> Self {
        let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        Self { pass, slots, clock }
    }

    /// Rows of the pass in `slot`.
    pub(super) fn rows(&self, slot: usize) -> u32 {
        self.slots.passes[slot].rows
    }

    /// Positions of a part of attention in `slot`; 0 where it is not parted.
    pub(super) fn part(&self, slot: usize) -> u32 {
        self.slots.passes[slot].part
    }

    /// Records one dispatch that reads `bytes` of weights or cache.
    pub(super) fn dispatch(
        &mut self,
        pipeline: &Pipeline,
        group: &wgpu::BindGroup,
        slot: Option<usize>,
        [x, y, z]: [u32; 3],
        bytes: u64,
    ) {
        self.pass.set_pipeline(&pipeline.raw);
        self.pass.set_bind_group(0, group, &[]);
        if let Some(slot) = slot {
            let offset = slot as u32 * SLOT as u32;
            self.pass.set_bind_group(1, &self.slots.group, &[offset]);
        }
        let at = self.clock.as_mut().map(|c| c.begin(pipeline.kernel, bytes));
        let stamp = |pass: &mut wgpu::ComputePass<'_>, clock: Option<&Clock>, late| {
            if let (Some((set, at)), Some(c)) = (at, clock) {
                pass.write_timestamp(&c.sets[set].queries, at + late);
            }
        };
        stamp(&mut self.pass, self.clock.as_deref(), 0);
        self.pass.dispatch_workgroups(x, y, z);
        stamp(&mut self.pass, self.clock.as_deref(), 1);
    }
}

/// Timestamps around every dispatch.
#[derive(Debug)]
pub(super) struct Clock {
    device: wgpu::Device,
    /// As many as the largest submission so far has filled.
    sets: Vec<Times>,
    /// Nanoseconds of a tick.
    period: f64,
    pending: Vec<(Kernel, u64)>,
    sums: BTreeMap<Kernel, (u64, f64, u64)>,
}

/// A set of timestamps, and their way to where they can be read.
#[derive(Debug)]
struct Times {
    queries: wgpu::QuerySet,
    /// Made before they are first read.
    buffers: Option<[wgpu::Buffer; 2]>,
}

/// Timestamps of a query set (WebGPU's limit).
const QUERIES: u32 = 4096;
/// Dispatches that fill one.
const DISPATCHES: usize = QUERIES as usize / 2;

impl Clock {
    pub(super) fn new(gpu: &Gpu) -> Self {
        Self {
            device: gpu.device.clone(),
            sets: Vec::new(),
            period: f64::from(gpu.queue.get_timestamp_period()),
            pending: Vec::new(),
            sums: BTreeMap::new(),
        }
    }

    /// Set and query of the next dispatch's beginning.
    fn begin(&mut self, kernel: Kernel, bytes: u64) -> (usize, u32) {
        let (set, at) = (
            self.pending.len() / DISPATCHES,
            self.pending.len() % DISPATCHES,
        );
        if set == self.sets.len() {
            self.sets.push(Times {
                queries: self.device.create_query_set(&wgpu::QuerySetDescriptor {
                    label: Some("times"),
                    ty: wgpu::QueryType::Timestamp,
                    count: QUERIES,
                }),
                buffers: None,
            });
        }
        self.pending.push((kernel, bytes));
        (set, 2 * at as u32)
    }

    /// Records the way of this submission's timestamps to where they can be read.
    ///
    /// # Errors
    /// When the device has no memory for them.
    pub(super) fn resolve(
        &mut self,
        gpu: &Gpu,
        encoder: &mut wgpu::CommandEncoder,
    ) -> Result<(), GpuError> {
        let all = self.pending.chunks(DISPATCHES);
        for (pending, times) in all.zip(&mut self.sets) {
            let buffers = if let Some(there) = times.buffers.take() {
                there
            } else {
                let bytes = u64::from(QUERIES) * 8;
                [
                    gpu.buffer("times", bytes, Usage::QUERY_RESOLVE | Usage::COPY_SRC)?,
                    gpu.buffer("times", bytes, Usage::COPY_DST | Usage::MAP_READ)?,
                ]
            };
            let [resolved, staging] = times.buffers.insert(buffers);
            let n = 2 * pending.len() as u32;
            encoder.resolve_query_set(&times.queries, 0..n, resolved, 0);
            encoder.copy_buffer_to_buffer(resolved, 0, staging, 0, u64::from(n) * 8);
        }
        Ok(())
    }

    /// Adds up the times of a submission that is done.
    pub(super) fn collect(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let pending = std::mem::take(&mut self.pending);
        let (period, sums) = (self.period, &mut self.sums);
        let all = pending.chunks(DISPATCHES).zip(&self.sets);
        for (pending, times) in all {
            let Some([_, staging]) = &times.buffers else {
                continue;
            };
            gpu.read::<u64>(staging, 2 * pending.len(), &mut |ticks| {
                for ((kernel, bytes), t) in pending.iter().zip(ticks.as_chunks::<2>().0) {
                    let sum = sums.entry(*kernel).or_default();
                    sum.0 += 1;
                    sum.1 += t[1].saturating_sub(t[0]) as f64 * period / 1e6;
                    sum.2 += bytes;
                }
            })?;
        }
        Ok(())
    }

    /// What has been added up, by kernel.
    pub(super) fn times(&self) -> Vec<KernelTime> {
        self.sums
            .iter()
            .map(|(kernel, &(dispatches, ms, bytes))| {
                KernelTime::new(kernel.name(), dispatches, ms, bytes)
            })
            .collect()
    }
}
