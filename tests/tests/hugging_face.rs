//! A model in the Hugging Face layout runs as its GGUF does: the same tokens, and the same
//! logits to the last bit.

use fixtures::{Layout, LlamaShape};
use integration::{must, must_json};

#[test]
fn a_folder_and_its_gguf_say_the_same() {
    let shards = Layout {
        shards: 2,
        ..Layout::default()
    };
    for (shape, layout) in [
        (LlamaShape::tiny(), shards),
        (LlamaShape::tiny_qwen2(), Layout::default()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        shape.write(&dir.path().join("m.gguf")).unwrap();
        let folder = dir.path().join("m");
        shape.write_hugging_face(&folder, &layout).unwrap();
        let said = ["m.gguf", "m"].map(|model| {
            let out = format!("of-{model}");
            let args = [model, "--split", "2", "--edge-bits", "5", "--out", &out];
            must(dir.path(), "splitconv", &args);
            let args = [
                "--role",
                "both",
                "--model",
                &out,
                "--codec",
                "f32",
                "--prompt",
                "The return of the 3 and\n\nthe café",
                "-n",
                "12",
                "--temp",
                "0",
                "--ignore-eos",
                "--top-logprobs",
                "5",
                "--json",
            ];
            let answer = must_json(dir.path(), "splitrun", &args);
            ["prompt_tokens", "ids", "logprobs"].map(|key| answer[key].clone())
        });
        assert_eq!(said[0][1].as_array().unwrap().len(), 12);
        assert_eq!(said[0], said[1], "{:?}", shape.architecture);
    }
}
