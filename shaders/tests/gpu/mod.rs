//! One device for all tests, and a kernel around a block type's `unpack32`.

use std::sync::OnceLock;

use shaders::blocks::{BlockShader, PIECES};
use shaders::repack::Layout;

/// What every kernel declares before the source of a block type.
pub(crate) const PRELUDE: &str = "
struct Matrix { rows: u32, cols: u32, runs: u32, row0: u32, plane: vec4<u32> }
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<uniform> matrix: Matrix;
@group(0) @binding(2) var<storage, read_write> results: array<vec4<f32>>;
fn word(i: u32) -> u32 { return weights[i >> 2u][i & 3u]; }
";

/// All weights of the matrix.
pub(crate) const UNPACK: &str = "
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let run = id.x;
    if run >= matrix.rows * matrix.runs { return; }
    let w = unpack32(run);
    let at = run << 3u;
    results[at] = w[0];
    results[at + 1u] = w[1];
    results[at + 2u] = w[2];
    results[at + 3u] = w[3];
    results[at + 4u] = w[4];
    results[at + 5u] = w[5];
    results[at + 6u] = w[6];
    results[at + 7u] = w[7];
}
";

/// The prelude, a block type and a kernel in one source, each included piece once.
pub(crate) fn source(block: &BlockShader, kernel: &str) -> String {
    fn add(text: &str, seen: &mut Vec<String>, out: &mut String) {
        for line in text.lines() {
            let Some(path) = line.strip_prefix("//#include ") else {
                out.push_str(line);
                out.push('\n');
                continue;
            };
            if seen.iter().any(|s| s == path) {
                continue;
            }
            seen.push(path.to_owned());
            let piece = PIECES.iter().find(|(name, _)| *name == path);
            add(
                piece.unwrap_or_else(|| panic!("no piece {path}")).1,
                seen,
                out,
            );
        }
    }
    let mut out = PRELUDE.to_owned();
    add(block.source, &mut Vec::new(), &mut out);
    out + kernel
}

/// The device that all tests share.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) name: String,
}

/// The device of the first adapter.
pub(crate) fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        let instance = wgpu::Instance::default();
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = pollster::block_on(instance.request_adapter(&options)).expect(
            "these tests need a graphics adapter, a software one is enough: install Debian's mesa-vulkan-drivers",
        );
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        Gpu {
            device,
            queue,
            name: adapter.get_info().name,
        }
    })
}

impl Gpu {
    /// The pipeline of a kernel around a block type.
    pub(crate) fn pipeline(&self, block: &BlockShader, kernel: &str) -> wgpu::ComputePipeline {
        let module = self
            .device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(block.name),
                source: wgpu::ShaderSource::Wgsl(source(block, kernel).into()),
            });
        self.device
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(block.name),
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
    }

    /// A buffer with these bytes.
    pub(crate) fn buffer(&self, usage: wgpu::BufferUsages, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes.len().max(16) as u64,
            usage: usage | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// What the kernel binds: planes, their places, and room for `floats` results.
    pub(crate) fn bind(
        &self,
        pipeline: &wgpu::ComputePipeline,
        layout: &Layout,
        planes: &[u8],
        floats: usize,
    ) -> (wgpu::BindGroup, wgpu::Buffer) {
        let mut matrix = [layout.rows, layout.cols, layout.runs, 0, 0, 0, 0, 0];
        matrix[4..].copy_from_slice(&layout.plane);
        let weights = self.buffer(wgpu::BufferUsages::STORAGE, planes);
        let matrix = self.buffer(wgpu::BufferUsages::UNIFORM, bytemuck::cast_slice(&matrix));
        let results = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * floats as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let buffers = [&weights, &matrix, &results];
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        (group, results)
    }

    /// Runs the kernel in `groups` workgroups, `times` times, and waits for its end.
    pub(crate) fn dispatch(
        &self,
        pipeline: &wgpu::ComputePipeline,
        group: &wgpu::BindGroup,
        groups: u32,
        times: u32,
    ) {
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            for _ in 0..times {
                pass.dispatch_workgroups(groups, 1, 1);
            }
        }
        self.queue.submit([encoder.finish()]);
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
    }

    /// The floats of a buffer.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer) -> Vec<f32> {
        let copy = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: buffer.size(),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, buffer.size());
        self.queue.submit([encoder.finish()]);
        copy.map_async(wgpu::MapMode::Read, .., |mapped| mapped.unwrap());
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
        let view = copy.get_mapped_range(..).unwrap();
        bytemuck::pod_collect_to_vec(&view[..])
    }
}
