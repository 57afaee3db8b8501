//! The forms in which products take their rows.

use std::sync::Arc;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::THREADS;
use super::matrix::Place;
use crate::exec::gpu::device::{Gpu, Pipeline};
use crate::exec::gpu::error::GpuError;
use crate::exec::gpu::record::Recorder;

/// A form of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exec::gpu) enum Form {
    /// As they are.
    Floats,
    /// Bytes and steps, three vectors a run of 32.
    Codes,
    /// Halves, four vectors a run and one.
    Halves,
}

impl Form {
    /// Vectors of 16 bytes in a row of `runs` runs, where it is not floats.
    fn vectors(self, runs: usize) -> usize {
        match self {
            Self::Floats => 8 * runs,
            Self::Codes => 3 * runs,
            Self::Halves => 4 * runs + 1,
        }
    }
}

/// Bytes that hold `rows` rows of `cols` values in any form but floats. Tiles read whole: `rows` should
/// be a multiple of 64.
pub(in crate::exec::gpu) fn scratch_bytes(rows: usize, cols: usize) -> u64 {
    (16 * rows * Form::Halves.vectors(cols.div_ceil(32))) as u64
}

/// Brings rows from a fixed place into a form.
#[derive(Debug)]
pub(in crate::exec::gpu) struct Prepare {
    pub(in crate::exec::gpu) form: Form,
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    runs: u32,
}

impl Prepare {
    /// From rows of `cols` values in `x`, of whole runs with zeros behind, to the beginning of `scratch`.
    pub(in crate::exec::gpu) fn new(
        gpu: &Gpu,
        form: Form,
        cols: usize,
        x: Place<'_>,
        scratch: &wgpu::Buffer,
    ) -> Result<Self, GpuError> {
        let runs = cols.div_ceil(32);
        let kernel = match form {
            Form::Halves => Kernel::Halve,
            _ => Kernel::Quantize,
        };
        let constants = [("THREADS", THREADS)];
        let pipeline = gpu.pipeline(kernel, None, Features::default(), &constants)?;
        let params = [runs, x.stride / 4, form.vectors(runs), 0].map(|n| n as u32);
        let params = gpu.constant("rows", &params, Usage::UNIFORM)?;
        let group = gpu.bind(&pipeline, &[x.buffer, &params, scratch]);
        Ok(Self {
            form,
            pipeline,
            group,
            runs: runs as u32,
        })
    }

    /// The first `rows` rows.
    pub(in crate::exec::gpu) fn record(&self, to: &mut Recorder<'_>, rows: u32) {
        let grid = match self.form {
            Form::Halves => [rows, 1, 1],
            _ => [self.runs.div_ceil(THREADS), rows, 1],
        };
        to.dispatch(&self.pipeline, &self.group, None, grid, 0);
    }
}
