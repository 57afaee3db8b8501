//! A calibrated pair: what calibration measures reaches both halves, and rows travel in codec `tcq`.

use std::path::Path;

use fixtures::LlamaShape;
use formats::gguf::Gguf;
use formats::pair::HalfInfo;
use formats::wire::Codec;
use integration::{Cloud, must, must_json, run};
use serde_json::Value;

const HALVES: [&str; 2] = [
    "t-s2e8c8-00001-of-00002.gguf",
    "t-s2e8c8-00002-of-00002.gguf",
];

fn info(dir: &Path, half: &str) -> HalfInfo {
    let file = Gguf::open(&dir.join(half)).unwrap();
    HalfInfo::from_metadata(file.metadata()).unwrap().unwrap()
}

/// Writes a model, a text and its calibration at a cut after two layers.
fn calibrate(dir: &Path) {
    LlamaShape::tiny().write(&dir.join("t.gguf")).unwrap();
    let text: Vec<String> = (0..400)
        .map(|i| format!("{} rats ate {i}.", i * 7))
        .collect();
    std::fs::write(dir.join("t.txt"), text.join(" ")).unwrap();
    let args = "calibrate --model t.gguf --text t.txt --out im.gguf -c 64 --chunks 3 --cut 2";
    must(dir, "splitrun", &args.split(' ').collect::<Vec<_>>());
}

fn convert(dir: &Path, imatrix: &[&str]) {
    let args = ["t.gguf", "--split", "2", "--edge-bits", "8", "--force"];
    must(dir, "splitconv", &[&args, imatrix].concat());
}

fn generate(dir: &Path, role: &[&str]) -> Value {
    let args = "-p ration -n 16 --temp 0 --ignore-eos --json --model";
    let args: Vec<&str> = args.split(' ').chain([HALVES[0]]).collect();
    must_json(dir, "splitrun", &[role, &args].concat())
}

#[test]
fn rows_travel_as_calibration_says() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    calibrate(dir);
    convert(dir, &[]);
    let plain = info(dir, HALVES[0]);
    assert!(plain.boundary.is_none());
    let codec = generate(dir, &["--role", "both"])["codec"].clone();
    assert!(codec.as_str().unwrap().starts_with("ts-tabq"), "{codec}");
    // Nothing to code by: said, not guessed.
    let args = [
        "--role", "both", "--codec", "tcq", "-p", "x", "-n", "1", "--model", HALVES[0],
    ];
    let refused = run(dir, "splitrun", &args);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("calibrate"));

    convert(dir, &["--imatrix", "im.gguf"]);
    let [edge, cloud] = HALVES.map(|half| info(dir, half));
    let boundary = edge.boundary.unwrap();
    assert_eq!(Some(&boundary), cloud.boundary.as_ref());
    assert_eq!(boundary.mean.len(), 64);
    assert_ne!(edge.contract.pair_id, plain.contract.pair_id);
    assert!(matches!(
        Codec::Auto { max_kl: 0.003 }.resolve(Some(&boundary)),
        Codec::Tcq(_)
    ));

    for spec in ["auto", "tcq", "tcq:step=0.1"] {
        let cloud = Cloud::start(dir, &["--model", HALVES[1]]);
        let edge = ["--role", "edge", "--cloud", &cloud.address, "--codec", spec];
        let (far, near) = (
            generate(dir, &edge),
            generate(dir, &["--role", "both", "--codec", spec]),
        );
        assert_eq!(far["ids"], near["ids"], "{spec}");
        assert!(far["codec"].as_str().unwrap().starts_with("tcq"), "{far}");
        let bytes = far["uplink_bytes_per_token"].as_f64().unwrap();
        assert!(bytes < 128.0, "{spec}: {bytes} bytes, as many as f16");
    }
}

#[test]
fn a_cut_that_cannot_be_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    calibrate(dir.path());
    let args = "calibrate --model t.gguf --text t.txt --out other.gguf -c 64 --cut 6";
    let refused = run(dir.path(), "splitrun", &args.split(' ').collect::<Vec<_>>());
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("--cut 6") && !said.contains("window 1"),
        "{said}"
    );
}
