//! Models in the Hugging Face layout against the same models as GGUF, and what is refused.

mod common;

use std::path::Path;

use common::Bench;
use fixtures::{Layout, LlamaShape};
use formats::blocks::{BlockType, dequantize_row, quantize_row};
use formats::gguf::{Gguf, Metadata};
use serde_json::{Value as Json, json};

/// Both halves, made with every matrix of its own type.
fn halves(bench: &Bench, model: &str, out: &str, bits: &str) -> [Gguf; 2] {
    let args = [
        model,
        "--split",
        "2",
        "--edge-bits",
        bits,
        "--cloud-bits",
        bits,
        "--out",
        out,
    ];
    bench.run(&args).ok();
    let stem = Path::new(model).file_stem().unwrap().to_str().unwrap();
    [1, 2].map(|no| {
        bench.open(&format!(
            "{out}/{stem}-s2e{bits}c{bits}-0000{no}-of-00002.gguf"
        ))
    })
}

/// Keys that only one of the two states, or that tell the pairs apart.
const OWN: [&str; 7] = [
    "general.name",
    "general.type",
    "general.size_label",
    "llama.attention.key_length",
    "llama.attention.value_length",
    // What a byte-level post-processor says, though it is the default.
    "tokenizer.ggml.add_eos_token",
    "splitconv.",
];

fn same_metadata(a: &Metadata, b: &Metadata) {
    let own = |key: &str| OWN.iter().any(|o| key.starts_with(o));
    for (key, value) in a.iter().filter(|(k, _)| !own(k)) {
        assert_eq!(b.get(key), Some(value), "{key}");
    }
    // A SentencePiece vocabulary needs no pre-tokenizer; the conversion names one all the same.
    let more = |key: &str| a.get(key).is_none() && !own(key) && key != "tokenizer.ggml.pre";
    let more: Vec<&str> = b.iter().map(|(k, _)| k).filter(|k| more(k)).collect();
    assert_eq!(more, [""; 0]);
}

#[test]
fn a_folder_is_the_same_model_as_its_gguf() {
    let shape = |tied, matrix_type, qwen| LlamaShape {
        n_layer: 3,
        tied,
        matrix_type,
        ..if qwen {
            LlamaShape::tiny_qwen2()
        } else {
            LlamaShape::tiny()
        }
    };
    let head = Layout {
        as_head: true,
        ..Layout::default()
    };
    let shards = Layout {
        shards: 3,
        ..Layout::default()
    };
    for (i, (shape, layout, bits)) in [
        (shape(false, BlockType::F16, false), Layout::default(), "16"),
        (shape(false, BlockType::BF16, false), shards, "16"),
        (shape(true, BlockType::F32, false), head, "32"),
        (shape(true, BlockType::F32, true), Layout::default(), "32"),
        (shape(false, BlockType::F16, true), shards, "8"),
    ]
    .into_iter()
    .enumerate()
    {
        let bench = Bench::empty();
        shape.write(&bench.path("m.gguf")).unwrap();
        shape.write_hugging_face(&bench.path("m"), &layout).unwrap();
        let gguf = halves(&bench, "m.gguf", "a", bits);
        let folder = halves(&bench, "m", "b", bits);
        for (a, b) in gguf.iter().zip(&folder) {
            assert_eq!(a.tensors().len(), b.tensors().len(), "case {i}");
            for t in a.tensors() {
                let other = b.tensor(&t.name).unwrap();
                assert_eq!((&t.dims, t.block_type), (&other.dims, other.block_type));
                assert_eq!(a.data(t), b.data(other), "case {i}, {}", t.name);
            }
            same_metadata(a.metadata(), b.metadata());
            b.second_opinion().unwrap();
        }
    }
}

#[test]
fn vectors_become_f32() {
    let bench = Bench::empty();
    let shape = LlamaShape {
        n_layer: 3,
        ..LlamaShape::tiny_qwen2()
    };
    shape.write(&bench.path("m.gguf")).unwrap();
    let layout = Layout {
        vectors: BlockType::BF16,
        ..Layout::default()
    };
    shape.write_hugging_face(&bench.path("m"), &layout).unwrap();
    let [gguf, _] = halves(&bench, "m.gguf", "a", "16");
    let [folder, _] = halves(&bench, "m", "b", "16");
    for name in ["blk.0.attn_norm.weight", "blk.1.attn_k.bias"] {
        let (t, other) = (gguf.tensor(name).unwrap(), folder.tensor(name).unwrap());
        assert_eq!(other.block_type, BlockType::F32);
        let mut values = common::weights(&gguf, name);
        let mut rounded = vec![0; 2 * values.len()];
        quantize_row(
            BlockType::BF16,
            &values,
            None,
            formats::blocks::Effort::Normal,
            &mut rounded,
        )
        .unwrap();
        dequantize_row(BlockType::BF16, &rounded, &mut values).unwrap();
        assert_ne!(gguf.data(t), folder.data(other));
        assert_eq!(common::weights(&folder, name), values);
    }
}

/// The identity of a pair hangs on what is in the files, not on how they are cut or named.
#[test]
fn shards_and_file_names_do_not_change_the_pair() {
    let bench = Bench::empty();
    let shape = LlamaShape::tiny();
    let mut ids = Vec::new();
    for (folder, shards) in [("a/m", 1), ("b/m", 4)] {
        let layout = Layout {
            shards,
            ..Layout::default()
        };
        shape
            .write_hugging_face(&bench.path(folder), &layout)
            .unwrap();
        let files: &[&str] = match shards {
            1 => &["", "/model.safetensors"],
            _ => &[
                "",
                "/model.safetensors.index.json",
                "/model-00002-of-00004.safetensors",
            ],
        };
        for file in files {
            let model = format!("{folder}{file}");
            let args = [&model, "--split", "2", "--json", "--force", "--out", "out"];
            ids.push(bench.run(&args).ok().json()["pair_id"].clone());
        }
    }
    assert_eq!(ids.len(), 5);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(bench.path("out/m-s2e4c8-00001-of-00002.gguf").is_file());
    let shown = bench.run(&["inspect", "a/m"]).ok().stdout;
    assert!(shown.contains("layers"), "{shown}");
}

/// A folder whose files are changed by `change`, and what the error must hold.
struct Broken<'a> {
    bench: &'a Bench,
    shape: LlamaShape,
    layout: Layout,
}

impl Broken<'_> {
    #[track_caller]
    fn refused(&self, words: &[&str], change: impl FnOnce(&Path)) {
        let folder = self.bench.path("m");
        let _ = std::fs::remove_dir_all(&folder);
        self.shape
            .write_hugging_face(&folder, &self.layout)
            .unwrap();
        change(&folder);
        self.bench.run(&["m", "--split", "2"]).fails_with(words);
    }

    #[track_caller]
    fn refused_config(&self, key: &str, value: Json, words: &[&str]) {
        self.refused(words, |m| edit(m, "config.json", |c| c[key] = value));
    }
}

fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut Json)) {
    let path = folder.join(name);
    let mut json: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// Changes the header of a safetensors file.
fn edit_header(folder: &Path, name: &str, change: impl FnOnce(&mut Json)) {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut json: Json = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    change(&mut json);
    let header = json.to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(&bytes[8 + size..]);
    std::fs::write(path, out).unwrap();
}

#[test]
fn what_cannot_be_converted_is_named() {
    let bench = Bench::empty();
    let one = Broken {
        bench: &bench,
        shape: LlamaShape::tiny(),
        layout: Layout::default(),
    };
    let gptq = json!({"quant_method": "gptq", "bits": 4});
    one.refused_config(
        "quantization_config",
        gptq,
        &["config.json", "quantised", "gptq"],
    );
    let gemma = json!(["GemmaForCausalLM"]);
    one.refused_config("architectures", gemma, &["Gemma", "Mistral", "Qwen2"]);
    one.refused_config(
        "rope_scaling",
        json!({"type": "yarn", "factor": 4.0}),
        &["yarn"],
    );
    let words = ["mlp.down_proj", "[64, 256]", "[64, 128]"];
    one.refused_config("intermediate_size", json!(128), &words);
    one.refused_config(
        "vocab_size",
        json!(321),
        &["lm_head", "[320, 64]", "[321, 64]"],
    );
    // Llama's own library would make them up.
    let words = ["model.layers.0.self_attn.q_proj.bias", "missing"];
    one.refused_config("attention_bias", json!(true), &words);
    one.refused_config(
        "num_hidden_layers",
        json!(5),
        &["model.layers.5.", "not part"],
    );
    one.refused_config(
        "num_hidden_layers",
        json!(9),
        &["model.layers.6.", "missing"],
    );
    let gone = |name: &'static str| move |m: &Path| std::fs::remove_file(m.join(name)).unwrap();
    one.refused(&["config.json is missing", "GGUF"], gone("config.json"));
    one.refused(&["tokenizer.model", "is missing"], gone("tokenizer.model"));
    one.refused(&["safetensors", "is missing"], gone("model.safetensors"));
    one.refused(&["pytorch_model.bin", "safetensors first"], |m| {
        std::fs::rename(m.join("model.safetensors"), m.join("pytorch_model.bin")).unwrap();
    });
    for (from, to, words) in [
        ("F16", "I16", &["I16", "F32, F16 and BF16"][..]),
        ("F32", "U32", &["U32"]),
    ] {
        one.refused(words, |m| {
            edit_header(m, "model.safetensors", |h| {
                let all = h.as_object_mut().unwrap();
                let t = all.values_mut().find(|t| t["dtype"] == from).unwrap();
                t["dtype"] = json!(to);
            });
        });
    }
    one.refused(&["already quantised", "GPTQ or AWQ"], |m| {
        edit_header(m, "model.safetensors", |h| {
            let all = h.as_object_mut().unwrap();
            let name = "model.layers.0.mlp.up_proj.weight";
            let mut t = all.remove(name).unwrap();
            t["dtype"] = json!("I16");
            all.insert("model.layers.0.mlp.up_proj.qweight".into(), t);
        });
    });
    one.refused(&["q_norm", "not part of a llama"], |m| {
        edit_header(m, "model.safetensors", |h| {
            let all = h.as_object_mut().unwrap();
            let t = all.remove("model.layers.0.input_layernorm.weight").unwrap();
            all.insert("model.layers.0.self_attn.q_norm.weight".into(), t);
        });
    });
    one.refused(&["model.safetensors", "header"], |m| {
        let mut bytes = std::fs::read(m.join("model.safetensors")).unwrap();
        bytes[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        std::fs::write(m.join("model.safetensors"), bytes).unwrap();
    });
}

#[test]
fn what_an_index_may_not_say() {
    const INDEX: &str = "model.safetensors.index.json";
    const SECOND: &str = "model-00002-of-00003.safetensors";
    let bench = Bench::empty();
    let three = Broken {
        bench: &bench,
        shape: LlamaShape::tiny(),
        layout: Layout {
            shards: 3,
            ..Layout::default()
        },
    };
    std::fs::write(bench.path("outside.safetensors"), "x").unwrap();
    for name in [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
    ] {
        three.refused(&[INDEX, "not the name of a file", name], |m| {
            edit(m, INDEX, |i| {
                i["weight_map"]["model.norm.weight"] = json!(name);
            });
        });
    }
    three.refused(&[INDEX, SECOND, "not there"], |m| {
        std::fs::remove_file(m.join(SECOND)).unwrap();
    });
    three.refused(&["model.norm.weight", "should be in", SECOND], |m| {
        edit(m, INDEX, |i| {
            i["weight_map"]["model.norm.weight"] = json!(SECOND);
        });
    });
    three.refused(&["model.norm.weight", "not in the index"], |m| {
        edit(m, INDEX, |i| {
            i["weight_map"]
                .as_object_mut()
                .unwrap()
                .remove("model.norm.weight");
        });
    });
    three.refused(&["stands in", SECOND, "copy.safetensors"], |m| {
        std::fs::copy(m.join(SECOND), m.join("copy.safetensors")).unwrap();
        edit(m, INDEX, |i| {
            i["weight_map"]["more"] = json!("copy.safetensors");
        });
    });
    // Without an index all shards are looked for.
    let folder = bench.path("m");
    three
        .shape
        .write_hugging_face(&folder, &three.layout)
        .unwrap();
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    bench.run(&["m", "--split", "2", "--dry-run"]).ok();
}

#[test]
fn damaged_vocabularies_are_named() {
    let bench = Bench::empty();
    let qwen = Broken {
        bench: &bench,
        shape: LlamaShape::tiny_qwen2(),
        layout: Layout::default(),
    };
    let edited = |words: &[&str], change: fn(&mut Json)| {
        qwen.refused(words, |m| edit(m, "tokenizer.json", change));
    };
    edited(&["tokenizer.json", "pre-tokenizer", "Whitespace"], |t| {
        t["pre_tokenizer"] = json!({"type": "Whitespace"});
    });
    edited(&["tokenizer.json", "`Unigram`"], |t| {
        t["model"] = json!({"type": "Unigram", "vocab": [["a", -1.0]]});
    });
    edited(&["token 400", "320 rows"], |t| {
        t["added_tokens"][0]["id"] = json!(400);
    });
    edited(&["tokenizer.json", "JSON"], |t| {
        t["model"]["merges"] = json!(["ab"]);
    });
}

/// Small pseudo-random numbers, the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// Changes some bytes: other values, digits, structure; cuts; repeats.
fn mutate(bytes: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const SPICE: [&[u8]; 12] = [
        b"\"",
        b"{",
        b"}",
        b"[",
        b",",
        b"-1",
        b"99999999999999999999",
        b"null",
        b"1e308",
        b"\\u0000",
        b"\xff",
        b"0",
    ];
    let mut out = bytes.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(out.len());
        match numbers.below(5) {
            0 => out[at] ^= 1 << numbers.below(8),
            1 => {
                let spice = SPICE[numbers.below(SPICE.len())];
                out.splice(at..at, spice.iter().copied());
            }
            2 => {
                let end = (at + 1 + numbers.below(12)).min(out.len());
                out.drain(at..end);
            }
            3 => {
                let end = (at + 1 + numbers.below(40)).min(out.len());
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            _ => {
                let digits: Vec<usize> = (0..out.len())
                    .filter(|i| out[*i].is_ascii_digit())
                    .collect();
                if !digits.is_empty() {
                    out[digits[numbers.below(digits.len())]] = b'0' + numbers.below(10) as u8;
                }
            }
        }
        if out.is_empty() {
            break;
        }
    }
    out
}

#[test]
fn damaged_tokenizers_end_in_an_answer() {
    use converter::source::Source;
    let bench = Bench::empty();
    let shape = LlamaShape {
        n_layer: 1,
        ..LlamaShape::tiny_qwen2()
    };
    let folder = bench.path("m");
    shape
        .write_hugging_face(&folder, &Layout::default())
        .unwrap();
    let path = folder.join("tokenizer.json");
    let whole = std::fs::read(&path).unwrap();
    let mut numbers = Numbers(11);
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..500 {
        std::fs::write(&path, mutate(&whole, &mut numbers)).unwrap();
        match Source::open(&folder) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100 && accepted > 20, "{refused} {accepted}");
}

#[test]
fn five_thousand_damaged_folders_end_in_an_answer() {
    use converter::source::Source;
    let bench = Bench::empty();
    let shape = LlamaShape {
        n_layer: 2,
        n_embd: 32,
        n_head: 2,
        n_head_kv: 1,
        n_ff: 32,
        ..LlamaShape::tiny()
    };
    let layout = Layout {
        shards: 2,
        ..Layout::default()
    };
    let folder = bench.path("m");
    shape.write_hugging_face(&folder, &layout).unwrap();
    Source::open(&folder).unwrap();
    let mut numbers = Numbers(7);
    let files = [
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ];
    let whole: Vec<Vec<u8>> = (files.iter())
        .map(|f| std::fs::read(folder.join(f)).unwrap())
        .collect();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..5_000 {
        // Mostly the three that describe the tensors.
        let which = match round % 10 {
            8 => 3,
            9 => 4,
            n => n % 3,
        };
        let path = folder.join(files[which]);
        let bytes = if which == 2 {
            let size = u64::from_le_bytes(whole[2][..8].try_into().unwrap()) as usize;
            let mut out = mutate(&whole[2][..8 + size], &mut numbers);
            out.extend(&whole[2][8 + size..]);
            out
        } else {
            mutate(&whole[which], &mut numbers)
        };
        std::fs::write(&path, bytes).unwrap();
        match Source::open(&folder) {
            Ok(_) => accepted += 1,
            Err(e) => {
                assert!(!e.to_string().is_empty());
                refused += 1;
            }
        }
        std::fs::write(&path, &whole[which]).unwrap();
    }
    // Both happen: some bytes of a configuration mean nothing, most do.
    assert!(refused > 2_500 && accepted > 100, "{refused} {accepted}");
    Source::open(&folder).unwrap();
}
