//! Causal attention over the cache of one sequence.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;
use crate::model::HParams;

/// Widest head that a workgroup of 64 serves, a vector of four a thread.
pub(in crate::exec::gpu) const MAX_HEAD_DIM: usize = 256;

/// Rows that share what a workgroup reads of the cache, where there are several.
const QUERIES: u32 = 4;
/// Threads of a workgroup.
const THREADS: u32 = 64;

/// What all layers share.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Attention {
    one: Arc<Pipeline>,
    several: Arc<Pipeline>,
    params: wgpu::Buffer,
    heads: u32,
    kv_width: u64,
}

impl Attention {
    /// Outputs in rows of `y_stride` values.
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        hp: &HParams,
        y_stride: usize,
    ) -> Result<Self, GpuError> {
        let features = Features {
            subgroups: gpu.subgroup.is_some(),
            ..Features::default()
        };
        let pipeline = |queries| {
            let constants = [
                ("HEAD4", hp.head_dim as u32 / 4),
                ("QUERIES", queries),
                ("GROUPS", THREADS / gpu.subgroup.unwrap_or(8)),
            ];
            gpu.pipeline(Kernel::Attention, None, features, &constants)
        };
        let scale = 1.0 / (hp.head_dim as f32).sqrt();
        let params = [
            (hp.q_width() + 2 * hp.kv_width()) as u32 / 4,
            hp.kv_width() as u32 / 4,
            y_stride as u32 / 4,
            (hp.n_head / hp.n_head_kv) as u32,
            scale.to_bits(),
            0,
            0,
            0,
        ];
        Ok(Self {
            params: gpu.constant("attention", &params, Usage::UNIFORM)?,
            one: pipeline(1)?,
            several: pipeline(QUERIES)?,
            heads: hp.n_head as u32,
            kv_width: hp.kv_width() as u64,
        })
    }

    /// Bindings for one layer of one sequence.
    pub(in crate::exec::gpu) fn bind(
        &self,
        gpu: &Gpu,
        qkv: &wgpu::Buffer,
        [keys, values]: [&wgpu::Buffer; 2],
        mixed: &wgpu::Buffer,
    ) -> wgpu::BindGroup {
        gpu.bind(&self.one, &[qkv, &self.params, keys, values, mixed])
    }

    /// The rows of one sequence, whose last position is `end - 1`.
    pub(in crate::exec::gpu) fn record(
        &self,
        to: &mut Recorder<'_>,
        group: &wgpu::BindGroup,
        slot: usize,
        end: usize,
    ) {
        let (pipeline, queries) = match to.rows(slot) {
            1 => (&self.one, 1),
            _ => (&self.several, QUERIES),
        };
        let grid = [self.heads, to.rows(slot).div_ceil(queries), 1];
        // Keys and values, once; rows of a chunk share what the caches of the device hold.
        let bytes = 2 * 2 * self.kv_width * end as u64;
        to.dispatch(pipeline, group, Some(slot), grid, bytes);
    }
}
