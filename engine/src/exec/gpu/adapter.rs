//! The graphics adapters of this machine.

use shaders::CooperativeSize;

use super::error::GpuError;
use super::report::{AdapterKind, AdapterReport};
use super::variants::{Abilities, Chosen};
use super::wanted::Variants;

/// An adapter that can be opened.
#[derive(Debug)]
pub struct Adapter {
    pub(super) raw: wgpu::Adapter,
    pub(super) abilities: Abilities,
    /// What it can do.
    pub report: AdapterReport,
}

impl Adapter {
    /// All adapters, best first.
    pub fn all() -> Vec<Self> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::PRIMARY;
        descriptor.flags = wgpu::InstanceFlags::empty();
        // An allocation that would fill the card is refused as out of memory; without this some
        // drivers page to the host's memory or lose the device.
        descriptor.memory_budget_thresholds.for_resource_creation = Some(97);
        let instance = wgpu::Instance::new(descriptor);
        let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let mut all: Vec<Self> = found
            .into_iter()
            .map(|raw| {
                let abilities = abilities(&raw);
                Self {
                    report: report(&raw, abilities),
                    abilities,
                    raw,
                }
            })
            .collect();
        all.sort_by_key(|a| a.report.kind);
        all
    }

    /// Its report when it could not be opened.
    pub fn refused(self, why: &GpuError) -> AdapterReport {
        AdapterReport {
            variants: vec![format!("none: {why}")],
            ..self.report
        }
    }

    /// The best adapter; `software` says whether one that computes on the processor will do.
    ///
    /// # Errors
    /// When there is none.
    pub fn best(software: bool) -> Result<Self, GpuError> {
        let fits = |a: &Self| software || a.report.kind != AdapterKind::Software;
        Self::all()
            .into_iter()
            .find(fits)
            .ok_or(GpuError::NoAdapter)
    }
}

fn report(raw: &wgpu::Adapter, abilities: Abilities) -> AdapterReport {
    let (info, limits, features) = (raw.get_info(), raw.limits(), raw.features());
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => AdapterKind::Virtual,
    };
    let named = [
        (wgpu::Features::SUBGROUP, "subgroups"),
        (wgpu::Features::SHADER_F16, "f16"),
        (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
        (wgpu::Features::PIPELINE_CACHE, "pipeline_cache"),
        (
            wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            "cooperative_matrices",
        ),
    ];
    AdapterReport {
        name: info.name.clone(),
        kind,
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info)
            .trim()
            .to_owned(),
        memory_bytes: memory(raw),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        subgroup_size: abilities.subgroup,
        features: named
            .into_iter()
            .filter(|(f, _)| features.contains(*f))
            .map(|(_, name)| name)
            .chain(abilities.packed_dot.then_some("packed_int8_dot"))
            .collect(),
        variants: Chosen::new(Variants::Auto, abilities).describe(),
    }
}

/// What variants of kernels need.
fn abilities(raw: &wgpu::Adapter) -> Abilities {
    let (info, features) = (raw.get_info(), raw.features());
    let experimental = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let there = if features.contains(experimental) {
        raw.cooperative_matrix_properties()
    } else {
        Vec::new()
    };
    let squares = |size: CooperativeSize| {
        there.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [size.get(); 3]
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    Abilities {
        subgroup: subgroup_size(&info, features),
        packed_dot: packed_dot(raw),
        f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative: [CooperativeSize::Sixteen, CooperativeSize::Eight]
            .into_iter()
            .find(|size| squares(*size)),
        software: info.device_type == wgpu::DeviceType::Cpu,
    }
}

/// Whether the device multiplies four packed signed bytes with four others and adds them up in one step,
/// as its driver says. Other interfaces than Vulkan do not tell.
#[cfg(not(target_vendor = "apple"))]
fn packed_dot(raw: &wgpu::Adapter) -> bool {
    use ash::vk;

    // SAFETY: the adapter is only asked about its properties; nothing is destroyed or changed.
    let Some(vulkan) = (unsafe { raw.as_hal::<wgpu::hal::api::Vulkan>() }) else {
        return false;
    };
    // The question came with Vulkan 1.1; the answer stays `false` where the driver does not know it.
    if vulkan
        .physical_device_capabilities()
        .properties()
        .api_version
        < vk::API_VERSION_1_1
    {
        return false;
    }
    let mut dot = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
    let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut dot);
    let instance = vulkan.shared_instance().raw_instance();
    // SAFETY: the handle is of this living instance, and both structures outlive the call.
    unsafe { instance.get_physical_device_properties2(vulkan.raw_physical_device(), &mut all) };
    dot.integer_dot_product4x8_bit_packed_signed_accelerated != 0
}

#[cfg(target_vendor = "apple")]
fn packed_dot(_: &wgpu::Adapter) -> bool {
    false
}

/// The size of all subgroups, when kernels may count on it.
fn subgroup_size(info: &wgpu::AdapterInfo, features: wgpu::Features) -> Option<u32> {
    let size = info.subgroup_min_size;
    let fixed = features.contains(wgpu::Features::SUBGROUP) && size == info.subgroup_max_size;
    (fixed && (8..=64).contains(&size) && size.is_power_of_two()).then_some(size)
}

/// Bytes of the largest heap that is the device's own.
#[cfg(not(target_vendor = "apple"))]
fn memory(raw: &wgpu::Adapter) -> Option<u64> {
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter is only asked about its memory; nothing is destroyed or changed.
    let vulkan = unsafe { raw.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = vulkan.shared_instance().raw_instance();
    // SAFETY: the handle is of this living instance.
    let properties =
        unsafe { instance.get_physical_device_memory_properties(vulkan.raw_physical_device()) };
    properties.memory_heaps[..properties.memory_heap_count as usize]
        .iter()
        .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0)
        .map(|heap| heap.size)
        .max()
}

#[cfg(target_vendor = "apple")]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}
