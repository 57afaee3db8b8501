//! How fast the device's memory is: what kernels are measured against.

use std::time::Instant;

use shaders::{Features, Kernel};

use super::device::Gpu;
use super::error::GpuError;
use super::ops::THREADS;

/// Most bytes copied at a time: larger than any cache of a processor.
const MOST: u64 = 256 << 20;
/// Copies of one measurement, and measurements of which the fastest counts.
const COPIES: u32 = 4;
const RUNS: usize = 5;

/// Gigabytes that a copy kernel reads and writes in a second.
///
/// # Errors
/// When the device has no memory for it, or fails.
pub fn copy_gb_per_s(gpu: &Gpu) -> Result<f64, GpuError> {
    let room = gpu.report().memory_bytes.map_or(MOST, |n| n / 8);
    let bytes = MOST.min(room).min(gpu.max_binding) & !0xff_ffff;
    let (from, to) = (gpu.storage("copy", bytes)?, gpu.storage("copy", bytes)?);
    let constants = [("THREADS", THREADS)];
    let pipeline = gpu.pipeline(Kernel::Copy, None, Features::default(), &constants)?;
    let group = gpu.bind(&pipeline, &[&from, &to]);
    let workgroups = (bytes / 16 / u64::from(THREADS)) as u32;
    let x = workgroups.min(1 << 15);
    let mut best = f64::INFINITY;
    // The first run also makes the pages; it is never the fastest.
    for _ in 0..RUNS {
        let mut encoder = gpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline.raw);
            pass.set_bind_group(0, &group, &[]);
            for _ in 0..COPIES {
                pass.dispatch_workgroups(x, workgroups.div_ceil(x.max(1)), 1);
            }
        }
        let start = Instant::now();
        gpu.queue.submit([encoder.finish()]);
        gpu.wait()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok((2 * bytes * u64::from(COPIES)) as f64 / best / 1e9)
}
