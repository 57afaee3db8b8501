//! Weight matrices times rows.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;
use crate::exec::gpu::weights::Weights;

/// Rows up to which weights are multiplied row by row instead of in tiles. Up to here a row's
/// result does not depend on how many there are.
pub(in crate::exec::gpu) const FEW: u32 = 8;
/// Rows of activations that [`Kernel::MatVec`] takes at once, where there are several.
const ACTS: u32 = 4;
/// Rows of weights a thread keeps.
const ROWS: u32 = 2;
/// Threads of a workgroup.
const THREADS: u32 = 64;
/// Rows of weights, and most rows of activations, of a tile of [`Kernel::MatMul`].
const TILE: u32 = 64;
/// Most workgroups in one direction of a grid.
const GRID: u32 = 1 << 15;

/// Where rows of values are.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec::gpu) struct Place<'a> {
    pub(in crate::exec::gpu) buffer: &'a wgpu::Buffer,
    /// Values from one row to the next.
    pub(in crate::exec::gpu) stride: usize,
    /// Value of a row at which to begin (outputs only).
    pub(in crate::exec::gpu) at: usize,
}

/// The product of one matrix with rows in a fixed place, to a fixed place.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Product {
    one: Arc<Pipeline>,
    some: Arc<Pipeline>,
    /// Tiles of half as many rows of activations as in `many`.
    half: Arc<Pipeline>,
    many: Arc<Pipeline>,
    pieces: Vec<Piece>,
    groups: u32,
}

#[derive(Debug)]
struct Piece {
    rows: u32,
    bytes: u64,
    group: wgpu::BindGroup,
}

impl Product {
    /// With `add`, products are added to what is in `y`.
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        weights: &Weights,
        x: Place<'_>,
        y: Place<'_>,
        add: bool,
    ) -> Result<Self, GpuError> {
        let lanes = gpu.subgroup.unwrap_or(32);
        let groups = THREADS / lanes;
        let features = Features {
            subgroups: gpu.subgroup.is_some(),
            ..Features::default()
        };
        let block = Some(weights.shader);
        let vector = |acts| {
            let constants = [
                ("LANES", lanes),
                ("GROUPS", groups),
                ("ROWS", ROWS),
                ("ACTS", acts),
            ];
            gpu.pipeline(Kernel::MatVec, block, features, &constants)
        };
        let tile = |acts| {
            let constants = [("ROWS", TILE / 8), ("ACTS", acts / 8)];
            gpu.pipeline(Kernel::MatMul, block, Features::default(), &constants)
        };
        let (one, some) = (vector(1)?, vector(ACTS)?);
        let (half, many) = (tile(TILE / 2)?, tile(TILE)?);
        let mut pieces = Vec::with_capacity(weights.pieces.len());
        for piece in &weights.pieces {
            let mut params = [0_u32; 12];
            params[0] = piece.rows as u32;
            params[1] = weights.cols as u32;
            params[2] = weights.cols.div_ceil(32) as u32;
            params[3] = (y.at + piece.first_row) as u32;
            params[4..8].copy_from_slice(&piece.planes);
            params[8] = x.stride as u32 / 4;
            params[9] = y.stride as u32;
            params[10] = u32::from(add);
            let params = gpu.constant("matrix", &params, Usage::UNIFORM)?;
            pieces.push(Piece {
                rows: piece.rows as u32,
                bytes: piece.buffer.size(),
                group: gpu.bind(&one, &[&piece.buffer, &params, x.buffer, y.buffer]),
            });
        }
        Ok(Self {
            one,
            some,
            half,
            many,
            pieces,
            groups,
        })
    }

    /// All rows of the pass in `slot`, which begin at the first.
    pub(in crate::exec::gpu) fn record(&self, to: &mut Recorder<'_>, slot: usize) {
        let acts = to.rows(slot);
        for piece in &self.pieces {
            let (pipeline, grid) = if acts > FEW {
                let (pipeline, tile) = if acts <= TILE / 2 {
                    (&self.half, TILE / 2)
                } else {
                    (&self.many, TILE)
                };
                let grid = [piece.rows.div_ceil(TILE), acts.div_ceil(tile), 1];
                (pipeline, grid)
            } else {
                let workgroups = piece.rows.div_ceil(self.groups * ROWS);
                let x = workgroups.min(GRID);
                let y = workgroups.div_ceil(x.max(1));
                if acts == 1 {
                    (&self.one, [x, y, 1])
                } else {
                    (&self.some, [x, y, acts.div_ceil(ACTS)])
                }
            };
            to.dispatch(pipeline, &piece.group, Some(slot), grid, piece.bytes);
        }
    }
}
