//! `splitrun --memory-limit`: refuses beforehand, with a figure that holds, and names the command
//! that finds a plan.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fixtures::LlamaShape;
use integration::{Cloud, command, must, run, smollm2_pair};

/// What a refused run says that it needs.
fn needed(stderr: &str) -> u64 {
    let (_, rest) = stderr.split_once("needs ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn refused(dir: &Path, args: &[&str]) -> String {
    let out = run(dir, "splitrun", args);
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("--memory-limit"), "{said}");
    assert!(said.contains("splitconv plan MODEL"), "{said}");
    said
}

#[test]
fn what_needs_more_is_refused_and_what_does_not_runs() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    LlamaShape::tiny().write(&dir.join("m.gguf")).unwrap();
    must(dir, "splitconv", &["m.gguf", "--split", "2"]);
    let pair = "m-s2e4c8";
    let edge = [
        "--role",
        "edge",
        "--model",
        pair,
        "-p",
        "x",
        "-n",
        "1",
        "--memory-limit",
    ];
    let said = refused(dir, &[&edge[..], &["1MiB"]].concat());
    assert!(said.contains("--edge-memory 1MiB --context 512"), "{said}");
    let cloud = [
        "--role",
        "cloud",
        "--listen",
        "127.0.0.1:0",
        "--model",
        pair,
        "--memory-limit",
    ];
    let said = refused(dir, &[&cloud[..], &["2MiB"]].concat());
    assert!(said.contains("--cloud-memory 2MiB"), "{said}");

    let whole = [
        "--role", "both", "--model", "m.gguf", "-p", "x", "-n", "2", "--temp", "0",
    ];
    let said = refused(dir, &[&whole[..], &["--memory-limit", "1MiB"]].concat());
    // What it says it needs is enough, a byte less is not.
    let bytes = needed(&said);
    let limit = |n: u64| format!("{n}B");
    must(
        dir,
        "splitrun",
        &[&whole[..], &["--memory-limit", &limit(bytes)]].concat(),
    );
    let said = refused(
        dir,
        &[&whole[..], &["--memory-limit", &limit(bytes - 1)]].concat(),
    );
    // So is a shorter context, if there is one.
    let (_, rest) = said.split_once("; -c ").unwrap();
    let shorter = rest.split(' ').next().unwrap();
    let args = ["--memory-limit", &limit(bytes - 1), "-c", shorter];
    must(dir, "splitrun", &[&whole[..], &args].concat());

    for wrong in ["0GiB", "-1GiB", "4", "lots"] {
        let out = run(
            dir,
            "splitrun",
            &[&whole[..], &["--memory-limit", wrong]].concat(),
        );
        assert_eq!(out.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn a_server_takes_in_as_many_sessions_as_fit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    LlamaShape::tiny().write(&dir.join("m.gguf")).unwrap();
    must(dir, "splitconv", &["m.gguf", "--split", "2"]);
    let cloud = [
        "--role",
        "cloud",
        "--listen",
        "127.0.0.1:0",
        "--memory-limit",
    ];
    let said = refused(dir, &[&cloud[..], &["1MiB"]].concat());
    let limit = format!("{}B", needed(&said));
    // Room for one: it is served, whatever --max-sessions says.
    let cloud = Cloud::start(dir, &["--memory-limit", &limit]);
    let args = [
        "--role",
        "edge",
        "--cloud",
        &cloud.address,
        "-p",
        "x",
        "-n",
        "2",
        "--temp",
        "0",
    ];
    must(dir, "splitrun", &args);
}

/// The figure against what the system says the process has held.
#[test]
#[cfg(target_os = "linux")]
fn the_figure_is_what_a_real_model_takes() {
    let dir = smollm2_pair();
    let args = [
        "--role",
        "both",
        "-c",
        "512",
        "--ignore-eos",
        "-n",
        "8",
        "--temp",
        "0",
    ];
    // Words from all over the vocabulary: the embedding is touched as well.
    let prompt: String = include_str!("../../docs/wire-format.md")
        .chars()
        .take(900)
        .collect();
    let args = [&args[..], &["-p", &prompt]].concat();
    let said = refused(dir, &[&args[..], &["--memory-limit", "1MiB"]].concat());
    let figure = needed(&said) as f64;
    let mut child = command("splitrun")
        .args(&args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0.0_f64;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        if let Some(kib) =
            line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
        {
            peak = kib * 1024.0;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    // No more than it says; less by what the prompt has not touched of embedding and context.
    assert!(
        peak < 1.05 * figure && peak > 0.7 * figure,
        "{peak} {figure}"
    );
}
