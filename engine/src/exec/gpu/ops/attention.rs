//! Causal attention over the cache of one sequence.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::matrix::FEW;
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
/// Positions that one workgroup goes through at least, and from twice as many on several share a head
/// when there are few rows: a decoded token alone would leave most of a large device idle.
const PART: usize = 256;
/// Most parts of a head.
const MAX_PARTS: usize = 32;

/// Positions of a part, of `end`, for a pass of `rows` rows; 0 where they are not parted. A function of
/// these numbers alone, so that equal passes are added up equally.
pub(in crate::exec::gpu) fn part_of(rows: usize, end: usize) -> usize {
    if rows > FEW as usize || end <= 2 * PART {
        return 0;
    }
    end.div_ceil(MAX_PARTS)
        .next_multiple_of(THREADS as usize)
        .max(PART)
}

/// What all layers share.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Attention {
    one: Arc<Pipeline>,
    several: Arc<Pipeline>,
    parts: Parts,
    params: wgpu::Buffer,
    heads: u32,
    kv_width: u64,
}

/// Several workgroups to a head, and what puts their results together.
#[derive(Debug)]
struct Parts {
    one: Arc<Pipeline>,
    several: Arc<Pipeline>,
    combine: Arc<Pipeline>,
    combine_group: wgpu::BindGroup,
    buffer: wgpu::Buffer,
}

/// What binds one layer of one sequence: to whole rows, and to parts.
#[derive(Debug)]
pub(in crate::exec::gpu) struct AttentionGroups([wgpu::BindGroup; 2]);

impl Attention {
    /// Outputs in rows of `y_stride` values in `mixed`.
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        hp: &HParams,
        y_stride: usize,
        mixed: &wgpu::Buffer,
    ) -> Result<Self, GpuError> {
        let head4 = hp.head_dim as u32 / 4;
        let subgroup = gpu.variants.subgroup;
        let pipeline = |queries, split| {
            let features = Features {
                subgroups: subgroup.is_some(),
                split,
                ..Features::default()
            };
            let constants = [
                ("HEAD4", head4),
                ("QUERIES", queries),
                ("GROUPS", THREADS / subgroup.unwrap_or(8)),
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
        let buffer = gpu.storage(
            "attention",
            (16 * FEW as usize * hp.n_head * MAX_PARTS * (head4 as usize + 1)) as u64,
        )?;
        let constants = [("HEAD4", head4), ("THREADS", THREADS)];
        let combine = gpu.pipeline(Kernel::Combine, None, Features::default(), &constants)?;
        let stride = gpu.constant("combine", &[params[2], 0, 0, 0], Usage::UNIFORM)?;
        Ok(Self {
            params: gpu.constant("attention", &params, Usage::UNIFORM)?,
            one: pipeline(1, false)?,
            several: pipeline(QUERIES, false)?,
            parts: Parts {
                one: pipeline(1, true)?,
                several: pipeline(QUERIES, true)?,
                combine_group: gpu.bind(&combine, &[&buffer, &stride, mixed]),
                combine,
                buffer,
            },
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
    ) -> AttentionGroups {
        AttentionGroups(
            [mixed, &self.parts.buffer]
                .map(|to| gpu.bind(&self.one, &[qkv, &self.params, keys, values, to])),
        )
    }

    /// The rows of one sequence, whose last position is `end - 1`.
    pub(in crate::exec::gpu) fn record(
        &self,
        to: &mut Recorder<'_>,
        AttentionGroups([whole, parts]): &AttentionGroups,
        slot: usize,
        end: usize,
    ) {
        let rows = to.rows(slot);
        let queries = if rows == 1 { 1 } else { QUERIES };
        let blocks = rows.div_ceil(queries);
        // Keys and values, once; rows of a chunk share what the caches of the device hold.
        let bytes = 2 * 2 * self.kv_width * end as u64;
        let part = to.part(slot);
        if part == 0 {
            let pipeline = if rows == 1 { &self.one } else { &self.several };
            to.dispatch(pipeline, whole, Some(slot), [self.heads, blocks, 1], bytes);
            return;
        }
        let pipeline = if rows == 1 {
            &self.parts.one
        } else {
            &self.parts.several
        };
        let grid = [self.heads, blocks, (end as u32).div_ceil(part)];
        to.dispatch(pipeline, parts, Some(slot), grid, bytes);
        let grid = [self.heads, rows, 1];
        let combine = &self.parts;
        to.dispatch(
            &combine.combine,
            &combine.combine_group,
            Some(slot),
            grid,
            0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_and_whole_tiles() {
        assert_eq!((part_of(1, 512), part_of(9, 4096)), (0, 0));
        for end in [513, 4096, 8192, 8193, 100_000, 1 << 24] {
            let part = part_of(8, end);
            assert!(part >= PART && part.is_multiple_of(64) && end.div_ceil(part) <= MAX_PARTS);
        }
    }
}
