//! Weights on the device: GGML's blocks, cut into planes.

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

/// A matrix on the device, by rows in as many buffers as the limit of a binding asks for.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) shader: &'static BlockShader,
    pub(super) cols: usize,
    pub(super) pieces: Vec<WeightPiece>,
}

/// Some rows of a matrix.
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
    for (_, layout) in cut(gpu, shader, tensor)? {
        bytes += layout.bytes as u64;
    }
    Ok(bytes)
}

/// First row and layout of each piece.
fn cut(
    gpu: &Gpu,
    shader: &'static BlockShader,
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
    (0..tensor.rows)
        .step_by(most)
        .map(|first| {
            let rows = most.min(tensor.rows - first);
            Ok((first, shader.layout(rows, tensor.cols).map_err(refuse)?))
        })
        .collect()
}

impl Weights {
    /// Copies `tensor` to the device and lets go of its pages in the map.
    ///
    /// # Errors
    /// When the memory cannot be had, the device fails, or the type has no shader.
    pub(super) fn upload(gpu: &Gpu, tensor: &Tensor, to: &mut Upload) -> Result<Self, GpuError> {
        let shader = shader(tensor.block_type)?;
        let mut pieces = Vec::new();
        for (first_row, layout) in cut(gpu, shader, tensor)? {
            let buffer = gpu.storage("weights", layout.bytes as u64)?;
            let rows = layout.rows as usize;
            let step = (PIECE / tensor.row_bytes().max(1)).max(1);
            let step = step.next_multiple_of(ROW_STEP);
            for from in (0..rows).step_by(step) {
                let range = from..rows.min(from + step);
                let at = |r: usize| (first_row + r) * tensor.row_bytes();
                let bytes = &tensor.data()[at(range.start)..at(range.end)];
                for plane in 0..shader.planes.len() {
                    let inner = |e| unsupported(format!("{}: {e}", tensor.name));
                    let segment = layout.segment(plane, range.clone()).map_err(inner)?;
                    let len = segment.len();
                    to.bytes.clear();
                    to.bytes.resize(len.next_multiple_of(4), 0);
                    layout
                        .gather(plane, range.clone(), bytes, &mut to.bytes[..len])
                        .map_err(inner)?;
                    gpu.queue
                        .write_buffer(&buffer, segment.start as u64, &to.bytes);
                    to.staged += len;
                }
                tensor.release(first_row + range.start..first_row + range.end);
                if to.staged >= WINDOW {
                    to.finish(gpu)?;
                }
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
            cols: tensor.cols,
            pieces,
        })
    }
}

impl Upload {
    /// Sends what is staged and waits until it has arrived.
    pub(super) fn finish(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        gpu.queue.submit([]);
        self.staged = 0;
        gpu.wait()
    }
}
