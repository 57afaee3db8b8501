//! silu(gate) · up.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::THREADS;
use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;

/// The gate of the feed-forward layers; the same for all.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Swiglu {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    width: u32,
}

impl Swiglu {
    /// Rows of `x` are `n_ff` gates, padding to `stride`, and as many ups; those of `y` have `stride` values.
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        n_ff: usize,
        stride: usize,
        x: &wgpu::Buffer,
        y: &wgpu::Buffer,
    ) -> Result<Self, GpuError> {
        let pipeline = gpu.pipeline(
            Kernel::Swiglu,
            None,
            Features::default(),
            &[("THREADS", THREADS)],
        )?;
        let (width, stride) = (n_ff as u32 / 4, stride as u32 / 4);
        let params = gpu.constant(
            "swiglu",
            &[width, 2 * stride, stride, stride],
            Usage::UNIFORM,
        )?;
        let group = gpu.bind(&pipeline, &[x, &params, y]);
        Ok(Self {
            pipeline,
            group,
            width,
        })
    }

    /// All rows of the pass.
    pub(in crate::exec::gpu) fn record(&self, to: &mut Recorder<'_>) {
        let grid = [self.width.div_ceil(THREADS), to.rows(0), 1];
        to.dispatch(&self.pipeline, &self.group, None, grid, 0);
    }
}
