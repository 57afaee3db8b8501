//! Memory of a long run on a graphics adapter. Alone in its process: what other tests allocate
//! would count as growth.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use engine::exec::Executor as _;
use engine::exec::gpu::{Adapter, Gpu, GpuExecutor, Variants};
use engine::model::ModelPart;
use fixtures::LlamaShape;
use formats::gguf::GgufSet;

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn ten_thousand_tokens_take_no_more_memory_than_a_thousand() {
    let dir = tempfile::tempdir().unwrap();
    let shape = LlamaShape {
        n_layer: 1,
        ..LlamaShape::tiny()
    };
    let path = dir.path().join("m.gguf");
    shape.write(&path).unwrap();
    let set = Arc::new(GgufSet::open(&path).unwrap());
    let gpu = Arc::new(Gpu::open(&Adapter::best(true).unwrap(), Variants::Auto).unwrap());
    let exec = GpuExecutor::new(ModelPart::load(&set, 0..1).unwrap(), gpu).unwrap();
    let generation = |tokens: usize| {
        let mut cache = exec.new_cache(600).unwrap();
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        for t in 0..tokens {
            exec.embed(&[t as u32 % 320], &mut rows).unwrap();
            exec.forward_logits(&mut cache, &mut rows, 1, &mut logits)
                .unwrap();
        }
    };
    (0..2).for_each(|_| generation(500));
    let before = resident();
    (0..18).for_each(|_| generation(500));
    let grown = resident().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more");
}
