//! Every shader, in every variant, is WGSL that naga accepts.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use shaders::{CooperativeSize, Features, Kernel, blocks};

/// Constants that satisfy every kernel.
fn constants(kernel: Kernel, features: Features, acts: u32) -> Vec<(&'static str, u32)> {
    match (kernel, features.cooperative) {
        (Kernel::MatVec, _) => vec![("LANES", 8), ("GROUPS", 8), ("ROWS", 2), ("ACTS", acts)],
        (Kernel::MatMul, Some(size)) => vec![("THREADS", 128), ("SIDE", 32 / size.get())],
        (Kernel::MatMul, None) => vec![("ROWS", 8), ("ACTS", 4 * acts.min(2)), ("LANES", 32)],
        (Kernel::Attention, _) => vec![("HEAD4", 8 * acts), ("QUERIES", acts), ("GROUPS", 8)],
        (Kernel::Combine, _) => vec![("HEAD4", 8 * acts), ("THREADS", 64)],
        _ => vec![("THREADS", 64)],
    }
}

/// Whether naga accepts it, and can write it for Vulkan.
fn validate(what: &str, text: &str, capabilities: Capabilities) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    let options = naga::back::spv::Options {
        lang_version: (1, 6),
        ..naga::back::spv::Options::default()
    };
    let words = naga::back::spv::write_vec(&module, &info, &options, None)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    // Kept where somebody wants to show them to spirv-val.
    if let Some(folder) = std::env::var_os("SPIRV_OUT") {
        let name = what.replace(|c: char| !c.is_alphanumeric(), "_");
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::write(std::path::Path::new(&folder).join(name + ".spv"), bytes).unwrap();
    }
}

/// What a shader may need of a device that has `features`, and nothing else. (Halves in words, and
/// `dot4I8Packed`, are of WGSL itself.)
fn capabilities(features: Features) -> Capabilities {
    let mut all = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    all.set(Capabilities::SUBGROUP, features.subgroups);
    all.set(Capabilities::SHADER_FLOAT16, features.f16);
    if features.cooperative.is_some() {
        all |= Capabilities::SUBGROUP
            | Capabilities::SHADER_FLOAT16
            | Capabilities::COOPERATIVE_MATRIX;
    }
    all
}

/// The variants that a kernel has: those features that it looks at, in all combinations that are asked for.
fn variants(kernel: Kernel) -> Vec<Features> {
    let plain = Features::default();
    let with = |on: &dyn Fn(&mut Features)| {
        let mut features = plain;
        on(&mut features);
        features
    };
    let subgroups = |f: Features| Features {
        subgroups: true,
        ..f
    };
    let int8 = with(&|f| f.int8 = true);
    let split = with(&|f| f.split = true);
    match kernel {
        Kernel::MatVec => vec![plain, subgroups(plain), int8, subgroups(int8)],
        Kernel::MatMul => vec![
            plain,
            int8,
            with(&|f| f.f16 = true),
            with(&|f| f.cooperative = Some(CooperativeSize::Eight)),
            with(&|f| f.cooperative = Some(CooperativeSize::Sixteen)),
        ],
        Kernel::Attention => vec![plain, subgroups(plain), split, subgroups(split)],
        Kernel::Rope => vec![plain, with(&|f| f.interleaved = true)],
        _ => vec![plain],
    }
}

#[test]
fn every_variant_is_valid() {
    let mut checked = 0;
    for kernel in Kernel::ALL {
        let blocks: Vec<Option<&blocks::BlockShader>> = if kernel.needs_block() {
            blocks::ALL.iter().map(Some).collect()
        } else {
            vec![None]
        };
        for block in blocks {
            for features in variants(kernel) {
                if features.int8 && block.is_some_and(|b| !b.has_codes()) {
                    continue;
                }
                for acts in [1, 4] {
                    let constants = constants(kernel, features, acts);
                    let text =
                        shaders::source(kernel, block.map(|b| b.source), features, &constants);
                    let name = block.map_or("", |b| b.name);
                    let what = format!("{} {name} {features:?}", kernel.name());
                    validate(&what, &text.unwrap(), capabilities(features));
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 400, "{checked}");
}

/// The types whose weights are small whole numbers.
#[test]
fn types_with_codes() {
    let with: Vec<&str> = blocks::ALL
        .iter()
        .filter(|b| b.has_codes())
        .map(|b| b.name)
        .collect();
    let wanted = [
        "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
        "IQ4_XS", "TQ2_0",
    ];
    assert_eq!(with, wanted);
}
