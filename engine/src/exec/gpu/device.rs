//! An open device: buffers, bindings, pipelines, and what became of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shaders::{Features, Kernel};
use wgpu::BufferUsages as Usage;

use super::adapter::Adapter;
use super::error::GpuError;
use super::report::AdapterReport;
use super::variants::{Chosen, check};
use super::wanted::Variants;

/// How long a device may take for one submission before it counts as lost.
const DEADLINE: Duration = Duration::from_mins(5);

/// Multiplications after which a prompt's layers go on in another submission. Some systems take a
/// device for hung that works on one for seconds; this is a fraction of a second on a small one.
const MOST_WORK: u64 = 1 << 36;

/// Bytes from one uniform of a pass to the next (WebGPU's largest alignment).
pub(super) const SLOT: u64 = 256;

/// A device, with its pipelines. Shared by all executors and sessions on it.
pub struct Gpu {
    report: AdapterReport,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// Which kernels it gets.
    pub(super) variants: Chosen,
    /// Most bytes of one binding.
    pub(super) max_binding: u64,
    pub(super) timestamps: bool,
    /// Most multiplications of one submission, if a layer is not more by itself.
    pub(super) most_work: u64,
    fault: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    cache: Option<(wgpu::PipelineCache, PathBuf)>,
    /// The layout of group 1: the uniform of a pass.
    pub(super) pass_layout: wgpu::BindGroupLayout,
}

/// A compiled kernel.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) kernel: Kernel,
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// Which variant of which kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PipelineKey {
    kernel: Kernel,
    block: Option<&'static str>,
    features: Features,
    constants: Vec<(&'static str, u32)>,
}

/// What a binding of group 0 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    Read,
    Write,
    Uniform,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("adapter", &self.report.name)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens `adapter` with all its limits and the variants of kernels that `wanted` means there. Each
    /// optional one is tried on a small product first, and left out if that is wrong:
    /// [`report`](Self::report) then says so.
    ///
    /// # Errors
    /// When the driver gives no device.
    pub fn open(adapter: &Adapter, wanted: Variants) -> Result<Self, GpuError> {
        Self::open_with(adapter, wanted, u64::MAX)
    }

    /// The same with no binding larger than `max_binding`: a test takes less than there is.
    pub(super) fn open_with(
        adapter: &Adapter,
        wanted: Variants,
        max_binding: u64,
    ) -> Result<Self, GpuError> {
        let raw = &adapter.raw;
        let chosen = Chosen::new(wanted, adapter.abilities);
        let inside =
            wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let mut wanted = inside | wgpu::Features::PIPELINE_CACHE;
        wanted.set(wgpu::Features::SUBGROUP, chosen.subgroup.is_some());
        wanted.set(
            wgpu::Features::SHADER_F16,
            chosen.f16 || chosen.cooperative.is_some(),
        );
        wanted.set(
            wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            chosen.cooperative.is_some(),
        );
        let features = raw.features() & wanted;
        let limits = raw.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("splitrun"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: if chosen.cooperative.is_some() {
                // SAFETY: of what is experimental only cooperative matrices are used, in one kernel, whose
                // results are compared with the plain kernel's before it is used.
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) =
            pollster::block_on(raw.request_device(&descriptor)).map_err(|e| GpuError::Open {
                adapter: adapter.report.name.clone(),
                why: e.to_string(),
            })?;
        // What nobody waits for is kept for whoever asks next; the default would end the process.
        let fault = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&fault);
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            lock(&seen).get_or_insert_with(|| e.to_string());
        }));
        let seen = Arc::clone(&fault);
        device.set_device_lost_callback(move |reason, text| {
            lock(&seen).get_or_insert_with(|| format!("lost ({reason:?}) {text}"));
        });
        let pass_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("pass"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
                count: None,
            }],
        });
        let mut gpu = Self {
            report: adapter.report.clone(),
            variants: chosen,
            // A whole number of vectors, and below what a signed 32-bit number counts: some
            // drivers compute addresses so.
            max_binding: limits
                .max_storage_buffer_binding_size
                .min(limits.max_buffer_size)
                .min(0x7fff_0000)
                .min(max_binding)
                & !0xfff,
            timestamps: features.contains(inside),
            most_work: MOST_WORK,
            device,
            queue,
            fault,
            pipelines: Mutex::default(),
            cache: None,
            pass_layout,
        };
        if features.contains(wgpu::Features::PIPELINE_CACHE) {
            gpu.cache = super::pipeline_cache::open(&gpu.device, &raw.get_info());
        }
        let wrong = check(&mut gpu)?;
        gpu.report.variants = gpu.variants.describe();
        gpu.report.variants.extend(wrong);
        Ok(gpu)
    }

    /// What the adapter is and can do.
    pub fn report(&self) -> &AdapterReport {
        &self.report
    }

    pub(super) fn name(&self) -> String {
        self.report.name.clone()
    }

    /// An error, if the device has failed since it was opened. What failed once is not used again.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        match &*lock(&self.fault) {
            None => Ok(()),
            Some(why) => Err(GpuError::Lost {
                adapter: self.name(),
                why: why.clone(),
            }),
        }
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(super) fn buffer(
        &self,
        what: &'static str,
        bytes: u64,
        usage: Usage,
    ) -> Result<wgpu::Buffer, GpuError> {
        let bytes = bytes.next_multiple_of(16).max(16);
        let fail = || GpuError::Memory {
            adapter: self.name(),
            what,
            needed: bytes,
        };
        if bytes > self.device.limits().max_buffer_size {
            return Err(fail());
        }
        let scopes = [
            self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory),
            self.device.push_error_scope(wgpu::ErrorFilter::Validation),
        ];
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes,
            usage,
            mapped_at_creation: false,
        });
        let mut failed = false;
        for scope in scopes.into_iter().rev() {
            failed |= pollster::block_on(scope.pop()).is_some();
        }
        if failed { Err(fail()) } else { Ok(buffer) }
    }

    /// A buffer that kernels read and write.
    pub(super) fn storage(&self, what: &'static str, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        if bytes > self.max_binding {
            return Err(GpuError::Memory {
                adapter: self.name(),
                what,
                needed: bytes,
            });
        }
        self.buffer(
            what,
            bytes,
            Usage::STORAGE | Usage::COPY_DST | Usage::COPY_SRC,
        )
    }

    /// A buffer with these contents that kernels read.
    pub(super) fn constant<T: bytemuck::NoUninit>(
        &self,
        what: &'static str,
        values: &[T],
        usage: Usage,
    ) -> Result<wgpu::Buffer, GpuError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.buffer(what, bytes.len() as u64, usage | Usage::COPY_DST)?;
        self.queue.write_buffer(&buffer, 0, bytes);
        Ok(buffer)
    }

    /// What commands are recorded into.
    pub(super) fn encoder(&self) -> wgpu::CommandEncoder {
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        self.device.create_command_encoder(&descriptor)
    }

    /// Binds `buffers` to group 0 of `pipeline`, in order.
    pub(super) fn bind(&self, pipeline: &Pipeline, buffers: &[&wgpu::Buffer]) -> wgpu::BindGroup {
        let entries: Vec<wgpu::BindGroupEntry<'_>> = buffers
            .iter()
            .enumerate()
            .map(|(i, b)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: b.as_entire_binding(),
            })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.kernel.name()),
            layout: &pipeline.layout,
            entries: &entries,
        })
    }

    /// The pipeline of a kernel, compiled at the first call.
    ///
    /// # Errors
    /// When the device has failed, or its driver does not take the shader.
    pub(super) fn pipeline(
        &self,
        kernel: Kernel,
        block: Option<&'static shaders::BlockShader>,
        features: Features,
        constants: &[(&'static str, u32)],
    ) -> Result<Arc<Pipeline>, GpuError> {
        self.check()?;
        let key = PipelineKey {
            kernel,
            block: block.map(|b| b.name),
            features,
            constants: constants.to_vec(),
        };
        if let Some(found) = lock(&self.pipelines).get(&key) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(self.compile(&key, block)?);
        lock(&self.pipelines).insert(key, Arc::clone(&made));
        Ok(made)
    }

    fn compile(
        &self,
        key: &PipelineKey,
        block: Option<&'static shaders::BlockShader>,
    ) -> Result<Pipeline, GpuError> {
        let name = key.kernel.name();
        let refused = |why: String| GpuError::Open {
            adapter: self.name(),
            why: format!("kernel {name}: {why}"),
        };
        let text = shaders::source(
            key.kernel,
            block.map(|b| b.source),
            key.features,
            &key.constants,
        )
        .map_err(|e| refused(e.to_string()))?;
        // A kernel that cannot be made is this call's error, whoever finds out: a fault of the
        // whole device would be the end of all others.
        let scopes = [
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
        ]
        .map(|filter| self.device.push_error_scope(filter));
        // SAFETY: what the checks would guard against does not happen: indices into buffers are
        // bounded by the sizes that the host has checked, and every loop has an end.
        let module = unsafe {
            self.device.create_shader_module_trusted(
                wgpu::ShaderModuleDescriptor {
                    label: Some(name),
                    source: wgpu::ShaderSource::Wgsl(text.into()),
                },
                wgpu::ShaderRuntimeChecks::unchecked(),
            )
        };
        let (bindings, in_pass) = super::ops::bindings(key.kernel);
        let layout = self.layout(bindings);
        let groups: &[Option<&wgpu::BindGroupLayout>] = if in_pass {
            &[Some(&layout), Some(&self.pass_layout)]
        } else {
            &[Some(&layout)]
        };
        let pipeline_layout = self
            .device
            .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(name),
                bind_group_layouts: groups,
                immediate_size: 0,
            });
        let raw = self
            .device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Every kernel writes what it reads.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.cache.as_ref().map(|c| &c.0),
            });
        let mut wrong = None;
        for scope in scopes.into_iter().rev() {
            let one = pollster::block_on(scope.pop());
            wrong = wrong.or(one);
        }
        if let Some(e) = wrong {
            return Err(refused(e.to_string()));
        }
        Ok(Pipeline {
            kernel: key.kernel,
            raw,
            layout,
        })
    }

    fn layout(&self, bindings: &[Binding]) -> wgpu::BindGroupLayout {
        let entries: Vec<wgpu::BindGroupLayoutEntry> = bindings
            .iter()
            .enumerate()
            .map(|(i, b)| wgpu::BindGroupLayoutEntry {
                binding: i as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match b {
                        Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
                        Binding::Uniform => wgpu::BufferBindingType::Uniform,
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        self.device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            })
    }

    /// Writes the compiled pipelines to the user's cache folder, where the driver can say them.
    pub(super) fn save_pipelines(&self) {
        if let Some((cache, path)) = &self.cache {
            super::pipeline_cache::save(cache, path);
        }
    }

    /// Waits for everything that was submitted.
    ///
    /// # Errors
    /// When the device has failed or does not answer in time.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        let done = self.device.poll(wgpu::PollType::Wait {
            submission_index: None,
            timeout: Some(DEADLINE),
        });
        if let Err(e) = done {
            lock(&self.fault).get_or_insert_with(|| e.to_string());
        }
        self.check()
    }

    /// The first `len` values of `staging`, once what was submitted is done.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub(super) fn read<T: bytemuck::AnyBitPattern>(
        &self,
        staging: &wgpu::Buffer,
        len: usize,
        f: &mut dyn FnMut(&[T]),
    ) -> Result<(), GpuError> {
        if len == 0 {
            return self.wait();
        }
        let bytes = (len * size_of::<T>()) as u64;
        let slice = staging.slice(..bytes.next_multiple_of(4));
        slice.map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        let lost = |e: wgpu::MapRangeError| GpuError::Lost {
            adapter: self.name(),
            why: format!("results cannot be read: {e}"),
        };
        {
            let view = slice.get_mapped_range().map_err(lost)?;
            f(&bytemuck::cast_slice(&view)[..len]);
        }
        staging.unmap();
        Ok(())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.save_pipelines();
    }
}
