//! The three lines of the README, exactly as typed, on a model of the shape of Llama-2-13B.

use std::process::Stdio;

use fixtures::LlamaShape;
use formats::blocks::BlockType;
use integration::{Cloud, command, must};

/// Layers: a few more than the ten of the edge. The width is the real one.
const LAYERS: u32 = 11;

#[test]
fn convert_cloud_edge() {
    let dir = tempfile::tempdir().unwrap();
    let model = LlamaShape::llama2_13b(LAYERS, BlockType::Q4_0);
    model.write(&dir.path().join("llama2-13b.gguf")).unwrap();

    // splitconv llama2-13b.gguf --split 10 --edge-bits 3
    must(
        dir.path(),
        "splitconv",
        &["llama2-13b.gguf", "--split", "10", "--edge-bits", "3"],
    );
    for no in 1..=2 {
        let name = format!("llama2-13b-s10e3c8-0000{no}-of-00002.gguf");
        assert!(dir.path().join(&name).exists(), "{name}");
    }

    // splitrun --role cloud
    let cloud = Cloud::start_as_typed(dir.path(), &["--role", "cloud"]);
    assert_eq!(cloud.address, "127.0.0.1:7433");

    // splitrun --role edge, with a line on standard input and an end to the noise it answers
    let mut edge = command("splitrun")
        .args(["--role", "edge", "-n", "2"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut edge.stdin.take().unwrap(), b"Hi").unwrap();
    let out = edge.wait_with_output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(!out.stdout.is_empty());
}
