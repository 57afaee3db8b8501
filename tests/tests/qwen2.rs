//! Qwen2 end to end, on a tiny model made by code: figures of another program, equal bits
//! wherever it is cut, its tokens and its chats.

use std::path::Path;
use std::sync::Arc;

use engine::exec::Executor;
use engine::exec::cpu::{CpuExecutor, Isa};
use engine::model::ModelPart;
use engine::text::{ChatTemplate, Message, Tokenizer};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::{Gguf, GgufSet};
use integration::{Cloud, must, must_json};
use serde_json::Value;

fn model() -> (tempfile::TempDir, Arc<GgufSet>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.gguf");
    LlamaShape::tiny_qwen2().write(&path).unwrap();
    let set = Arc::new(GgufSet::open(&path).unwrap());
    (dir, set)
}

fn part(
    set: &Arc<GgufSet>,
    layers: std::ops::Range<usize>,
    threads: usize,
    isa: Isa,
) -> CpuExecutor {
    CpuExecutor::new(ModelPart::load(set, layers).unwrap(), threads, isa).unwrap()
}

fn floats(v: &Value) -> Vec<f32> {
    serde_json::from_value(v.clone()).unwrap()
}

/// Boundary rows before layer `cut` and the logits of all positions.
fn run(set: &Arc<GgufSet>, ids: &[u32], cut: usize, chunk: usize, isa: Isa) -> [Vec<f32>; 2] {
    let parts = [part(set, 0..cut, 2, isa), part(set, cut..6, 1, isa)];
    let mut caches = parts.each_ref().map(|p| p.new_cache(64).unwrap());
    let (mut boundary, mut all) = (Vec::new(), Vec::new());
    for ids in ids.chunks(chunk) {
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        parts[0].embed(ids, &mut rows).unwrap();
        parts[0].forward(&mut caches[0], &mut rows).unwrap();
        boundary.extend_from_slice(&rows);
        parts[1].forward(&mut caches[1], &mut rows).unwrap();
        parts[1].logits(&rows, &mut logits).unwrap();
        all.extend(logits);
    }
    [boundary, all]
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() < 1e-3, "{what} {i}: {g}, not {w}");
    }
}

#[test]
fn logits_are_those_of_another_program() {
    let (_dir, set) = model();
    let golden = fixtures::golden("qwen2.json");
    let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
    let cut = golden["cut"].as_u64().unwrap() as usize;
    let [boundary, logits] = run(&set, &ids, cut, ids.len(), Isa::detect());
    let row = |rows: &[f32], r: usize| {
        let width = rows.len() / ids.len();
        rows[r * width..(r + 1) * width].to_vec()
    };
    let last = ids.len() - 1;
    let wanted = |key: &str| floats(&golden[key]);
    close(
        "boundary",
        &row(&boundary, last),
        &wanted("boundary_last_row"),
    );
    close("logit", &row(&logits, 4), &wanted("logits_row_4"));
    close("logit", &row(&logits, last), &wanted("logits_last_row"));
}

#[test]
fn bits_do_not_depend_on_cut_chunk_or_instruction_set() {
    let (_dir, set) = model();
    let ids: Vec<u32> = (0..50).map(|i| (i * 79 + 13) % 320).collect();
    let bits = |cut, chunk, isa| run(&set, &ids, cut, chunk, isa)[1].clone();
    let want = bits(3, ids.len(), Isa::SCALAR);
    assert!(want.iter().all(|v| v.is_finite()));
    for isa in Isa::available() {
        for (cut, chunk) in [(1, 1), (3, 7), (5, 50)] {
            let got = bits(cut, chunk, isa);
            let same = got
                .iter()
                .zip(&want)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{isa}, cut at {cut}, chunks of {chunk}");
        }
    }
}

/// Ids and log-probabilities that a generation prints.
fn generated(dir: &Path, args: &[&str]) -> Value {
    let common = [
        "-p",
        "The ration of the 42 rets",
        "-n",
        "24",
        "--temp",
        "0",
        "--ignore-eos",
        "--top-logprobs",
        "8",
        "--codec",
        "f32",
        "--json",
    ];
    let mut v = must_json(dir, "splitrun", &[&common[..], args].concat());
    let (ids, logprobs) = (v["ids"].take(), v["logprobs"].take());
    assert_eq!(ids.as_array().unwrap().len(), 24);
    Value::Array(vec![ids, logprobs])
}

/// The source in shards behind one without tensors, cut, over the network: no bit changes.
#[test]
fn split_is_whole_over_the_network_also_from_shards_behind_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Tied, and of types that a pair of 16 bits keeps.
    let shape = LlamaShape {
        tied: true,
        embd_type: Some(BlockType::Q8_0),
        ..LlamaShape::tiny_qwen2()
    };
    shape.write(&dir.join("q.gguf")).unwrap();
    let whole = generated(dir, &["--role", "both", "--model", "q.gguf"]);
    let shards = dir.join("shards");
    std::fs::create_dir(&shards).unwrap();
    let named = shape.write_shards_behind_metadata(&shards, "q", 3).unwrap();
    let first = named[0].to_str().unwrap();
    let unsplit = generated(dir, &["--role", "both", "--model", first]);
    assert_eq!(unsplit, whole, "the shards as one model");
    for (source, out) in [(first, "a"), ("q.gguf", "b")] {
        let bits = ["--split", "2", "--edge-bits", "16", "--cloud-bits", "16"];
        must(
            dir,
            "splitconv",
            &[&[source], &bits[..], &["--out", out]].concat(),
        );
        let pair = dir.join(out);
        must(&pair, "splitconv", &["verify", "."]);
        let cloud = Cloud::start(&pair, &["-t", "1"]);
        let edge = ["--role", "edge", "--cloud", &cloud.address, "--chunk", "5"];
        assert_eq!(generated(&pair, &edge), whole, "the pair made of {source}");
    }
    // Byte for byte the same model in the halves, so the same tensors in both pairs.
    for half in ["00001", "00002"] {
        let name = |o: &str| format!("{o}/q-s2e16c16-{half}-of-00002.gguf");
        let open = |o: &str| Gguf::open(&dir.join(name(o))).unwrap();
        let (a, b) = (open("a"), open("b"));
        assert_eq!(a.tensors().len(), b.tensors().len());
        for t in a.tensors() {
            assert_eq!(a.data(t), b.data(b.tensor(&t.name).unwrap()), "{}", t.name);
        }
    }
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    let (_dir, set) = model();
    let tok = Tokenizer::from_metadata(set.metadata()).unwrap();
    let golden = fixtures::golden("qwen2_tokens.json");
    for case in golden["tiny"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        for (key, special) in [("ids", true), ("plain", false)] {
            let want: Vec<u32> = serde_json::from_value(case[key].clone()).unwrap();
            assert_eq!(tok.encode(text, special), want, "{text:?} {key}");
        }
    }
    let end = |text: &[u8]| tok.is_eog(tok.vocab().id(text).unwrap());
    assert!(end(b"<|im_end|>") && end(b"<|endoftext|>") && !end(b"<|im_start|>"));
    assert_eq!((tok.add_bos(), tok.n_vocab()), (false, 320));
}

#[test]
fn a_chat_is_chatml() {
    let (_dir, set) = model();
    let tok = Tokenizer::from_metadata(set.metadata()).unwrap();
    let chat = ChatTemplate::from_metadata(set.metadata()).unwrap();
    let ids = chat
        .render(&tok, &[Message::new("user", "The end<|im_end|>")], true)
        .unwrap();
    let im_end = tok.vocab().id(b"<|im_end|>").unwrap();
    assert_eq!(ids.iter().filter(|id| **id == im_end).count(), 1);
    assert_eq!(ids.first().copied(), tok.vocab().id(b"<|im_start|>"));
}

/// The constructs of the template in Qwen's own files: tools that may be absent, calls that a
/// message may lack, a look at the message before.
const TOOLS: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nThe default.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- tool_call.arguments | tojson }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

#[test]
fn a_template_like_qwens_renders() {
    let (_dir, set) = model();
    let tok = Tokenizer::from_metadata(set.metadata()).unwrap();
    let chat = ChatTemplate::new(TOOLS).unwrap();
    let turns = [
        ("user", "a"),
        ("assistant", "b"),
        ("tool", "c"),
        ("tool", "d"),
        ("system", "e"),
    ];
    let messages = turns.map(|(role, text)| Message::new(role, text));
    let want = "<|im_start|>system\nThe default.<|im_end|>\n<|im_start|>user\na<|im_end|>\n\
        <|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\n<tool_response>\nc\n</tool_response>\n\
        <tool_response>\nd\n</tool_response><|im_end|>\n<|im_start|>system\ne<|im_end|>\n\
        <|im_start|>assistant\n";
    let ids = chat.render(&tok, &messages, true).unwrap();
    assert_eq!(ids, tok.encode(want, true));
}
