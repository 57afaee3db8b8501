//! Weights on the device: GGML's blocks, cut into planes.

use std::ops::Range;

use formats::blocks::{
    BlockType, IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID,
};
use shaders::BlockShader;
use shaders::blocks::{MAX_PLANES, Table};
use shaders::repack::{Layout, ROW_STEP};

use super::device::Gpu;
use super::error::GpuError;
use crate::model::Tensor;

/// Bytes that go to the device at a time.
const PIECE: usize = 4 << 20;
/// Bytes after which the upload waits for the device, so that its staging memory is used again.
const WINDOW: usize = 32 << 20;

/// Matrices on the device, one below the other as if they were one, by rows in as many buffers as the
/// limit of a binding asks for.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) shader: &'static BlockShader,
    pub(super) cols: usize,
    pub(super) pieces: Vec<WeightPiece>,
}

/// Some rows.
#[derive(Debug)]
pub(super) struct WeightPiece {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// First word of each plane.
    pub(super) planes: [u32; MAX_PLANES],
    pub(super) buffer: wgpu::Buffer,
}

/// What uploads have in flight.
#[derive(Debug, Default)]
pub(super) struct Upload {
    staged: usize,
    bytes: Vec<u8>,
}

/// The codebook of a type.
fn table(table: Table) -> &'static [u8] {
    match table {
        Table::Iq1 => bytemuck::cast_slice(&IQ1_GRID),
        Table::Iq2Xxs => bytemuck::cast_slice(&IQ2_XXS_GRID),
        Table::Iq2Xs => bytemuck::cast_slice(&IQ2_XS_GRID),
        Table::Iq2S => bytemuck::cast_slice(&IQ2_S_GRID),
        Table::Iq3Xxs => bytemuck::cast_slice(&IQ3_XXS_GRID),
        Table::Iq3S => bytemuck::cast_slice(&IQ3_S_GRID),
    }
}

fn unsupported(what: impl Into<String>) -> GpuError {
    GpuError::Unsupported { what: what.into() }
}

/// The shader of a block type.
pub(super) fn shader(ty: BlockType) -> Result<&'static BlockShader, GpuError> {
    shaders::block(ty.name()).ok_or_else(|| unsupported(format!("block type {ty}")))
}

/// Bytes of `tensor` on the device.
pub(super) fn device_bytes(gpu: &Gpu, tensor: &Tensor) -> Result<u64, GpuError> {
    let shader = shader(tensor.block_type)?;
    let mut bytes = 0;
    for (_, layout) in cut(gpu, shader, tensor.rows, tensor)? {
        bytes += layout.bytes as u64;
    }
    Ok(bytes)
}

/// Whether the rows of `b` may follow those of `a` in one matrix.
pub(super) fn stack(a: &Tensor, b: &Tensor) -> bool {
    a.block_type == b.block_type && a.cols == b.cols && a.rows.is_multiple_of(ROW_STEP)
}

/// First row and layout of each piece of `rows` rows like those of `tensor`.
fn cut(
    gpu: &Gpu,
    shader: &'static BlockShader,
    rows: usize,
    tensor: &Tensor,
) -> Result<Vec<(usize, Layout)>, GpuError> {
    let refuse = |e: shaders::repack::RepackError| unsupported(format!("{}: {e}", tensor.name));
    // What each piece has besides its rows: the table and the padding of planes.
    let row = shader.layout(ROW_STEP, tensor.cols).map_err(refuse)?;
    let fixed = row.table().len() + MAX_PLANES * 16;
    let per_row = (row.bytes - row.table().len()).div_ceil(ROW_STEP).max(1);
    let fit = (gpu.max_binding as usize).saturating_sub(fixed) / per_row;
    let most = fit / ROW_STEP * ROW_STEP;
    if most == 0 {
        return Err(unsupported(format!(
            "{}: a row of {} weights",
            tensor.name, tensor.cols
        )));
    }
    (0..rows)
        .step_by(most)
        .map(|first| {
            let rows = most.min(rows - first);
            Ok((first, shader.layout(rows, tensor.cols).map_err(refuse)?))
        })
        .collect()
}

impl Weights {
    /// Copies `tensors`, each of which [`stack`]s on the one before, to the device and lets go of
    /// their pages in the map.
    ///
    /// # Errors
    /// When the memory cannot be had, the device fails, or the type has no shader.
    pub(super) fn upload(
        gpu: &Gpu,
        tensors: &[&Tensor],
        to: &mut Upload,
    ) -> Result<Self, GpuError> {
        let Some(like) = tensors.first() else {
            return Err(unsupported("a product without a matrix"));
        };
        let shader = shader(like.block_type)?;
        let rows = tensors.iter().map(|t| t.rows).sum();
        let mut pieces = Vec::new();
        for (first_row, layout) in cut(gpu, shader, rows, like)? {
            let buffer = gpu.storage("weights", layout.bytes as u64)?;
            let rows = layout.rows as usize;
            let mut top = 0;
            for tensor in tensors {
                // The rows of this tensor that are in this piece, as rows of the stack.
                let from = first_row.max(top);
                let end = (first_row + rows).min(top + tensor.rows);
                if from < end {
                    let of = from - top..end - top;
                    to.rows(gpu, tensor, of, &layout, from - first_row, &buffer)?;
                }
                top += tensor.rows;
            }
            if let Some(kind) = shader.table {
                gpu.queue
                    .write_buffer(&buffer, layout.table().start as u64, table(kind));
            }
            pieces.push(WeightPiece {
                first_row,
                rows,
                planes: layout.plane,
                buffer,
            });
        }
        Ok(Self {
            shader,
            cols: like.cols,
            pieces,
        })
    }
}

impl Upload {
    /// Sends rows `rows` of `tensor` to row `at` of `buffer`, a few megabytes at a time.
    fn rows(
        &mut self,
        gpu: &Gpu,
        tensor: &Tensor,
        rows: Range<usize>,
        layout: &Layout,
        at: usize,
        buffer: &wgpu::Buffer,
    ) -> Result<(), GpuError> {
        let shader = shader(tensor.block_type)?;
        let refuse = |e| unsupported(format!("{}: {e}", tensor.name));
        let row_bytes = tensor.row_bytes();
        let step = (PIECE / row_bytes.max(1)).max(1);
        for from in rows.clone().step_by(step.next_multiple_of(ROW_STEP)) {
            let end = rows.end.min(from + step.next_multiple_of(ROW_STEP));
            let bytes = &tensor.data()[from * row_bytes..end * row_bytes];
            let target = at + from - rows.start..at + end - rows.start;
            for plane in 0..shader.planes.len() {
                let segment = layout.segment(plane, target.clone()).map_err(refuse)?;
                let len = segment.len();
                self.bytes.clear();
                // A segment ends within a word only where the plane does, and is padded there.
                self.bytes.resize(len.next_multiple_of(4), 0);
                layout
                    .gather(plane, target.clone(), bytes, &mut self.bytes[..len])
                    .map_err(refuse)?;
                gpu.queue
                    .write_buffer(buffer, segment.start as u64, &self.bytes);
                self.staged += len;
            }
            tensor.release(from..end);
            if self.staged >= WINDOW {
                self.finish(gpu)?;
            }
        }
        Ok(())
    }

    /// Sends what is staged and waits until it has arrived.
    pub(super) fn finish(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        gpu.queue.submit([]);
        self.staged = 0;
        gpu.wait()
    }
}
