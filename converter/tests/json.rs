//! `--json`: one object on standard output and nothing else there; when a command fails, nothing
//! there, one line on standard error, and an exit code.

mod common;

use common::{Bench, Run, cloud, edge, flip};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use serde_json::{Map, Value as Json};

/// The object of a run that ended well.
#[track_caller]
fn object(run: &Run) -> Map<String, Json> {
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.starts_with("{\n") && run.stdout.ends_with("}\n"));
    // A second value, or anything else behind the first, is an error of the parser's.
    match serde_json::from_str(&run.stdout).unwrap() {
        Json::Object(map) => map,
        other => panic!("no object: {other}"),
    }
}

/// A failure as scripts see it.
#[track_caller]
fn nothing(run: &Run, words: &[&str]) {
    assert_eq!(run.stdout, "");
    run.fails_with(words);
}

#[test]
fn a_conversion_and_its_rehearsal_say_the_same() {
    // A source that gives notes to be said: it is in few bits already.
    let bench = Bench::new(&LlamaShape {
        n_embd: 256,
        matrix_type: BlockType::Q5_0,
        ..LlamaShape::tiny()
    });
    let args = ["m.gguf", "--split", "2", "--json"];
    let rehearsal = bench.run(&[&args[..], &["--dry-run"]].concat());
    assert_eq!(bench.names(), ["m.gguf"]);
    let rehearsal = object(&rehearsal);
    let run = bench.run(&args).ok();
    // Notes are for people, and they are in the object too.
    let said: Vec<&str> = run.stderr.lines().collect();
    let done = object(&run);
    let notes = done["notes"].as_array().unwrap();
    assert!(!notes.is_empty());
    for note in notes {
        let note = note.as_str().unwrap();
        assert!(said.iter().any(|l| l.ends_with(note)), "{note}: {said:?}");
    }
    // What only the work itself can tell differs, and nothing else.
    let own = [
        "dry_run",
        "pair_id",
        "source_digest",
        "edge_bytes",
        "cloud_bytes",
        "seconds",
    ];
    assert_eq!(
        rehearsal.keys().collect::<Vec<_>>(),
        done.keys().collect::<Vec<_>>()
    );
    for (key, value) in &done {
        assert_eq!(
            *value != rehearsal[key],
            own.contains(&key.as_str()),
            "{key}: {value} after {}",
            rehearsal[key]
        );
    }
    for key in ["pair_id", "source_digest", "seconds"] {
        assert!(rehearsal[key].is_null(), "{key}");
    }
    for (key, name) in [
        ("edge_bytes", edge(2, "e4c8")),
        ("cloud_bytes", cloud(2, "e4c8")),
    ] {
        let bytes = std::fs::metadata(bench.path(&name)).unwrap().len();
        assert_eq!(done[key], bytes, "{key}");
    }
}

#[test]
fn looking_and_checking_print_one_object() {
    let bench = Bench::new(&LlamaShape::tiny());
    bench.run(&["m.gguf", "--split", "2"]).ok();
    let (e, c) = (edge(2, "e4c8"), cloud(2, "e4c8"));
    for file in ["m.gguf", &e, &c] {
        let plain = object(&bench.run(&["inspect", file, "--json"]));
        // A table is no object: `--all` adds nothing that is not there, and no text.
        let all = object(&bench.run(&["inspect", file, "--all", "--json"]));
        assert_eq!(plain, all);
        assert_eq!(plain["half"].is_null(), file == "m.gguf");
        let tensors = plain["tensors"].as_array().unwrap().len();
        assert_eq!(plain["tensor_count"], tensors);
    }
    for files in [&[&e[..]][..], &[&e, &c], &["m-s2e4c8"], &["."]] {
        let verdict = object(&bench.run(&[&["verify", "--json"], files].concat()));
        assert_eq!(verdict["ok"], true);
        let halves = verdict["files"].as_array().unwrap().len();
        assert_eq!(verdict["whole_pair"], halves == 2, "{files:?}");
    }
}

#[test]
fn a_failure_leaves_standard_output_empty() {
    let bench = Bench::new(&LlamaShape::tiny());
    std::fs::write(bench.path("none.gguf"), "no model at all").unwrap();
    for args in [
        &["inspect", "--json"][..],
        &["verify", "--json"],
        &["--split", "2", "--json"],
        &["--split", "2", "--dry-run", "--json"],
    ] {
        for file in ["missing.gguf", "none.gguf"] {
            nothing(&bench.run(&[args, &[file]].concat()), &[file]);
        }
    }
    // Failures found later: a cut that is none, bits for a half, damage, a file in the way.
    let cut = ["m.gguf", "--split", "6", "--json"];
    nothing(&bench.run(&cut), &["6"]);
    nothing(&bench.run(&[&cut[..], &["--dry-run"]].concat()), &["6"]);
    bench.run(&["m.gguf", "--split", "2"]).ok();
    let (e, c) = (edge(2, "e4c8"), cloud(2, "e4c8"));
    nothing(&bench.run(&["m.gguf", "--split", "2", "--json"]), &[&e]);
    let bits = ["inspect", &e, "--edge-bits", "3", "--json"];
    nothing(&bench.run(&bits), &[&e, "half"]);
    nothing(&bench.run(&["verify", "m.gguf", "--json"]), &["m.gguf"]);
    let file = bench.open(&c);
    let tensor = &file.tensors()[3];
    flip(&bench.path(&c), tensor.start);
    // The half that is in order is not reported before the one that is not.
    let both = bench.run(&["verify", &e, &c, "--json"]);
    nothing(&both, &[&c, &tensor.name]);
}

#[test]
fn wrong_usage_is_told_apart() {
    let bench = Bench::new(&LlamaShape::tiny());
    for args in [
        &["inspect", "--json"][..],
        &["verify", "--json"],
        &["m.gguf", "--json"],
        &["m.gguf", "--split", "two", "--dry-run", "--json"],
        &["inspect", "m.gguf", "--jsno"],
    ] {
        let run = bench.run(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
        assert!(run.stderr.starts_with("error: "), "{}", run.stderr);
    }
}
