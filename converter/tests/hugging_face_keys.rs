//! What becomes of the files beside the weights. The expected keys are those that llama.cpp's own
//! `convert_hf_to_gguf.py` writes for the same folders, unless it is said.

use std::path::Path;

use converter::source::Source;
use fixtures::{Layout, LlamaShape};
use formats::gguf::{Metadata, Value};
use serde_json::{Value as Json, json};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(shape: &LlamaShape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::default();
        shape
            .write_hugging_face(&dir.path().join("Tiny-1M-chat"), &layout)
            .unwrap();
        Self(dir)
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("Tiny-1M-chat")
    }

    fn put(&self, name: &str, value: &Json) {
        std::fs::write(self.path().join(name), value.to_string()).unwrap();
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Json)) {
        let bytes = std::fs::read(self.path().join(name)).unwrap();
        let mut value = serde_json::from_slice(&bytes).unwrap();
        change(&mut value);
        self.put(name, &value);
    }

    fn open(&self) -> Source {
        open(&self.path())
    }
}

fn open(path: &Path) -> Source {
    Source::open(path).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn check(meta: &Metadata, wanted: &[(&str, Option<Value>)]) {
    for (key, value) in wanted {
        assert_eq!(meta.get(key), value.as_ref(), "{key}");
    }
}

fn two_layers(mut shape: LlamaShape) -> LlamaShape {
    shape.n_layer = 2;
    shape
}

#[test]
fn special_tokens_templates_and_sampling() {
    let folder = Folder::new(&two_layers(LlamaShape::tiny_qwen2()));
    // 296 <|endoftext|>, 297 <|im_start|>, 298 <|im_end|>, 299 <tool_call>, 300 </tool_call>
    folder.edit("tokenizer.json", |t| {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        t["post_processor"] = json!({"type": "Sequence", "processors": [bytes, {
            "type": "TemplateProcessing",
            "single": [special("<|im_start|>"), text("A")],
            "pair": [special("<|im_start|>"), text("A"), special("<|im_end|>"), text("B")],
            "special_tokens": {}
        }]});
        let merges = t["model"]["merges"].as_array().unwrap().iter();
        let pair = |m: &Json| json!(m.as_str().unwrap().split(' ').collect::<Vec<_>>());
        t["model"]["merges"] = merges.map(pair).collect();
    });
    folder.put(
        "tokenizer_config.json",
        &json!({
            "add_bos_token": false,
            "eos_token": "<|im_end|>",
            "pad_token": {"content": "<|endoftext|>"},
            "unk_token": null,
            "chat_template": [
                {"name": "default", "template": "A {{ x }}"},
                {"name": "tool use", "template": "B"}
            ]
        }),
    );
    folder.put(
        "generation_config.json",
        &json!({"temperature": 0.7, "top_k": 20, "top_p": 1, "repetition_penalty": 1.1,
            "do_sample": true, "eos_token_id": [298, 296, 300]}),
    );
    folder.edit("config.json", |c| c["eos_token_id"] = json!([298, 296]));
    let source = folder.open();
    let id = |id| Some(Value::u32(id));
    let on = |on| Some(Value::bool(on));
    let text = |text| Some(Value::string(text));
    let key = |key: &str| format!("tokenizer.ggml.{key}");
    let meta = source.metadata();
    for (name, value) in [
        ("model", text("gpt2")),
        ("pre", text("qwen2")),
        // A beginning that only the template names; the template counts more than the flag.
        ("bos_token_id", id(297)),
        ("eos_token_id", id(298)),
        ("padding_token_id", id(296)),
        ("unknown_token_id", None),
        ("add_bos_token", on(true)),
        ("add_eos_token", on(false)),
        ("add_sep_token", on(true)),
        ("seperator_token_id", id(298)),
        // No conversion's, but of use: 300 ends a generation, and its text does not say so.
        ("eot_token_id", id(300)),
    ] {
        check(meta, &[(&key(name), value)]);
    }
    check(
        meta,
        &[
            ("general.name", text("Tiny 1M Chat")),
            ("general.basename", text("Tiny")),
            // Far from the size of the model, so no label of it.
            ("general.finetune", text("1m-chat")),
            ("general.sampling.temp", Some(Value::f32(0.7))),
            ("general.sampling.top_k", Some(Value::i32(20))),
            ("general.sampling.top_p", Some(Value::f32(1.0))),
            ("general.sampling.penalty_repeat", Some(Value::f32(1.1))),
            ("tokenizer.chat_template", text("A {{ x }}")),
            ("tokenizer.chat_template.tool_use", text("B")),
            (
                "tokenizer.chat_templates",
                Some(Value::string_array(&["tool_use"])),
            ),
            ("qwen2.vocab_size", None),
            ("qwen2.attention.key_length", None),
        ],
    );
    assert!(source.notes().is_empty());
    // A file of its own, when the configuration has none.
    folder.edit("tokenizer_config.json", |c| {
        c.as_object_mut().unwrap().remove("chat_template");
    });
    std::fs::write(folder.path().join("chat_template.jinja"), "C").unwrap();
    check(
        folder.open().metadata(),
        &[("tokenizer.chat_template", text("C"))],
    );
    // One end too many for GGUF's roles.
    folder.put(
        "generation_config.json",
        &json!({"eos_token_id": [298, 300, 299, 297]}),
    );
    assert_eq!(folder.open().notes().len(), 1);
}

/// SentencePiece's BPE as tokenizer.json alone: kinds as llama.cpp gives them, scores by merges.
#[test]
fn pieces_without_scores_score_by_their_merges() {
    let folder = Folder::new(&two_layers(LlamaShape::tiny()));
    std::fs::remove_file(folder.path().join("tokenizer.model")).unwrap();
    let mut vocab = serde_json::Map::new();
    for text in [
        "<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁ab", "odd", "▁a",
    ] {
        vocab.insert(text.into(), json!(vocab.len()));
    }
    let added =
        |id: u32, text: &str, special: bool| json!({"id": id, "content": text, "special": special});
    let tokenizer = json!({
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true),
            added(11, "<tool>", false), added(12, "<|x|>", true)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
            "vocab": vocab, "merges": ["a b", "▁ ab", "▁ a"]}
    });
    folder.put("tokenizer.json", &tokenizer);
    folder.put(
        "tokenizer_config.json",
        &json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true}),
    );
    let source = folder.open();
    let meta = source.metadata();
    let text = |text| Some(Value::string(text));
    check(
        meta,
        &[
            ("tokenizer.ggml.model", text("llama")),
            ("tokenizer.ggml.pre", text("default")),
            ("tokenizer.ggml.add_bos_token", Some(Value::bool(true))),
            ("tokenizer.ggml.add_space_prefix", None),
            ("tokenizer.ggml.merges", None),
            ("tokenizer.ggml.unknown_token_id", Some(Value::u32(0))),
        ],
    );
    let array = |key: &str| meta.get(key).and_then(Value::as_array).unwrap();
    let kinds: Vec<i32> = array("tokenizer.ggml.token_type").i32s().unwrap().collect();
    // The unknown token is a control token there; what fills up is unused.
    assert_eq!(kinds[..14], [3, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 4, 3, 5]);
    assert_eq!(kinds.len(), 320);
    let tokens: Vec<&[u8]> = array("tokenizer.ggml.tokens").strings().unwrap().collect();
    assert_eq!(tokens[13], b"[PAD13]");
    let scores: Vec<f32> = array("tokenizer.ggml.scores").f32s().unwrap().collect();
    let by_rank = [scores[7], scores[8], scores[10]];
    assert_eq!(by_rank, [0.0, -1.0, -2.0]);
    assert!(scores[9] < -2.0, "no merge makes it, so it comes last");
    // A tokenizer that puts no space in front.
    folder.edit("tokenizer.json", |t| t["normalizer"] = Json::Null);
    let key = "tokenizer.ggml.add_space_prefix";
    check(folder.open().metadata(), &[(key, Some(Value::bool(false)))]);
}

#[test]
fn scaling_becomes_a_tensor_or_keys() {
    let folder = Folder::new(&two_layers(LlamaShape::tiny()));
    folder.edit("config.json", |c| {
        c["rope_theta"] = json!(500_000.0);
        c["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    });
    let source = folder.open();
    let (info, rows) = source.tensor("rope_freqs.weight").unwrap();
    assert_eq!(info.dims, [8]);
    let bytes = rows.all().unwrap();
    let (words, _) = bytes.as_chunks::<4>();
    let factors: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
    // llama.cpp's conversion of the same configuration.
    assert_eq!(factors, LLAMA3);
    check(source.metadata(), &[("llama.rope.scaling.type", None)]);
    folder.edit("config.json", |c| {
        c["rope_scaling"] = json!({"type": "linear", "factor": 2.5});
    });
    let source = folder.open();
    assert!(source.tensor("rope_freqs.weight").is_none());
    let linear = Some(Value::string("linear"));
    check(
        source.metadata(),
        &[
            ("llama.rope.scaling.type", linear),
            ("llama.rope.scaling.factor", Some(Value::f32(2.5))),
        ],
    );
}

const LLAMA3: [f32; 8] = [1.0, 1.0, 1.0, 1.0, 2.694_53, 8.0, 8.0, 8.0];
