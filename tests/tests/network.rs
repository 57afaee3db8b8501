//! Real processes over real sockets.

use std::io::{BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use integration::{Cloud, command, must_json, run, smollm2_pair, wait};
use serde_json::Value;

const PROMPT: &str = "Question: why is the sky blue, and why are sunsets red? Give the physics, \
    with the names of the effects and of the people who described them first.\nAnswer:";

/// Ids and the bits of the log-probabilities.
fn bits(v: &Value) -> (Vec<u64>, Vec<u64>) {
    let ids = v["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i.as_u64().unwrap())
        .collect();
    let mut lp = Vec::new();
    for l in v["logprobs"].as_array().unwrap() {
        lp.push(l["logprob"].as_f64().unwrap().to_bits());
        for t in l["top"].as_array().unwrap() {
            lp.push(t["id"].as_u64().unwrap());
            lp.push(t["logprob"].as_f64().unwrap().to_bits());
        }
    }
    assert!(!lp.is_empty());
    (ids, lp)
}

#[test]
fn each_side_keeps_keys_and_values_as_it_is_told() {
    let dir = smollm2_pair();
    let common = [
        "-p",
        PROMPT,
        "-n",
        "6",
        "--temp",
        "0",
        "--top-logprobs",
        "2",
        "--json",
        "--codec",
        "f32",
    ];
    let with = |more: &[&str]| {
        let mut args = common.to_vec();
        args.extend(more);
        bits(&must_json(dir, "splitrun", &args))
    };
    let cloud = Cloud::start(dir, &["-t", "2", "--kv-type", "q4_0"]);
    let thin = |kv| with(&["--role", "both", "--kv-type", kv, "-t", "1"]);
    let edge = |kv| with(&["--role", "edge", "--cloud", &cloud.address, "--kv-type", kv]);
    // The same on both sides is one process, and a word of the edge does not reach the cloud.
    let (q4_0, mixed) = (thin("q4_0"), edge("q8_0"));
    assert_eq!(edge("q4_0"), q4_0);
    assert!(mixed != q4_0 && mixed != thin("q8_0"));
    assert_eq!(with(&["--role", "both"]), thin("f16"));
    // Heads of 16 values are no whole blocks.
    let tiny = tempfile::tempdir().unwrap();
    let shape = fixtures::LlamaShape::tiny();
    shape.write(&tiny.path().join("m.gguf")).unwrap();
    let args = ["bench", "--model", "m.gguf", "--kv-type", "q8_0"];
    let out = run(tiny.path(), "splitrun", &args);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("heads of 16 values") && said.contains("--kv-type f16"),
        "{said}"
    );
    let out = run(tiny.path(), "splitrun", &["bench", "--kv-type", "q5_0"]);
    assert_eq!(out.status.code(), Some(2));
    let args = [
        "bench", "--model", "m.gguf", "-d", "40", "-p", "4", "-n", "2", "-r", "1", "--json",
    ];
    let deep = must_json(tiny.path(), "splitrun", &args);
    // 40 positions of 6 layers, two heads of 16 values, keys and values, two bytes each.
    assert_eq!(deep["kv_bytes"], 40 * 6 * 2 * 16 * 2 * 2);
}

#[test]
fn with_codec_f32_the_network_changes_no_bit() {
    let dir = smollm2_pair();
    let cloud = Cloud::start(dir, &["-t", "2"]);
    let whole = fixtures::smollm2_gguf();
    let common = [
        "-p",
        PROMPT,
        "-n",
        "12",
        "--temp",
        "0",
        "--top-logprobs",
        "20",
        "--json",
    ];
    let with = |more: &[&str]| {
        let mut args = common.to_vec();
        args.extend(more);
        bits(&must_json(dir, "splitrun", &args))
    };
    let unsplit = with(&[
        "--role",
        "both",
        "--model",
        whole.to_str().unwrap(),
        "-t",
        "1",
    ]);
    assert_eq!(
        with(&["--role", "both", "--codec", "f32", "-t", "3"]),
        unsplit,
        "in one process"
    );
    for chunk in ["1", "7", "64", "100000"] {
        let edge = [
            "--role",
            "edge",
            "--codec",
            "f32",
            "--cloud",
            &cloud.address,
            "--chunk",
            chunk,
        ];
        assert_eq!(
            with(&edge),
            unsplit,
            "over the network in chunks of {chunk}"
        );
    }
    // With a lossy codec the network must still equal the same codec in one process.
    let both = with(&["--role", "both"]);
    assert_ne!(
        both.1, unsplit.1,
        "the default codec is lossy, this should differ"
    );
    assert_eq!(
        with(&["--role", "edge", "--cloud", &cloud.address]),
        both,
        "default codec"
    );
}

#[test]
fn sampling_is_a_function_of_the_seed_wherever_it_runs() {
    let dir = smollm2_pair();
    let cloud = Cloud::start(dir, &[]);
    let run = |role: &str, seed: &str| {
        let args = [
            "--role",
            role,
            "--cloud",
            &cloud.address,
            "-p",
            "Once upon a time",
            "-n",
            "16",
            "--seed",
            seed,
            "--repeat-penalty",
            "1.3",
            "--json",
        ];
        must_json(dir, "splitrun", &args)["ids"].clone()
    };
    assert_eq!(run("edge", "7"), run("both", "7"));
    assert_ne!(run("edge", "7"), run("edge", "8"));
}

#[test]
fn several_edges_share_a_cloud_and_do_not_feel_each_other() {
    let dir = smollm2_pair();
    let cloud = Cloud::start(dir, &[]);
    let prompts = [
        "The capital of France is",
        "Water boils at",
        "def fibonacci(n):",
    ];
    let args = |p: &'static str| {
        vec![
            "--role",
            "edge",
            "--cloud",
            &cloud.address,
            "-p",
            p,
            "-n",
            "16",
            "--temp",
            "0",
            "--json",
        ]
    };
    let alone: Vec<Value> = prompts
        .map(|p| must_json(dir, "splitrun", &args(p))["ids"].clone())
        .into();
    let children: Vec<_> = prompts
        .iter()
        .map(|p| {
            command("splitrun")
                .args(args(p))
                .current_dir(dir)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (child, alone) in children.into_iter().zip(alone) {
        let out = child.wait_with_output().unwrap();
        let v: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(v["ids"], alone);
    }
}

#[test]
fn a_cloud_killed_in_mid_generation_is_named_within_the_deadline() {
    let dir = smollm2_pair();
    let mut cloud = Cloud::start(dir, &[]);
    let address = cloud.address.clone();
    let mut edge = command("splitrun")
        .args([
            "--role", "edge", "--cloud", &address, "-p", PROMPT, "-n", "2000",
        ])
        .args(["--temp", "0", "--ignore-eos", "--timeout", "10"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(edge.stdout.take().unwrap());
    let mut text = vec![0; 40];
    out.read_exact(&mut text).unwrap();
    cloud.kill();
    let start = Instant::now();
    let status = wait(&mut edge, Duration::from_secs(15));
    assert_eq!(status.code(), Some(1), "after {:?}", start.elapsed());
    out.read_to_end(&mut text).unwrap();
    let mut error = String::new();
    edge.stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert!(error.contains(&address), "{error}");

    // What was printed is the beginning of the right answer, nothing else.
    let args = [
        "--role",
        "both",
        "-p",
        PROMPT,
        "-n",
        "400",
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ];
    let right = must_json(dir, "splitrun", &args);
    let text = String::from_utf8(text).unwrap();
    let text = text.trim_end_matches('\n');
    let right = right["text"].as_str().unwrap();
    let n = text.len().min(right.len());
    assert_eq!(text.as_bytes()[..n], right.as_bytes()[..n]);
}

#[test]
fn a_missing_cloud_and_another_pair_are_named() {
    let dir = smollm2_pair();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let out = run(
        dir,
        "splitrun",
        &["--role", "edge", "--cloud", &free.to_string(), "-p", "x"],
    );
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.contains(&free.to_string()), "{error}");

    let other = tempfile::tempdir().unwrap();
    fixtures::LlamaShape::tiny()
        .write(&other.path().join("tiny.gguf"))
        .unwrap();
    let args = ["tiny.gguf", "--split", "1", "--edge-bits", "4"];
    integration::must(other.path(), "splitconv", &args);
    let cloud = Cloud::start(other.path(), &[]);
    let out = run(
        dir,
        "splitrun",
        &["--role", "edge", "--cloud", &cloud.address, "-p", "x"],
    );
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{error}");
    let id = |dir: &std::path::Path| {
        let mut file = std::fs::read_dir(dir)
            .unwrap()
            .filter_map(Result::ok)
            .map(|e| e.path());
        let file = file
            .find(|p| p.to_string_lossy().ends_with("-00001-of-00002.gguf"))
            .unwrap();
        let g = formats::gguf::Gguf::open(&file).unwrap();
        let info = formats::pair::HalfInfo::from_metadata(g.metadata())
            .unwrap()
            .unwrap();
        info.contract.pair_id.to_string()
    };
    assert!(
        error.contains(&id(dir)) && error.contains(&id(other.path())),
        "{error}"
    );
}

#[test]
fn the_context_limit_is_an_error_with_a_way_out() {
    let dir = smollm2_pair();
    let out = run(
        dir,
        "splitrun",
        &["--role", "both", "-p", PROMPT, "-c", "8"],
    );
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert!(error.contains("context") && error.contains("-c"), "{error}");
    let args = [
        "--role",
        "both",
        "-p",
        "One two three",
        "-c",
        "8",
        "--ignore-eos",
        "--json",
    ];
    let v = must_json(dir, "splitrun", &args);
    assert_eq!(v["stop"], "context");
    assert_eq!(
        v["ids"].as_array().unwrap().len() as u64 + v["prompt_tokens"].as_u64().unwrap(),
        9
    );
}

#[test]
fn what_eval_predicts_of_the_uplink_a_real_run_sends() {
    let dir = smollm2_pair();
    let cloud = Cloud::start(dir, &[]);
    // The answer itself is the text that eval gets, so that both code the same kind of rows.
    let args = [
        "--role",
        "edge",
        "--cloud",
        &cloud.address,
        "-p",
        PROMPT,
        "-n",
        "200",
        "--temp",
    ];
    let args = [&args[..], &["0", "--ignore-eos", "--json"]].concat();
    let real = must_json(dir, "splitrun", &args);
    let sent = real["uplink_bytes_per_token"].as_f64().unwrap();
    let text = dir.join("answer.txt");
    std::fs::write(&text, format!("{PROMPT}{}", real["text"].as_str().unwrap())).unwrap();
    let text = text.to_str().unwrap();
    let args = [
        "eval", "--text", text, "--ctx", "200", "--codec", "auto", "--json",
    ];
    let predicted = must_json(dir, "splitrun", &args)["bytes_per_token"]
        .as_f64()
        .unwrap();
    assert!(
        (sent / predicted - 1.0).abs() < 0.03,
        "sent {sent}, predicted {predicted}"
    );
    assert!(sent <= 440.0, "{sent}");
}
