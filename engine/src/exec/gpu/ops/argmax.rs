//! The likeliest token of one row of logits.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;

/// Threads of the one workgroup (WebGPU's limit).
const THREADS: u32 = 256;

/// Finds the largest of the first `vocab` logits.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Argmax {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    /// Where the id is.
    pub(in crate::exec::gpu) id: wgpu::Buffer,
}

impl Argmax {
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        vocab: usize,
        logits: &wgpu::Buffer,
    ) -> Result<Self, GpuError> {
        let constants = [("THREADS", THREADS)];
        let pipeline = gpu.pipeline(Kernel::Argmax, None, Features::default(), &constants)?;
        let params = gpu.constant("argmax", &[vocab as u32, 0, 0, 0], Usage::UNIFORM)?;
        let id = gpu.storage("argmax", 4)?;
        let group = gpu.bind(&pipeline, &[logits, &params, &id]);
        Ok(Self {
            pipeline,
            group,
            id,
        })
    }

    pub(in crate::exec::gpu) fn record(&self, to: &mut Recorder<'_>) {
        to.dispatch(&self.pipeline, &self.group, None, [1, 1, 1], 0);
    }
}
