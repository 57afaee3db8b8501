//! A calibrated pair: what calibration measures reaches both halves, and rows travel in codec `tcq`.

use std::path::Path;
use std::time::Duration;

use engine::role::Controller;
use fixtures::LlamaShape;
use fixtures::relay::{Link, relay};
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
    let mut args = vec![
        "-p",
        "ration",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
        "--model",
    ];
    args.push(HALVES[0]);
    if !role.contains(&"-n") {
        args.extend(["-n", "16"]);
    }
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
        // `auto` looks at the link, where there is one.
        if spec != "auto" {
            assert_eq!(far["ids"], near["ids"], "{spec}");
        }
        assert!(far["codec"].as_str().unwrap().starts_with("tcq"), "{far}");
        let bytes = far["uplink_bytes_per_token"].as_f64().unwrap();
        assert!(bytes < 128.0, "{spec}: {bytes} bytes, as many as f16");
    }
}

#[test]
fn auto_over_a_link_chooses_and_its_trace_says_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    calibrate(dir);
    convert(dir, &["--imatrix", "im.gguf"]);
    let cloud = Cloud::start(dir, &["--model", HALVES[1]]);
    let link = Link {
        rtt: Duration::from_millis(10),
        bits_per_s: 250e3,
    };
    let through = relay(cloud.address.parse().unwrap(), link).unwrap();
    let through = through.to_string();
    let out = generate(
        dir,
        &[
            "--role",
            "edge",
            "--cloud",
            &through,
            "--link-trace",
            "trace.jsonl",
            "-n",
            "40",
        ],
    );
    let rows = |c: &Value| c["rows"].as_u64().unwrap();
    let choices = out["link"]["choices"].as_array().unwrap();
    let prompt = out["prompt_tokens"].as_u64().unwrap();
    assert_eq!(choices.iter().map(rows).sum::<u64>(), prompt + 39, "{out}");
    assert!(
        choices.len() > 1
            && choices
                .iter()
                .all(|c| c["codec"].as_str().unwrap().starts_with("tcq"))
    );
    let rtt = out["link"]["rtt_ms"].as_f64().unwrap();
    assert!(rtt >= 5.0, "{out}");

    let boundary = info(dir, HALVES[0]).boundary.unwrap();
    let mut again = Controller::new(&Codec::default(), Some(&boundary), 64);
    let trace = std::fs::read_to_string(dir.join("trace.jsonl")).unwrap();
    let replayed = again.replay(&trace).unwrap();
    assert!(!replayed.is_empty() && replayed.iter().all(|(now, then)| now == then));
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
