//! RMS norm of rows.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::THREADS;
use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;

/// The norm in front of something.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Norm {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
}

impl Norm {
    /// From rows of `weight.len()` values in `x` to rows of `y_stride` in `y`, from its first row on.
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        weight: &[f32],
        eps: f32,
        x: &wgpu::Buffer,
        y: &wgpu::Buffer,
        y_stride: usize,
    ) -> Result<Self, GpuError> {
        let pipeline = gpu.pipeline(
            Kernel::Norm,
            None,
            Features::default(),
            &[("THREADS", THREADS)],
        )?;
        let width = weight.len() as u32 / 4;
        let params = [width, width, y_stride as u32 / 4, eps.to_bits()];
        let params = gpu.constant("norm", &params, Usage::UNIFORM)?;
        let weight = gpu.constant("norm", weight, Usage::STORAGE)?;
        let group = gpu.bind(&pipeline, &[x, &params, &weight, y]);
        Ok(Self { pipeline, group })
    }

    /// Norms the rows of the pass in `slot`.
    pub(in crate::exec::gpu) fn record(&self, to: &mut Recorder<'_>, slot: usize) {
        let rows = to.rows(slot);
        to.dispatch(&self.pipeline, &self.group, Some(slot), [rows, 1, 1], 0);
    }
}
