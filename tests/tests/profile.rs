//! `splitrun bench --profile`: what it writes can be read, and says how long passes take.

use engine::exec::Executor;
use engine::exec::cpu::{CpuExecutor, Isa};
use engine::measure::profile::{ProfileOptions, profile};
use engine::model::ModelPart;
use engine::role::RunError;
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::GgufSet;
use formats::measured::Profile;
use integration::{must_json, run};
use std::sync::Arc;

#[test]
fn a_profile_of_a_tiny_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    LlamaShape::tiny().write(&path).unwrap();
    let set = Arc::new(GgufSet::open(&path).unwrap());
    let part = ModelPart::load(&set, 0..6).unwrap();
    let make = |p: ModelPart| -> Result<Arc<dyn Executor>, RunError> {
        Ok(Arc::new(CpuExecutor::new(p, 1, Isa::detect()).unwrap()))
    };
    let options = ProfileOptions {
        hparams: part.hparams,
        types: vec![BlockType::F16],
        make: &make,
        device: "cpu".into(),
        threads: 1,
        seconds: 0.0,
        load_gb_per_s: 1.0,
        runtime_bytes: 1,
        memory_bytes: None,
        memory_gb_per_s: Some(1.0),
    };
    let mut said = Vec::new();
    let p = profile(&options, &mut |what| said.push(what.to_owned())).unwrap();
    p.check().unwrap();
    assert_eq!(p.matrices[0].block_type, "F16");
    assert_eq!(p.matrices.len(), 10);
    assert!(said.len() >= 13 && !p.derived);
    // Without time each curve has its first point, and a note says so.
    assert!(
        p.matrices
            .iter()
            .all(|m| m.curve.rows == [1] && m.curve.ns[0] > 0.0)
    );
    assert!(
        p.notes
            .iter()
            .any(|n| n.contains("Q8_0: for time, no more than 1 rows"))
    );
    assert_eq!(p.codecs.len(), 6);
    assert!(
        p.codecs
            .iter()
            .all(|c| c.encode_fixed_ns + c.encode_value_ns > 0.0)
    );
    // Not measured where other work hid it.
    assert!(p.message_ns.is_none_or(|ns| ns > 1e3 && ns < 1e9));
    assert!(p.sample_value_ns > 0.0 && p.embed_value_ns > 0.0 && p.layer_fixed_ns > 0.0);
    let text = p.to_json();
    let file = dir.path().join("p.json");
    std::fs::write(&file, text).unwrap();
    assert_eq!(Profile::open(&file).unwrap(), p);
}

#[test]
fn what_stands_there_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    LlamaShape::tiny().write(&dir.join("m.gguf")).unwrap();
    std::fs::write(dir.join("p.json"), "precious").unwrap();
    let out = run(
        dir,
        "splitrun",
        &["bench", "-m", "m.gguf", "--profile", "p.json"],
    );
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no profile"));
    assert_eq!(
        std::fs::read_to_string(dir.join("p.json")).unwrap(),
        "precious"
    );
    let args = ["bench", "--kernels", "--profile", "p.json"];
    assert_eq!(run(dir, "splitrun", &args).status.code(), Some(2));
    let ordinary = [
        "bench", "-m", "m.gguf", "-p", "4", "-n", "2", "-r", "1", "--json",
    ];
    let plain = must_json(dir, "splitrun", &ordinary);
    assert!(plain["prefill_tokens_per_s"].as_f64() > Some(0.0));
    assert!(plain["batch"].is_null() && plain["busy"].is_null());
}

#[test]
fn bench_measures_batches_and_a_busy_machine_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    LlamaShape::tiny().write(&dir.join("m.gguf")).unwrap();
    let args = [
        "bench",
        "-m",
        "m.gguf",
        "-p",
        "4",
        "-n",
        "2",
        "-r",
        "2",
        "--sequences",
        "3",
        "--busy",
        "--device",
        "cpu",
        "--json",
    ];
    let report = must_json(dir, "splitrun", &args);
    let positive = |part: &str, keys: &[&str]| {
        for key in keys {
            assert!(report[part][key].as_f64() > Some(0.0), "{part}: {key}");
        }
    };
    positive("batch", &["sequences", "decode_tokens_per_s", "of_one"]);
    positive(
        "busy",
        &[
            "busy_threads",
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "prefill_of_quiet",
            "decode_of_quiet",
        ],
    );
    let no_model = ["bench", "--kernels", "--busy"];
    assert_eq!(run(dir, "splitrun", &no_model).status.code(), Some(2));
}
