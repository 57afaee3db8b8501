//! What stands in the two files.

mod common;

use std::collections::BTreeSet;

use common::{Bench, cloud, edge, weights};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::{Gguf, GgufSet};
use formats::pair::{Digest, HalfInfo, HalfRole};

fn half(file: &Gguf) -> HalfInfo {
    HalfInfo::from_metadata(file.metadata()).unwrap().unwrap()
}

/// Rows of 256 everywhere, so that every type fits.
fn wide() -> LlamaShape {
    LlamaShape {
        n_embd: 256,
        ..LlamaShape::tiny()
    }
}

#[test]
fn the_line_as_typed() {
    let shape = LlamaShape {
        n_layer: 12,
        ..wide()
    };
    let bench = Bench::empty();
    shape.write(&bench.path("llama2-13b.gguf")).unwrap();
    bench
        .run(&["llama2-13b.gguf", "--split", "10", "--edge-bits", "3"])
        .ok();
    let (e, c) = (
        "llama2-13b-s10e3c8-00001-of-00002.gguf",
        "llama2-13b-s10e3c8-00002-of-00002.gguf",
    );
    assert_eq!(bench.names(), [e, c, "llama2-13b.gguf"]);
    let (source, e, c) = (bench.open("llama2-13b.gguf"), bench.open(e), bench.open(c));
    for file in [&e, &c] {
        file.second_opinion().unwrap();
    }
    // Every tensor stands in exactly one file. What an edge's matrices may cost together is what
    // they would cost in the type that the bits stand for.
    let (mut weights, mut bytes, mut types) = (0, 0, BTreeSet::new());
    assert_eq!(
        e.tensors().len() + c.tensors().len(),
        source.tensors().len()
    );
    for t in source.tensors() {
        let on_edge = e.tensor(&t.name);
        let there = on_edge.or(c.tensor(&t.name)).unwrap();
        assert_eq!(there.dims, t.dims);
        let layer = t
            .name
            .strip_prefix("blk.")
            .map(|n| n.split_once('.').unwrap().0);
        let first = match layer {
            Some(l) => l.parse::<u32>().unwrap() < 10,
            None => t.name == "token_embd.weight",
        };
        assert_eq!(on_edge.is_some(), first, "{}", t.name);
        match (t.dims.len(), layer, first) {
            (1, ..) => assert_eq!(there.block_type, BlockType::F32, "{}", t.name),
            (_, Some(_), true) => {
                weights += t.dims.iter().product::<u64>();
                bytes += there.bytes;
                types.insert(there.block_type);
            }
            _ => assert_eq!(there.block_type, BlockType::Q8_0, "{}", t.name),
        }
    }
    let bits = bytes as f64 * 8.0 / weights as f64;
    assert!((3.4..=3.4375).contains(&bits), "{bits} in {types:?}");
    assert!(
        types.len() > 1 && types.contains(&BlockType::Q3_K),
        "{types:?}"
    );
    // And all the same where that is wanted.
    let flat = "llama2-13b.gguf --split 10 --edge-bits 3 --recipe flat --dry-run --json";
    let json = bench.run(&flat.split(' ').collect::<Vec<_>>()).ok().json();
    let on_edge = |t: &&serde_json::Value| {
        t["role"] == "edge"
            && t["name"].as_str().unwrap().starts_with("blk")
            && t["shape"][1].is_u64()
    };
    let tensors = json["tensors"].as_array().unwrap();
    assert!(tensors.iter().filter(on_edge).all(|t| t["to"] == "Q3_K"));
    assert_eq!(tensors.iter().filter(on_edge).count(), 70);
}

#[test]
fn metadata_is_kept_to_the_bit() {
    let shape = LlamaShape {
        alignment: Some(64),
        ..wide()
    };
    let bench = Bench::new(&shape);
    bench.run(&["m.gguf", "--split", "2"]).ok();
    let source = bench.open("m.gguf");
    for (no, name) in [edge(2, "e4c8"), cloud(2, "e4c8")].iter().enumerate() {
        let file = bench.open(name);
        assert_eq!(file.alignment(), 64);
        for (k, v) in source.metadata().iter() {
            assert_eq!(file.metadata().get(k), Some(v), "{k}");
        }
        let get = |k: &str| file.metadata().get(k).map(|v| format!("{v:?}"));
        assert_eq!(get("split.no"), Some(format!("u16:{no}")));
        assert_eq!(get("split.count"), Some("u16:2".into()));
        let total = source.tensors().len();
        assert_eq!(get("split.tensors.count"), Some(format!("i32:{total}")));
        assert_eq!(get("general.quantization_version"), Some("u32:2".into()));
        assert!(get("general.file_type").is_some());
        let info = half(&file);
        assert_eq!(info.contract.n_layer, 6);
        assert_eq!(info.contract.width, 256);
        assert_eq!(info.tensor_digests.len(), file.tensors().len());
        for (t, d) in file.tensors().iter().zip(&info.tensor_digests) {
            assert_eq!(Digest::of(file.data(t)), *d, "{}", t.name);
        }
    }
    // GGUF's own reader of shards takes them for one model.
    let set = GgufSet::open(&bench.path(&cloud(2, "e4c8"))).unwrap();
    assert_eq!(set.files().len(), 2);
}

#[test]
fn an_enough_small_source_is_copied() {
    let shape = LlamaShape {
        matrix_type: BlockType::Q4_1,
        embd_type: Some(BlockType::Q8_0),
        ..wide()
    };
    let bench = Bench::new(&shape);
    let bits = ["--edge-bits", "8", "--cloud-bits", "16"];
    let run = bench.run(&[&["m.gguf", "--split", "3"], &bits[..]].concat());
    assert!(!run.ok().stderr.contains("lose"));
    let source = bench.open("m.gguf");
    for name in [edge(3, "e8c16"), cloud(3, "e8c16")] {
        let file = bench.open(&name);
        for t in file.tensors() {
            let original = source.tensor(&t.name).unwrap();
            assert_eq!(t.block_type, original.block_type, "{}", t.name);
            assert_eq!(file.data(t), source.data(original), "{}", t.name);
        }
    }
}

#[test]
fn a_tied_head_stands_in_both_without_a_duplicate() {
    let shape = LlamaShape {
        tied: true,
        rope_freqs: true,
        ..wide()
    };
    let bench = Bench::new(&shape);
    bench
        .run(&["m.gguf", "--split", "3", "--cloud-type", "Q6_K"])
        .ok();
    let source = bench.open("m.gguf");
    let (e, c) = (bench.open(&edge(3, "e4c6")), bench.open(&cloud(3, "e4c6")));
    assert!(e.tensor("output.weight").is_none() && c.tensor("token_embd.weight").is_none());
    assert_eq!(
        e.tensor("token_embd.weight").unwrap().block_type,
        BlockType::Q8_0
    );
    assert_eq!(
        c.tensor("output.weight").unwrap().block_type,
        BlockType::Q6_K
    );
    let (a, b) = (
        weights(&source, "token_embd.weight"),
        weights(&c, "output.weight"),
    );
    let error: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
    let norm: f32 = a.iter().map(|x| x * x).sum();
    assert!(error < 1e-3 * norm, "{error} of {norm}");
    // The frequency factors: a tensor on the edge, a key in the cloud.
    assert!(e.tensor("rope_freqs.weight").is_some() && c.tensor("rope_freqs.weight").is_none());
    assert_eq!(half(&e).rope_freqs, None);
    assert_eq!(
        half(&c).rope_freqs,
        Some(weights(&source, "rope_freqs.weight"))
    );
    let total = e.tensors().len() + c.tensors().len();
    assert_eq!(total, source.tensors().len() + 1);
    bench.run(&["verify", "."]).ok();
}

#[test]
fn every_type_can_be_forced_and_comes_close() {
    let bench = Bench::new(&wide());
    let source = bench.open("m.gguf");
    for (ty, most) in [
        (BlockType::F32, 1e-9),
        (BlockType::F16, 1e-6),
        (BlockType::BF16, 1e-4),
        (BlockType::Q8_0, 1e-4),
        (BlockType::Q6_K, 1e-3),
        (BlockType::Q5_K, 3e-3),
        (BlockType::Q5_1, 3e-3),
        (BlockType::Q5_0, 3e-3),
        (BlockType::Q4_K, 1e-2),
        (BlockType::Q4_1, 1e-2),
        (BlockType::Q4_0, 1e-2),
        (BlockType::IQ4_NL, 2e-2),
        (BlockType::IQ4_XS, 2e-2),
        (BlockType::MXFP4, 3e-2),
        (BlockType::IQ3_S, 5e-2),
        (BlockType::Q3_K, 5e-2),
        (BlockType::Q2_K, 0.2),
        (BlockType::TQ2_0, 0.4),
        (BlockType::TQ1_0, 0.4),
    ] {
        let args = [
            "m.gguf",
            "--split",
            "2",
            "--edge-type",
            ty.name(),
            "--edge-bits",
            "4",
        ];
        bench.run(&[&args[..], &["--force"]].concat()).ok();
        let file = bench.open(&edge(2, "e4c8"));
        for t in file.tensors().iter().filter(|t| t.dims.len() > 1) {
            assert_eq!(t.block_type, ty, "{}", t.name);
            let (a, b) = (weights(&source, &t.name), weights(&file, &t.name));
            let error: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
            let norm: f32 = a.iter().map(|x| x * x).sum();
            assert!(error <= most * norm, "{ty} {}: {}", t.name, error / norm);
        }
    }
}

#[test]
fn a_source_of_any_type_is_copied_or_encoded_anew() {
    for ty in BlockType::ALL.into_iter().filter(|t| t.block_len() > 1) {
        let bench = Bench::new(&LlamaShape {
            n_layer: 2,
            matrix_type: ty,
            ..wide()
        });
        let source = bench.open("m.gguf");
        bench
            .run(&["m.gguf", "--split", "1", "--edge-bits", "2"])
            .ok();
        for (file, target) in [
            (edge(1, "e2c8"), BlockType::Q2_K),
            (cloud(1, "e2c8"), BlockType::Q8_0),
        ] {
            let file = bench.open(&file);
            file.second_opinion().unwrap();
            for t in file.tensors().iter().filter(|t| t.name.contains("ffn_")) {
                let from = source.tensor(&t.name).unwrap();
                if from.dims.len() == 1 || ty.bits_per_weight() <= target.bits_per_weight() {
                    assert_eq!(t.block_type, from.block_type, "{}", t.name);
                    assert_eq!(file.data(t), source.data(from), "{ty} {}", t.name);
                    continue;
                }
                assert_eq!(t.block_type, target, "{ty} {}", t.name);
                let (a, b) = (weights(&source, &t.name), weights(&file, &t.name));
                let error: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
                let norm: f32 = a.iter().map(|x| x * x).sum();
                assert!(error < 0.2 * norm, "{ty} {}: {}", t.name, error / norm);
            }
        }
    }
}

#[test]
fn tensor_type_wins_and_the_last_match_counts() {
    let bench = Bench::new(&wide());
    let args = ["m.gguf", "--split", "3", "--edge-type", "Q4_0"];
    let rules = [
        "--tensor-type",
        "ffn_=Q5_0",
        "--tensor-type",
        r"^blk\.[0-2]\.ffn_down=Q2_K",
        "--tensor-type",
        "^output.weight$=F16",
    ];
    let run = bench.run(&[&args[..], &rules, &["--json"]].concat()).ok();
    for t in run.json()["tensors"].as_array().unwrap() {
        let name = t["name"].as_str().unwrap();
        let vector = t["shape"].as_array().unwrap().len() == 1;
        let on_edge = t["role"] == "edge";
        let want = match name {
            _ if vector => "F32",
            "output.weight" => "F16",
            n if n.contains("ffn_down") && on_edge => "Q2_K",
            n if n.contains("ffn_") => "Q5_0",
            _ if on_edge => "Q4_0",
            _ => "Q8_0",
        };
        assert_eq!(t["to"], want, "{name}");
    }
}

#[test]
fn narrow_rows_fall_back_and_it_is_said() {
    let bench = Bench::new(&LlamaShape::tiny());
    for (bits, narrow, wide) in [
        ("2", "IQ4_NL", "Q2_K"),
        ("3", "IQ4_NL", "Q3_K"),
        ("4", "IQ4_NL", "Q4_K"),
        ("5", "Q5_1", "Q5_K"),
        ("6", "Q8_0", "Q6_K"),
    ] {
        let args = ["m.gguf", "--split", "3", "--edge-bits", bits];
        let run = bench
            .run(&[&args[..], &["--recipe", "flat", "--dry-run", "--json"]].concat())
            .ok();
        assert!(run.stderr.contains("rows of 64"), "{}", run.stderr);
        assert!(run.stderr.contains(narrow) && run.stderr.contains(wide));
        let json = run.json();
        assert_eq!(json["notes"].as_array().unwrap().len(), 1);
        for t in json["tensors"].as_array().unwrap() {
            let name = t["name"].as_str().unwrap();
            if t["role"] == "edge" && name.starts_with("blk") && t["shape"][1].is_u64() {
                let want = if name.contains("ffn_down") {
                    wide
                } else {
                    narrow
                };
                assert_eq!(t["to"], want, "{name}");
            }
        }
    }
}

#[test]
fn the_same_conversion_anywhere_is_the_same_pair() {
    let shape = wide();
    let (here, there) = (Bench::new(&shape), Bench::empty());
    // Another name, another folder, shards, another number of threads.
    let shards = shape.write_shards(there.dir.path(), "other", 3).unwrap();
    let convert = |bench: &Bench, model: &str, more: &[&str]| {
        let args = [model, "--split", "3", "--json"];
        bench.run(&[&args[..], more].concat()).ok().json()
    };
    let a = convert(&here, "m.gguf", &["-t", "1"]);
    let b = convert(
        &there,
        shards[1].to_str().unwrap(),
        &["-t", "5", "--out", "deep/er"],
    );
    assert_eq!(a["pair_id"], b["pair_id"]);
    assert_eq!(a["source_digest"], b["source_digest"]);
    for key in ["edge_file", "cloud_file"] {
        let file =
            |bench: &Bench, json: &serde_json::Value| bench.open(json[key].as_str().unwrap());
        let (x, y) = (file(&here, &a), file(&there, &b));
        assert_eq!(
            half(&x).tensor_digests,
            half(&y).tensor_digests,
            "threads must not show"
        );
    }
    assert!(
        there
            .path("deep/er/other-s3e4c8-00001-of-00002.gguf")
            .is_file()
    );
    // Another cut, other types, another source: another pair.
    let mut ids = vec![a["pair_id"].clone()];
    ids.push(convert(&here, "m.gguf", &["--out", "b", "--edge-bits", "5"])["pair_id"].clone());
    let other = here.run(&["m.gguf", "--split", "2", "--json"]).ok().json();
    ids.push(other["pair_id"].clone());
    let seeded = Bench::new(&LlamaShape { seed: 2, ..shape });
    ids.push(convert(&seeded, "m.gguf", &[])["pair_id"].clone());
    for (i, id) in ids.iter().enumerate() {
        assert!(!ids[..i].contains(id), "{i}: {ids:?}");
    }
}

#[test]
fn a_dry_run_tells_the_truth_and_writes_nothing() {
    let bench = Bench::new(&wide());
    let args = ["m.gguf", "--split", "3", "--edge-bits", "3", "--json"];
    let plan = bench.run(&[&args[..], &["--dry-run"]].concat()).ok().json();
    assert_eq!(bench.names(), ["m.gguf"]);
    let done = bench.run(&args).ok().json();
    assert_eq!(plan["tensors"], done["tensors"]);
    assert_eq!(plan["edge_file"], done["edge_file"]);
    let edge_bits = plan["edge_bits_per_weight"].as_f64().unwrap();
    assert!((3.4..=3.4375).contains(&edge_bits), "{edge_bits}");
    assert_eq!(plan["cloud_bits_per_weight"], 8.5);
    assert!(plan["pair_id"].is_null() && done["pair_id"].is_string());
    let size = |json: &serde_json::Value, k: &str| json[k].as_u64().unwrap();
    let file = bench.path(&edge(3, "e3c8"));
    assert_eq!(
        size(&done, "edge_bytes"),
        std::fs::metadata(file).unwrap().len()
    );
    let data: u64 = done["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["role"] == "edge")
        .map(|t| t["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(size(&plan, "edge_bytes"), data);
    let table = bench.run(&["m.gguf", "--split", "3", "--dry-run"]).ok();
    for word in [
        "blk.2.ffn_down.weight",
        "IQ4_XS",
        "bits per weight",
        "m-s3e4c8-00002",
    ] {
        assert!(table.stdout.contains(word), "{word}: {}", table.stdout);
    }
}

#[test]
fn a_renamed_half_still_says_what_it_is() {
    let bench = Bench::new(&wide());
    bench.run(&["m.gguf", "--split", "3"]).ok();
    std::fs::rename(bench.path(&cloud(3, "e4c8")), bench.path("x.gguf")).unwrap();
    let json = bench.run(&["inspect", "x.gguf", "--json"]).ok().json();
    assert_eq!(json["half"]["role"], HalfRole::Cloud.name());
    assert_eq!(json["half"]["first_layer"], 3);
    assert_eq!(json["half"]["end_layer"], 6);
    let text = bench.run(&["inspect", "x.gguf", "--all"]).ok().stdout;
    assert!(text.contains("cloud half") && text.contains("blk.5.ffn_up.weight"));
    let plain = bench.run(&["inspect", "m.gguf", "--json"]).ok().json();
    assert!(plain["half"].is_null());
}
