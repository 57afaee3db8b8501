//! Keys and values of one sequence on the device.

use std::any::Any;

use super::device::Gpu;
use super::error::GpuError;
use super::forward::Layers;
use super::ops::attention::AttentionGroups;
use crate::cache::DeviceKv;

/// Positions that a cache has room for at first; it doubles as it fills.
const FIRST: usize = 256;

/// The f16 cache of one sequence over the layers of one executor, and what binds it to their
/// kernels.
#[derive(Debug)]
pub(super) struct GpuKv {
    /// The executor it belongs to.
    pub(super) owner: u64,
    capacity: usize,
    kv_width: usize,
    pub(super) layers: Vec<LayerKv>,
}

/// One layer's.
#[derive(Debug)]
pub(super) struct LayerKv {
    keys: wgpu::Buffer,
    values: wgpu::Buffer,
    pub(super) rope: wgpu::BindGroup,
    pub(super) attention: AttentionGroups,
}

impl DeviceKv for GpuKv {
    fn bytes(&self) -> usize {
        self.layers.len() * 4 * self.capacity * self.kv_width
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl GpuKv {
    /// A cache that takes no memory yet.
    pub(super) fn new(owner: u64, kv_width: usize) -> Self {
        Self {
            owner,
            capacity: 0,
            kv_width,
            layers: Vec::new(),
        }
    }

    /// Makes room for `end` positions, of `n_ctx` at most, keeping the first `held`.
    pub(super) fn reserve(
        &mut self,
        gpu: &Gpu,
        layers: &Layers,
        held: usize,
        end: usize,
        n_ctx: usize,
    ) -> Result<(), GpuError> {
        // A sequence without rows among others needs bindings too.
        if end <= self.capacity && self.capacity > 0 {
            return Ok(());
        }
        let most = gpu.max_binding as usize / (2 * self.kv_width);
        let capacity = end
            .next_power_of_two()
            .max(FIRST)
            .min(n_ctx)
            .min(most)
            .max(end);
        let bytes = (2 * capacity * self.kv_width) as u64;
        if bytes > gpu.max_binding {
            return Err(GpuError::Memory {
                adapter: gpu.name(),
                what: "the keys of one layer in one binding",
                needed: bytes,
            });
        }
        let made: Vec<LayerKv> = (0..layers.len())
            .map(|l| {
                let keys = gpu.storage("keys", bytes)?;
                let values = gpu.storage("values", bytes)?;
                let (rope, attention) = layers.bind_cache(gpu, l, [&keys, &values]);
                Ok(LayerKv {
                    keys,
                    values,
                    rope,
                    attention,
                })
            })
            .collect::<Result<_, GpuError>>()?;
        let kept = (2 * held * self.kv_width) as u64;
        if kept > 0 {
            let mut encoder = gpu.encoder();
            for (old, new) in self.layers.iter().zip(&made) {
                encoder.copy_buffer_to_buffer(&old.keys, 0, &new.keys, 0, kept);
                encoder.copy_buffer_to_buffer(&old.values, 0, &new.values, 0, kept);
            }
            gpu.queue.submit([encoder.finish()]);
        }
        (self.layers, self.capacity) = (made, capacity);
        gpu.check()
    }
}
