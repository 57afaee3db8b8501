//! Biases, rotary embedding, and keys and values into the cache.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::THREADS;
use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;
use crate::model::{HParams, RopeStyle};

/// What all layers share.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Rope {
    pipeline: Arc<Pipeline>,
    params: wgpu::Buffer,
    /// Values of Q, K and V of a position.
    width: u32,
}

impl Rope {
    pub(in crate::exec::gpu) fn new(gpu: &Gpu, hp: &HParams) -> Result<Self, GpuError> {
        let features = Features {
            interleaved: hp.rope.style == RopeStyle::Interleaved,
            ..Features::default()
        };
        let pipeline = gpu.pipeline(Kernel::Rope, None, features, &[("THREADS", THREADS)])?;
        let sizes = [hp.q_width(), hp.kv_width(), hp.head_dim, hp.rope.dims];
        let params = gpu.constant("rope", &sizes.map(|n| n as u32), Usage::UNIFORM)?;
        Ok(Self {
            pipeline,
            params,
            width: (hp.q_width() + 2 * hp.kv_width()) as u32,
        })
    }

    /// Bindings for one layer of one sequence: `qkv` in place, `bias` of all three, cosines and sines
    /// in `turns`, and the cache.
    pub(in crate::exec::gpu) fn bind(
        &self,
        gpu: &Gpu,
        [qkv, bias, turns]: [&wgpu::Buffer; 3],
        [keys, values]: [&wgpu::Buffer; 2],
    ) -> wgpu::BindGroup {
        let buffers = [qkv, &self.params, bias, turns, keys, values];
        gpu.bind(&self.pipeline, &buffers)
    }

    /// The rows of one sequence.
    pub(in crate::exec::gpu) fn record(
        &self,
        to: &mut Recorder<'_>,
        group: &wgpu::BindGroup,
        slot: usize,
    ) {
        let grid = [(self.width / 4).div_ceil(THREADS), to.rows(slot), 1];
        to.dispatch(&self.pipeline, group, Some(slot), grid, 0);
    }
}
