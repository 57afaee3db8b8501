//! `splitrun eval --task`: scores as an independent, slow computation gives them; results that
//! outlive the process; two models compared.

use std::path::Path;
use std::sync::Arc;

use engine::exec::Executor as _;
use engine::exec::cpu::{CpuExecutor, Isa};
use engine::model::ModelPart;
use engine::text::Tokenizer;
use fixtures::LlamaShape;
use formats::gguf::GgufSet;
use integration::{must_json, run};
use serde_json::{Value, json};

/// Questions whose choices share beginnings, are of several lengths, or follow no query.
fn questions() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("the red fox", vec!["ran home", "ran away", "sat"]),
        ("one and one", vec!["is two", "is three and more than that"]),
        ("", vec!["a start", "another start"]),
        (
            "what ends in a space ",
            vec!["x", "a longer one", " and this"],
        ),
        ("so", vec!["it is", "it", "it is not"]),
        (
            "a longer question about nothing in particular, which goes on",
            vec!["no", "yes"],
        ),
    ]
}

fn write_task(path: &Path) {
    let lines = questions().into_iter().enumerate().map(|(i, (q, c))| {
        let gold = i % c.len();
        json!({ "query": q, "choices": c, "gold": gold }).to_string() + "\n"
    });
    std::fs::write(path, lines.collect::<String>()).unwrap();
}

/// Log-probability of what follows the query, each choice alone in one pass from its first token.
fn slow(exec: &CpuExecutor, tokenizer: &Tokenizer, query: &str, choice: &str) -> f64 {
    let joined = if query.is_empty() {
        choice.to_owned()
    } else {
        format!("{query} {choice}")
    };
    let bos = tokenizer.bos().unwrap();
    let ids: Vec<u32> = std::iter::once(bos)
        .chain(tokenizer.encode(&joined, false))
        .collect();
    let query = tokenizer.encode(query, false);
    let from = 1 + query
        .iter()
        .zip(&ids[1..])
        .take_while(|(a, b)| a == b)
        .count();
    let mut rows = Vec::new();
    exec.embed(&ids, &mut rows).unwrap();
    exec.forward(&mut exec.new_cache(ids.len()).unwrap(), &mut rows)
        .unwrap();
    let mut logits = Vec::new();
    exec.logits(&rows, &mut logits).unwrap();
    let vocab = exec.hparams().n_vocab;
    (from..ids.len())
        .map(|i| {
            let row = &logits[(i - 1) * vocab..i * vocab];
            let sum: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            f64::from(row[ids[i] as usize]) - sum.ln()
        })
        .sum()
}

fn best(values: impl Iterator<Item = f64>) -> u64 {
    let all: Vec<f64> = values.collect();
    (0..all.len())
        .rev()
        .max_by(|a, b| all[*a].total_cmp(&all[*b]))
        .unwrap() as u64
}

/// The log-probabilities in a file of results, in the order of the questions.
fn kept(path: &Path) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().skip(1);
    lines
        .map(|l| {
            let v: Value = serde_json::from_str(l).unwrap();
            let all = v["value"]["logprobs"].as_array().unwrap();
            all.iter().map(|x| x.as_f64().unwrap()).collect()
        })
        .collect()
}

#[test]
fn scores_are_those_of_a_straightforward_computation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shape = LlamaShape {
        n_layer: 3,
        ..LlamaShape::tiny()
    };
    shape.write(&dir.join("m.gguf")).unwrap();
    write_task(&dir.join("t.jsonl"));
    let args = [
        "eval",
        "-m",
        "m.gguf",
        "--task",
        "t.jsonl",
        "--results",
        "r.jsonl",
        "--json",
    ];
    let report = must_json(dir, "splitrun", &args);
    let set = Arc::new(GgufSet::open(&dir.join("m.gguf")).unwrap());
    let exec = CpuExecutor::new(ModelPart::load(&set, 0..3).unwrap(), 1, Isa::detect()).unwrap();
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    let (mut right, mut right_norm) = (0, 0);
    let all = kept(&dir.join("r.jsonl"));
    assert_eq!(all.len(), questions().len());
    for (i, ((query, choices), found)) in questions().into_iter().zip(&all).enumerate() {
        let want: Vec<f64> = choices
            .iter()
            .map(|c| slow(&exec, &tokenizer, query, c))
            .collect();
        for (w, f) in want.iter().zip(found) {
            assert!((w - f).abs() < 1e-6, "{query:?}: {want:?} {found:?}");
        }
        let sum = best(want.iter().copied());
        let norm = best(want.iter().zip(&choices).map(|(w, c)| w / c.len() as f64));
        assert_eq!(report["answers"][i], json!([sum, norm]), "{query:?}");
        let gold = (i % choices.len()) as u64;
        right += u32::from(sum == gold);
        right_norm += u32::from(norm == gold);
    }
    assert_eq!(report["accuracy"], json!(f64::from(right) / 6.0));
    assert_eq!(report["accuracy_norm"], json!(f64::from(right_norm) / 6.0));
    let p = f64::from(right) / 6.0;
    let stderr = report["stderr"].as_f64().unwrap();
    assert!((stderr - (p * (1.0 - p) / 5.0).sqrt()).abs() < 1e-12);
    assert_eq!((&report["n"], &report["resumed"]), (&json!(6), &json!(0)));
}

#[test]
fn results_go_on_where_they_stopped_and_are_not_trusted_when_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shape = LlamaShape {
        n_layer: 2,
        ..LlamaShape::tiny()
    };
    shape.write(&dir.join("m.gguf")).unwrap();
    write_task(&dir.join("t.jsonl"));
    let eval = |more: &[&str]| {
        let args = ["eval", "-m", "m.gguf", "--task", "t.jsonl", "--json"];
        must_json(dir, "splitrun", &[&args[..], more].concat())
    };
    let whole = eval(&[]);
    let first = eval(&["--results", "r.jsonl", "--limit", "4"]);
    assert_eq!((&first["n"], &first["resumed"]), (&json!(4), &json!(0)));
    let again = eval(&["--results", "r.jsonl"]);
    assert_eq!((&again["n"], &again["resumed"]), (&json!(6), &json!(4)));
    assert_eq!(again["answers"], whole["answers"]);
    assert_eq!(again["accuracy"], whole["accuracy"]);
    // A result that somebody changed, and one cut short.
    let path = dir.join("r.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let at = text.find("\"logprobs\":[-").unwrap() + "\"logprobs\":[-".len();
    let mut changed = text.clone().into_bytes();
    changed[at] = if changed[at] == b'9' { b'8' } else { b'9' };
    changed.truncate(text.len() - 30);
    std::fs::write(&path, changed).unwrap();
    let repaired = eval(&["--results", "r.jsonl"]);
    assert_eq!(repaired["resumed"], 4);
    assert_eq!(repaired["answers"], whole["answers"]);
    assert_eq!(eval(&["--results", "r.jsonl"])["resumed"], 6);
    // Another model's results are refused, and so is what holds no results.
    LlamaShape { seed: 2, ..shape }
        .write(&dir.join("other.gguf"))
        .unwrap();
    for (model, file, why) in [
        ("other.gguf", "r.jsonl", "another measurement"),
        ("m.gguf", "t.jsonl", "no results"),
    ] {
        let args = ["eval", "-m", model, "--task", "t.jsonl", "--results", file];
        let out = run(dir, "splitrun", &args);
        assert_eq!(out.status.code(), Some(1));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_pair_answers_through_its_codec_and_is_compared_with_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shape = LlamaShape {
        n_layer: 4,
        ..LlamaShape::tiny()
    };
    shape.write(&dir.join("m.gguf")).unwrap();
    write_task(&dir.join("t.jsonl"));
    let cut = [
        "m.gguf",
        "--split",
        "2",
        "--edge-bits",
        "16",
        "--cloud-bits",
        "16",
        "--out",
        "p",
    ];
    integration::must(dir, "splitconv", &cut);
    let eval = |model: &str, more: &[&str]| {
        let args = ["eval", "-m", model, "--task", "t.jsonl", "--json"];
        must_json(dir, "splitrun", &[&args[..], more].concat())
    };
    let whole = eval("m.gguf", &[]);
    assert_eq!(whole.get("codec"), None);
    let source = eval("p", &["--results", "source.jsonl"]);
    // Every bit travels: the same answers, and a comparison that says so.
    let pair = eval(
        "p",
        &[
            "--codec",
            "f32",
            "--compare",
            "source.jsonl",
            "--results",
            "p.jsonl",
        ],
    );
    assert_eq!(pair["answers"], source["answers"]);
    assert_eq!(kept(&dir.join("p.jsonl")), kept(&dir.join("source.jsonl")));
    assert!(pair["bytes_per_token"].as_f64().unwrap() >= 64.0 * 4.0);
    let compare = &pair["compare"];
    assert_eq!(compare["same_answer"], 6);
    assert_eq!(
        (&compare["difference"], &compare["mcnemar_exact_p"]),
        (&json!(0.0), &json!(1.0))
    );
    let (low, high) = (&compare["difference_low"], &compare["difference_high"]);
    assert!(low.as_f64().unwrap() < 0.0 && high.as_f64().unwrap() > 0.0);
    assert_eq!(compare["norm"]["accuracy_other"], source["accuracy_norm"]);
    // Three bits a value: other log-probabilities, fewer bytes. The other side may be a model.
    let few = [
        "--codec",
        "ts-tabq:tau=4s,delta=0,bits=3",
        "--compare",
        "m.gguf",
        "--results",
        "q.jsonl",
    ];
    let coded = eval("p", &few);
    assert!(coded["bytes_per_token"].as_f64().unwrap() < 100.0);
    assert_ne!(kept(&dir.join("q.jsonl")), kept(&dir.join("source.jsonl")));
    assert_eq!(coded["compare"]["accuracy_other"], whole["accuracy"]);
    // The codec is part of what results are of.
    let args = [
        "eval",
        "-m",
        "p",
        "--task",
        "t.jsonl",
        "--results",
        "q.jsonl",
        "--codec",
        "f16",
    ];
    let said = run(dir, "splitrun", &args);
    assert!(String::from_utf8_lossy(&said.stderr).contains("`codec`"));
    // Too few results to compare with.
    let args = ["--results", "short.jsonl", "--limit", "2"];
    eval("m.gguf", &args);
    let args = [
        "eval",
        "-m",
        "p",
        "--task",
        "t.jsonl",
        "--compare",
        "short.jsonl",
    ];
    let said = run(dir, "splitrun", &args);
    assert!(String::from_utf8_lossy(&said.stderr).contains("lacks 4 of the 6"));
}

#[test]
fn wrong_usage_is_said_before_work() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for args in [
        &["eval"][..],
        &["eval", "--task", "t", "--text", "t"],
        &["eval", "--text", "t", "--limit", "3"],
        &["eval", "--task", "t", "--limit", "0"],
        &["eval", "--task", "t", "--against", "m"],
    ] {
        assert_eq!(
            run(dir, "splitrun", args).status.code(),
            Some(2),
            "{args:?}"
        );
    }
    let out = run(dir, "splitrun", &["eval", "--task", "none.jsonl"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("none.jsonl"));
}
