//! What `splitconv inspect` says is what is there, and what a conversion makes of it.

mod common;

use common::{Bench, cloud, edge};
use fixtures::LlamaShape;
use formats::gguf::Gguf;
use serde_json::Value as Json;

fn data_bytes(file: &Gguf) -> u64 {
    file.tensors().iter().map(|t| t.bytes as u64).sum()
}

fn cut(json: &Json, split: u64) -> Json {
    let cuts = json["cuts"].as_array().unwrap();
    let found = cuts.iter().find(|c| c["split"] == split);
    found.unwrap().clone()
}

#[test]
fn cuts_weigh_what_a_conversion_writes() {
    for tied in [false, true] {
        let bench = Bench::new(&LlamaShape {
            n_embd: 256,
            tied,
            rope_freqs: tied,
            ..LlamaShape::tiny()
        });
        let bits = ["--edge-bits", "3", "--cloud-bits", "6"];
        let args = [&["inspect", "m.gguf", "--json"], &bits[..]].concat();
        let json = bench.run(&args).ok().json();
        assert_eq!(json["cuts"].as_array().unwrap().len(), 5);
        assert_eq!(json["n_layer"], 6);
        assert_eq!(json["tied_head"], tied);
        // A copy of every tensor weighs what the file weighs, and a tied head once more.
        let source = bench.open("m.gguf");
        let embedding = source.tensor("token_embd.weight").unwrap().bytes as u64;
        for split in [1, 4] {
            let cut = cut(&json, split);
            let as_is = cut["edge_bytes"].as_u64().unwrap() + cut["cloud_bytes"].as_u64().unwrap();
            let twice = if tied { embedding } else { 0 };
            assert_eq!(as_is, data_bytes(&source) + twice);
            let number = split.to_string();
            let convert = [&["m.gguf", "--split", number.as_str()], &bits[..]].concat();
            bench.run(&convert).ok();
            let split = split as u32;
            let (e, c) = (
                bench.open(&edge(split, "e3c6")),
                bench.open(&cloud(split, "e3c6")),
            );
            assert_eq!(cut["recipe_edge_bytes"], data_bytes(&e));
            assert_eq!(cut["recipe_cloud_bytes"], data_bytes(&c));
        }
        let plain = bench.run(&["inspect", "m.gguf", "--json"]).ok().json();
        assert!(cut(&plain, 1).get("recipe_edge_bytes").is_none());
    }
}

#[test]
fn sums_add_up() {
    let shape = LlamaShape::tiny();
    let bench = Bench::new(&shape);
    let json = bench.run(&["inspect", "m.gguf", "--json"]).ok().json();
    let source = bench.open("m.gguf");
    let sum = |list: &str, key: &str| -> u64 {
        let list = json[list].as_array().unwrap();
        list.iter().map(|t| t[key].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("types", "bytes"), data_bytes(&source));
    assert_eq!(sum("types", "tensors"), source.tensors().len() as u64);
    assert_eq!(
        sum("layers", "bytes") + sum("others", "bytes"),
        data_bytes(&source)
    );
    assert_eq!(json["width"], 64);
    assert_eq!(json["vocabulary"], 320);
    // Any shard stands for the whole.
    let shards = shape.write_shards(bench.dir.path(), "s", 3).unwrap();
    let whole = bench
        .run(&["inspect", shards[1].to_str().unwrap(), "--json"])
        .ok()
        .json();
    assert_eq!(whole["files"], 3);
    for key in ["types", "layers", "cuts", "tensor_bytes", "weights"] {
        assert_eq!(whole[key], json[key], "{key}");
    }
    // One that is alone is shown alone, and it is said.
    std::fs::remove_file(&shards[2]).unwrap();
    let alone = bench.run(&["inspect", shards[1].to_str().unwrap()]).ok();
    assert!(alone.stdout.contains("one shard"), "{}", alone.stdout);
}

/// A half is shown by itself, wherever the other one is; bits are for models.
#[test]
fn a_half_is_not_cut_again() {
    let bench = Bench::new(&LlamaShape::tiny());
    bench.run(&["m.gguf", "--split", "2"]).ok();
    let half = cloud(2, "e4c8");
    let json = bench.run(&["inspect", &half, "--json"]).ok().json();
    assert_eq!(json["half"]["role"], "cloud");
    assert!(json["cuts"].as_array().unwrap().is_empty());
    assert_eq!(json["layers"].as_array().unwrap().len(), 4);
    assert_eq!(json["layers"][0]["layer"], 2);
    bench
        .run(&["inspect", &half, "--edge-bits", "4"])
        .fails_with(&[&half, "already the cloud half"]);
    let text = bench.run(&["inspect", "m.gguf", "--edge-bits", "4"]).ok();
    for word in [
        "6 layers",
        "--split",
        "token_embd.weight",
        "F16",
        "as the recipe",
    ] {
        assert!(text.stdout.contains(word), "{word}: {}", text.stdout);
    }
}
