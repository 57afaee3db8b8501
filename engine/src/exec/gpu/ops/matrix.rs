//! Weight matrices times rows.

use std::sync::Arc;

use shaders::{BlockShader, Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::prepare::{Form, Prepare};
use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;
use crate::exec::gpu::variants::Chosen;
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
/// Rows of activations of a smaller tile.
const HALF: u32 = TILE / 2;
/// Threads that share a row of weights where they are no subgroup.
const LANES: u32 = 32;
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

/// A variant of a product: its features, and the form of the rows that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec::gpu) struct Way {
    pub(in crate::exec::gpu) features: Features,
    form: Form,
}

impl Way {
    /// For few rows.
    fn few(chosen: Chosen, block: &BlockShader) -> Self {
        let int8 = chosen.int8 && block.has_codes();
        Self {
            features: Features {
                // Sums of 8-bit products have an order of their own.
                subgroups: chosen.subgroup.is_some() && !int8,
                int8,
                ..Features::default()
            },
            form: if int8 { Form::Codes } else { Form::Floats },
        }
    }

    /// For many. Where the few are rounded to 8 bits, so are these, and added up in the same order: the
    /// least difference would grow to a whole step at the next rounding, and a chunk of another size
    /// be another model.
    fn many(chosen: Chosen, block: &BlockShader) -> Self {
        let int8 = chosen.int8 && block.has_codes();
        let mut features = Features::default();
        // The floats of these two may be beyond what halves hold.
        // Beside products in 8 bits what halves lose would grow to whole steps.
        let halves = !chosen.int8 && !matches!(block.name, "F32" | "BF16");
        let form = if int8 {
            features.int8 = true;
            Form::Codes
        } else if chosen.cooperative.is_some() && halves {
            features.cooperative = chosen.cooperative;
            Form::Halves
        } else if chosen.f16 && halves {
            features.f16 = true;
            Form::Halves
        } else {
            Form::Floats
        };
        Self { features, form }
    }

    /// The way of `rows` rows.
    pub(in crate::exec::gpu) fn of(chosen: Chosen, block: &BlockShader, rows: usize) -> Self {
        if rows > FEW as usize {
            Self::many(chosen, block)
        } else {
            Self::few(chosen, block)
        }
    }

    /// What the kernel counts from one row of activations to the next.
    fn x_stride(self, floats: usize, runs: usize) -> usize {
        match self.form {
            Form::Floats => floats / 4,
            Form::Codes => 3 * runs,
            Form::Halves if self.features.cooperative.is_some() => 32 * runs + 8,
            Form::Halves => 8 * runs + 2,
        }
    }
}

/// Products of some matrices with the same rows.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Products {
    x: wgpu::Buffer,
    x_stride: usize,
    scratch: wgpu::Buffer,
    chosen: Chosen,
    list: Vec<Product>,
    forms: Vec<Prepare>,
}

impl Products {
    /// With rows in `x`, which go to `scratch` where they are needed in another form.
    pub(in crate::exec::gpu) fn new(x: Place<'_>, scratch: &wgpu::Buffer, chosen: Chosen) -> Self {
        Self {
            x: x.buffer.clone(),
            x_stride: x.stride,
            scratch: scratch.clone(),
            chosen,
            list: Vec::new(),
            forms: Vec::new(),
        }
    }

    /// One more matrix, whose products go to `y`; with `add` to what is there.
    pub(in crate::exec::gpu) fn add(
        &mut self,
        gpu: &Gpu,
        weights: &Weights,
        y: Place<'_>,
        add: bool,
    ) -> Result<(), GpuError> {
        let (scratch, x_stride) = (self.scratch.clone(), self.x_stride);
        let x = Place {
            buffer: &self.x.clone(),
            stride: x_stride,
            at: 0,
        };
        let product = Product::new(gpu, weights, x, &scratch, y, add, self.chosen)?;
        for form in [product.few.way.form, product.many.way.form] {
            if form != Form::Floats && self.forms.iter().all(|p| p.form != form) {
                let prepare = Prepare::new(gpu, form, weights.cols, x, &scratch)?;
                self.forms.push(prepare);
            }
        }
        self.list.push(product);
        Ok(())
    }

    /// All rows of the pass in `slot`, which begin at the first.
    pub(in crate::exec::gpu) fn record(&self, to: &mut Recorder<'_>, slot: usize) {
        let rows = to.rows(slot);
        let mut there = Form::Floats;
        for product in &self.list {
            let form = product.half(rows).way.form;
            if form != Form::Floats && form != there {
                for prepare in self.forms.iter().filter(|p| p.form == form) {
                    prepare.record(to, rows);
                }
                there = form;
            }
            product.record(to, slot);
        }
    }
}

/// The product of one matrix with rows in a fixed place, to a fixed place.
#[derive(Debug)]
struct Product {
    few: Half,
    many: Half,
    pieces: Vec<Piece>,
    groups: u32,
}

/// The product of few rows, or of many.
#[derive(Debug)]
struct Half {
    way: Way,
    /// For fewer and for more rows of activations at once.
    pipelines: [Arc<Pipeline>; 2],
    /// By piece.
    groups: Vec<wgpu::BindGroup>,
}

#[derive(Debug)]
struct Piece {
    rows: u32,
    bytes: u64,
}

impl Product {
    fn new(
        gpu: &Gpu,
        weights: &Weights,
        x: Place<'_>,
        scratch: &wgpu::Buffer,
        y: Place<'_>,
        add: bool,
        chosen: Chosen,
    ) -> Result<Self, GpuError> {
        let block = Some(weights.shader);
        let runs = weights.cols.div_ceil(32);
        let few = Way::few(chosen, weights.shader);
        let lanes = match chosen.subgroup {
            Some(n) if few.features.subgroups => n,
            _ => LANES,
        };
        let groups = THREADS / lanes;
        let vector = |acts| {
            let constants = [
                ("LANES", lanes),
                ("GROUPS", groups),
                ("ROWS", ROWS),
                ("ACTS", acts),
            ];
            gpu.pipeline(Kernel::MatVec, block, few.features, &constants)
        };
        let many = Way::many(chosen, weights.shader);
        let tile = |acts| match (many.features.cooperative, chosen.subgroup) {
            (Some(size), Some(lanes)) => {
                let constants = [("THREADS", 4 * lanes), ("SIDE", 32 / size.get())];
                gpu.pipeline(Kernel::MatMul, block, many.features, &constants)
            }
            _ if many.features.int8 => {
                let constants = [("ROWS", TILE / 8), ("ACTS", HALF / 8), ("LANES", LANES)];
                gpu.pipeline(Kernel::MatMul, block, many.features, &constants)
            }
            _ => {
                let constants = [("ROWS", TILE / 8), ("ACTS", acts / 8)];
                gpu.pipeline(Kernel::MatMul, block, many.features, &constants)
            }
        };
        let half = |way: Way, pipelines: [Arc<Pipeline>; 2]| {
            let mut groups = Vec::with_capacity(weights.pieces.len());
            for piece in &weights.pieces {
                let mut params = [0_u32; 12];
                params[0] = piece.rows as u32;
                params[1] = weights.cols as u32;
                params[2] = runs as u32;
                params[3] = (y.at + piece.first_row) as u32;
                params[4..8].copy_from_slice(&piece.planes);
                params[8] = way.x_stride(x.stride, runs) as u32;
                params[9] = y.stride as u32;
                params[10] = u32::from(add);
                let params = gpu.constant("matrix", &params, Usage::UNIFORM)?;
                let rows = match way.form {
                    Form::Floats => x.buffer,
                    _ => scratch,
                };
                let buffers = [&piece.buffer, &params, rows, y.buffer];
                groups.push(gpu.bind(&pipelines[0], &buffers));
            }
            Ok::<_, GpuError>(Half {
                way,
                pipelines,
                groups,
            })
        };
        let pieces = weights.pieces.iter().map(|piece| Piece {
            rows: piece.rows as u32,
            bytes: piece.buffer.size(),
        });
        Ok(Self {
            pieces: pieces.collect(),
            few: half(few, [vector(1)?, vector(ACTS)?])?,
            many: half(many, [tile(HALF)?, tile(TILE)?])?,
            groups,
        })
    }

    fn half(&self, rows: u32) -> &Half {
        if rows > FEW { &self.many } else { &self.few }
    }

    fn record(&self, to: &mut Recorder<'_>, slot: usize) {
        let acts = to.rows(slot);
        let half = self.half(acts);
        let [less, more] = &half.pipelines;
        for (piece, group) in self.pieces.iter().zip(&half.groups) {
            let (pipeline, grid) = if acts > FEW {
                // Cooperative tiles have one size, and those of whole numbers, which keep two sums for each
                // output, the other.
                let features = half.way.features;
                let small = features.int8 || acts <= HALF && features.cooperative.is_none();
                let (pipeline, tile) = if small { (less, HALF) } else { (more, TILE) };
                let grid = [piece.rows.div_ceil(TILE), acts.div_ceil(tile), 1];
                (pipeline, grid)
            } else {
                let workgroups = piece.rows.div_ceil(self.groups * ROWS);
                let x = workgroups.min(GRID);
                let y = workgroups.div_ceil(x.max(1));
                if acts == 1 {
                    (less, [x, y, 1])
                } else {
                    (more, [x, y, acts.div_ceil(ACTS)])
                }
            };
            to.dispatch(pipeline, group, Some(slot), grid, piece.bytes);
        }
    }
}
