//! Weights in the order of the kernels: the same bits, from rows that fill no tile as well, and a way around
//! the copy.
use engine::exec::Executor;
use engine::exec::cpu::{Activations, CpuExecutor, Isa, RepackError};
use engine::model::ModelPart;
use formats::blocks::BlockType;
use integration::{command, model_of, must, smollm2_pair};

/// Bits of the logits after a prompt and three tokens behind it.
fn logits(exec: &CpuExecutor) -> Vec<u32> {
    let mut cache = exec.new_cache(16).unwrap();
    let (mut rows, mut logits, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for ids in [&[5, 9, 300, 7, 7][..], &[11], &[322], &[0]] {
        exec.embed(ids, &mut rows).unwrap();
        exec.forward(&mut cache, &mut rows).unwrap();
        exec.logits(&rows, &mut logits).unwrap();
        all.extend(logits.iter().map(|v| v.to_bits()));
    }
    all
}

#[test]
fn tiles_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    for ty in [
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q3_K,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
        BlockType::F16,
    ] {
        let set = model_of(dir.path(), ty);
        for isa in Isa::available() {
            for threads in [1, 3] {
                let part = ModelPart::load(&set, 0..1).unwrap();
                let weights = part.weight_bytes();
                let mut exec = CpuExecutor::new(part, threads, isa)
                    .unwrap()
                    .with_activations(Activations::Int8);
                let want = logits(&exec);
                let laid = exec.repack(0).unwrap();
                if isa == Isa::SCALAR || ty == BlockType::F16 {
                    assert_eq!(laid, 0, "{ty} {isa}");
                } else {
                    // The rest of the last tile and of lines is all there is beside them.
                    assert!(laid >= weights && laid < weights + (32 << 10), "{ty} {isa}");
                }
                assert!(logits(&exec) == want, "{ty} {isa} {threads} threads");
            }
        }
    }
}

/// What keys and values will want is left, and nothing is copied if that cannot be.
#[test]
#[cfg(target_os = "linux")]
fn a_copy_that_leaves_too_little_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let set = model_of(dir.path(), BlockType::Q8_0);
    let part = ModelPart::load(&set, 0..1).unwrap();
    let mut exec = CpuExecutor::new(part, 1, Isa::detect())
        .unwrap()
        .with_activations(Activations::Int8);
    let want = logits(&exec);
    let error = exec.repack(usize::MAX).unwrap_err();
    assert!(matches!(error, RepackError::Memory { .. }));
    assert!(error.to_string().contains("--no-repack"), "{error}");
    assert!(logits(&exec) == want);
}

#[test]
fn the_flag_and_the_variable_are_understood_and_change_no_word() {
    let dir = smollm2_pair();
    let args = "--role both -p hello -n 8 --temp 0 -c 64 --device cpu";
    let args: Vec<_> = args.split(' ').collect();
    let want = must(dir, "splitrun", &args);
    let with = [&args[..], &["--no-repack"]].concat();
    assert_eq!(must(dir, "splitrun", &with), want);
    for value in ["1", "0", "true", ""] {
        let out = command("splitrun")
            .args(&args)
            .current_dir(dir)
            .env("SPLITRUN_NO_REPACK", value)
            .output()
            .unwrap();
        assert!(out.status.success(), "{value:?}");
        assert_eq!(String::from_utf8_lossy(&out.stdout), want, "{value:?}");
    }
}
