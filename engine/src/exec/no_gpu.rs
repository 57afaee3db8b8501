//! What [`gpu`](super::gpu) is in a build without the feature of that name: the same words, and no
//! devices. Types of what there is none of have no values, so nothing here pretends to compute.

#[path = "gpu/error.rs"]
mod error;
#[path = "gpu/report.rs"]
mod report;
#[path = "gpu/wanted.rs"]
mod wanted;

use std::ops::Range;
use std::sync::Arc;

pub use error::GpuError;
pub use report::{AdapterKind, AdapterReport, KernelTime, ShapeOptions, ShapeReport, ShapeTime};
pub use wanted::{Names, UnknownVariant, Variants};

use super::{ExecError, Executor};
use crate::cache::KvCache;
use crate::model::{HParams, ModelPart};

/// An adapter that can be opened: there is none.
#[derive(Debug)]
pub enum Adapter {}

impl Adapter {
    /// All adapters: none, and no driver is asked.
    pub fn all() -> Vec<Self> {
        Vec::new()
    }

    /// Its report when it could not be opened.
    pub fn refused(self, _: &GpuError) -> AdapterReport {
        match self {}
    }

    /// The best adapter.
    ///
    /// # Errors
    /// Always [`GpuError::NotBuilt`].
    pub fn best(_: bool) -> Result<Self, GpuError> {
        Err(GpuError::NotBuilt)
    }
}

/// An opened device: there is none.
#[derive(Debug)]
pub enum Gpu {}

impl Gpu {
    /// Opens `adapter`.
    ///
    /// # Errors
    /// Never: there is nothing to open.
    pub fn open(adapter: &Adapter, _: Variants) -> Result<Self, GpuError> {
        match *adapter {}
    }

    /// What it is.
    pub fn report(&self) -> &AdapterReport {
        match *self {}
    }
}

/// An executor on a device: there is none.
#[derive(Debug)]
pub enum GpuExecutor {}

impl GpuExecutor {
    /// An executor on `gpu`.
    ///
    /// # Errors
    /// Never: there is no device.
    #[allow(clippy::needless_pass_by_value)] // as where there is one
    pub fn new(_: ModelPart, gpu: Arc<Gpu>) -> Result<Self, GpuError> {
        match *gpu {}
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        match *self {}
    }

    /// Begins to take the time of every kernel.
    pub fn start_clock(&self) -> bool {
        match *self {}
    }

    /// What each kernel has cost since.
    pub fn stop_clock(&self) -> Vec<KernelTime> {
        match *self {}
    }
}

impl Executor for GpuExecutor {
    fn hparams(&self) -> &HParams {
        match *self {}
    }

    fn layers(&self) -> Range<usize> {
        match *self {}
    }

    fn new_cache(&self, _: usize) -> Result<KvCache, ExecError> {
        match *self {}
    }

    fn embed(&self, _: &[u32], _: &mut Vec<f32>) -> Result<(), ExecError> {
        match *self {}
    }

    fn forward(&self, _: &mut KvCache, _: &mut [f32]) -> Result<(), ExecError> {
        match *self {}
    }

    fn logits(&self, _: &[f32], _: &mut Vec<f32>) -> Result<(), ExecError> {
        match *self {}
    }
}

/// Gigabytes that a copy kernel reads and writes in a second.
///
/// # Errors
/// Never: there is no device.
pub fn copy_gb_per_s(gpu: &Gpu) -> Result<f64, GpuError> {
    match *gpu {}
}

/// Times products alone.
///
/// # Errors
/// Never: there is no device.
pub fn bench_shapes(
    gpu: &Gpu,
    _: &ShapeOptions,
    _: &mut dyn FnMut(&ShapeTime),
) -> Result<ShapeReport, GpuError> {
    match *gpu {}
}
