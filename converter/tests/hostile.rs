//! Surroundings that are not kind: readers that leave, pipes, links, names that steer a terminal.
#![cfg(unix)]

mod common;

use std::os::unix::fs::symlink;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, Run, cloud, edge};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::{Metadata, TensorDecl, Value, Writer};

/// Waits, but not for ever.
#[track_caller]
fn ends(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it hangs");
}

/// Runs with a time limit.
#[track_caller]
fn run(bench: &Bench, args: &[&str]) -> Run {
    let mut command = bench.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let status = ends(&mut child);
    let out = child.wait_with_output().unwrap();
    Run {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

#[test]
fn nobody_reads_standard_error() {
    let bench = Bench::new(&LlamaShape::tiny());
    for (args, code) in [
        (&["m.gguf", "--split", "2", "-t", "1"][..], 0),
        (&["absent.gguf", "--split", "2"], 1),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = bench.command(args);
        command.stdout(Stdio::null()).stderr(writer);
        let mut child = command.spawn().unwrap();
        assert_eq!(ends(&mut child).code(), Some(code), "{args:?}");
    }
    let (edge, cloud) = (edge(2, "e4c8"), cloud(2, "e4c8"));
    assert_eq!(bench.names(), [edge.as_str(), &cloud, "m.gguf"]);
    run(&bench, &["verify", &edge, &cloud]).ok();
}

#[test]
fn pipes_are_refused_and_not_waited_for() {
    let bench = Bench::new(&LlamaShape::tiny());
    let fifo = |name: &str| {
        let made = Command::new("mkfifo").arg(bench.path(name)).status();
        assert!(made.unwrap().success());
    };
    fifo("pipe.gguf");
    for args in [
        &["pipe.gguf", "--split", "2"][..],
        &["inspect", "pipe.gguf"],
        &["verify", "pipe.gguf"],
    ] {
        run(&bench, args).fails_with(&["pipe.gguf", "not a regular file"]);
    }
    let partial = format!("{}.partial", edge(2, "e4c8"));
    fifo(&partial);
    run(&bench, &["m.gguf", "--split", "2"]).fails_with(&[&partial, "remove it"]);
}

#[test]
fn links_in_the_place_of_a_temporary_file_are_not_followed() {
    let bench = Bench::new(&LlamaShape::tiny());
    let model = std::fs::read(bench.path("m.gguf")).unwrap();
    for name in [edge(2, "e4c8"), cloud(2, "e4c8")] {
        let partial = format!("{name}.partial");
        let path = bench.path(&partial);
        let refused = || {
            run(&bench, &["m.gguf", "--split", "2"]).fails_with(&[&partial, "remove it"]);
            assert_eq!(std::fs::read(bench.path("m.gguf")).unwrap(), model);
            // Nothing else was made, and what stood there stands there.
            let mut there = [partial.as_str(), "m.gguf"];
            there.sort_unstable();
            assert_eq!(bench.names(), there);
            std::fs::remove_file(&path).unwrap();
        };
        symlink("m.gguf", &path).unwrap();
        refused();
        symlink("nowhere", &path).unwrap();
        refused();
        std::fs::hard_link(bench.path("m.gguf"), &path).unwrap();
        refused();
    }
    // What a killed run has left is an ordinary file, and no obstacle.
    std::fs::write(bench.path(&format!("{}.partial", edge(2, "e4c8"))), "left").unwrap();
    run(&bench, &["m.gguf", "--split", "2"]).ok();
}

#[test]
fn names_from_a_file_do_not_steer_the_terminal() {
    let bench = Bench::empty();
    let mut meta = Metadata::new();
    meta.set(
        "general.architecture",
        Value::string("\u{1b}]0;owned\u{7}\u{202e}x"),
    );
    meta.set(
        "a\u{1b}[2Jkey\nforged = 1",
        Value::string("\u{9b}31m\u{1b}c"),
    );
    let decl = TensorDecl {
        name: "t\u{1b}[31m".into(),
        dims: vec![4],
        block_type: BlockType::F32,
    };
    let file = std::fs::File::create(bench.path("e.gguf")).unwrap();
    let mut writer = Writer::new(file, &meta, vec![decl]).unwrap();
    writer.write(&[0; 16]).unwrap();
    writer.finish().unwrap();
    let clean = |text: &str| {
        let bad = text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(bad, None, "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text:?}");
    };
    let shown = run(&bench, &["inspect", "e.gguf", "--all"]).ok();
    clean(&shown.stdout);
    assert!(shown.stdout.contains("a\\u{1b}[2Jkey\\nforged = 1"));
    assert!(shown.stdout.contains("t\\u{1b}[31m"));
    let refused = run(&bench, &["e.gguf", "--split", "1"]);
    refused.fails_with(&["architecture", "\\u{1b}]0;owned"]);
    clean(&refused.stderr);
}
