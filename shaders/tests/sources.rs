//! Every shader, in every variant, is WGSL that naga accepts.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use shaders::{Features, Kernel, blocks};

/// Constants that satisfy every kernel.
fn constants(kernel: Kernel, acts: u32) -> Vec<(&'static str, u32)> {
    match kernel {
        Kernel::MatVec => vec![("LANES", 8), ("GROUPS", 8), ("ROWS", 2), ("ACTS", acts)],
        Kernel::MatMul => vec![("ROWS", 8), ("ACTS", 4 * acts.min(2))],
        Kernel::Attention => vec![("HEAD4", 8 * acts), ("QUERIES", acts), ("GROUPS", 8)],
        _ => vec![("THREADS", 64)],
    }
}

fn validate(what: &str, text: &str, capabilities: Capabilities) {
    let module = naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
    Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all())
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(text)));
}

#[test]
fn every_variant_is_valid() {
    let mut variants = 0;
    for kernel in Kernel::ALL {
        let blocks: Vec<Option<&blocks::BlockShader>> = if kernel.needs_block() {
            blocks::ALL.iter().map(Some).collect()
        } else {
            vec![None]
        };
        for block in blocks {
            for i in 0..8 {
                let (subgroups, interleaved) = (i & 1 != 0, i & 2 != 0);
                let acts = if i & 4 == 0 { 1 } else { 4 };
                let features = Features {
                    subgroups,
                    interleaved,
                };
                let constants = constants(kernel, acts);
                let text =
                    shaders::source(kernel, block.map(|b| b.source), features, &constants).unwrap();
                // Without an optional feature its capability must not be needed. (Halves in words are
                // of WGSL itself.)
                let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
                capabilities.set(Capabilities::SUBGROUP, subgroups);
                let name = block.map_or("", |b| b.name);
                validate(
                    &format!("{} {name} {features:?}", kernel.name()),
                    &text,
                    capabilities,
                );
                variants += 1;
            }
        }
    }
    assert!(variants > 100);
}
