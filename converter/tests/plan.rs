//! `splitconv plan`: what it predicts is what a conversion writes, and no request is answered
//! with a wrong plan.

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Run};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::imatrix::{Entry, Imatrix};
use serde_json::Value as Json;

/// The keys of a row, as others read them.
const KEYS: [&str; 16] = [
    "argv",
    "split",
    "edge_bits",
    "cloud_bits",
    "kv_type",
    "context",
    "codec",
    "edge_file_bytes",
    "cloud_file_bytes",
    "edge_resident_bytes",
    "cloud_resident_bytes",
    "ttft_ms",
    "token_ms",
    "uplink_bytes_per_token",
    "kl",
    "server_ms_per_token",
];

/// Rows of 256: K-blocks fit.
fn shape() -> LlamaShape {
    LlamaShape {
        n_embd: 256,
        n_ff: 512,
        ..LlamaShape::tiny()
    }
}

fn plan(bench: &Bench, more: &[&str]) -> Run {
    let link = ["--uplink", "20Mbit/s", "--rtt", "10ms"];
    bench.run(&[&["plan", "m.gguf", "--json"][..], &link, more].concat())
}

fn number(row: &Json, key: &str) -> u64 {
    row[key].as_u64().unwrap()
}

/// Runs the command of a row as it stands and compares the files with what the row says.
fn check_sizes(bench: &Bench, row: &Json) {
    let argv: Vec<&str> = row["argv"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w.as_str().unwrap())
        .collect();
    let out = bench.path("out");
    let written = bench
        .run(
            &[
                &argv[..],
                &["--json", "--force", "--out", out.to_str().unwrap()],
            ]
            .concat(),
        )
        .ok()
        .json();
    for half in ["edge", "cloud"] {
        let file = written[format!("{half}_file")].as_str().unwrap();
        let bytes = std::fs::metadata(bench.path(file)).unwrap().len();
        assert_eq!(
            number(row, &format!("{half}_file_bytes")),
            bytes,
            "{argv:?} {half}"
        );
    }
}

#[test]
fn ten_random_plans_are_written_to_the_byte() {
    let mut seed = 11_u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % n
    };
    let benches = [
        shape(),
        LlamaShape {
            tied: true,
            rope_freqs: true,
            alignment: Some(64),
            ..shape()
        },
        LlamaShape::tiny_qwen2(),
    ]
    .map(|s| Bench::new(&s));
    // Importances of some matrices, and so statistics in no header but a digest in both.
    let imatrix = Imatrix {
        entries: ["blk.0.attn_v.weight", "blk.4.ffn_up.weight"]
            .map(|name| {
                let sums = (0..256).map(|i| 1.0 + (i % 7) as f32).collect();
                let counts = vec![3.0];
                (name.to_owned(), Entry { sums, counts })
            })
            .into(),
        ..Imatrix::default()
    };
    std::fs::write(benches[0].path("im.gguf"), imatrix.to_gguf().unwrap()).unwrap();
    let mut seen = Vec::new();
    for i in 0..10 {
        let bench = &benches[i % 3];
        let kl = format!("{}.{}", random(3), 1 + random(8));
        let objective = ["context", "speed", "quality", "server-load"][random(4) as usize];
        let mut flags = vec!["--max-kl", &kl, "--objective", objective];
        if i % 6 == 0 {
            flags.extend(["--imatrix", "im.gguf"]);
        }
        let json = plan(bench, &flags).ok().json();
        // Not only the best: any row of the table is a plan.
        let rows = json["pareto"].as_array().unwrap();
        let row = &rows[random(rows.len() as u64) as usize];
        check_sizes(bench, row);
        if i % 3 == 0 {
            check_sizes(bench, &json["best"]);
        }
        seen.push(row["argv"].to_string());
    }
    seen.sort();
    seen.dedup();
    assert!(seen.len() >= 7, "{seen:?}");
}

#[test]
fn the_answer_has_the_keys_that_others_read() {
    let bench = Bench::new(&shape());
    let json = plan(&bench, &["-c", "256", "--deadline", "1s", "--edges", "3"])
        .ok()
        .json();
    let rows = json["pareto"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&json["best"]]);
    for row in rows {
        let keys: Vec<&str> = row
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(keys, KEYS);
        assert_eq!(row["kv_type"], "f16");
        assert_eq!(row["context"], 256);
        assert!(row["token_ms"].as_f64().unwrap() <= 1000.0);
    }
    let best = &json["best"];
    assert!(json["pareto"].as_array().unwrap().contains(best));
    let state = json["state"].as_array().unwrap();
    let bytes = |i: usize| state[i]["bytes_per_token"].as_f64().unwrap();
    assert!(bytes(0) < bytes(2) && bytes(2) < bytes(1), "{state:?}");
    assert_eq!(json["server"]["edges"], 3);
    assert!(json["edge_alone"]["bits"].is_u64());
    assert_eq!(json["by_cut"].as_array().unwrap().len(), 5);
    assert_eq!(json["harm_measured"], false);
    let said = json["assumptions"].to_string();
    assert!(
        said.contains("not measured") && said.contains("--max-kl 0.05"),
        "{said}"
    );
}

#[test]
fn a_person_gets_commands_a_table_and_a_drawing() {
    let bench = Bench::new(&shape());
    let args = ["plan", "m.gguf", "--uplink", "1Mbit/s", "--svg", "p.svg"];
    let text = bench.run(&args).ok().stdout;
    for words in [
        "splitconv m.gguf --split ",
        "splitrun --role edge -c 512",
        "a prior, not measured",
        "splitting costs",
        "taken for given: --rtt 30ms",
    ] {
        assert!(text.contains(words), "{words} is missing:\n{text}");
    }
    let svg = std::fs::read_to_string(bench.path("p.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    for words in [
        "memory of the edge by cut",
        "memory of the cloud by cut",
        "time of a token by cut",
        "what nothing beats",
        "url(#hatch)",
    ] {
        assert!(svg.contains(words), "{words}");
    }
}

#[test]
fn auto_plans_and_converts() {
    let bench = Bench::new(&shape());
    let flags = [
        "--uplink", "20Mbit/s", "--rtt", "10ms", "--max-kl", "0.3", "-c", "100",
    ];
    let best = plan(&bench, &["--max-kl", "0.3", "-c", "100"]).ok().json()["best"].clone();
    let json = bench
        .run(&[&["m.gguf", "--auto", "--json"][..], &flags].concat())
        .ok()
        .json();
    assert_eq!(json["split"], best["split"]);
    for half in ["edge", "cloud"] {
        let file = json[format!("{half}_file")].as_str().unwrap();
        let bytes = std::fs::metadata(bench.path(file)).unwrap().len();
        assert_eq!(bytes, number(&best, &format!("{half}_file_bytes")));
    }
    bench
        .run(&[
            "m.gguf",
            "--auto",
            "--uplink",
            "1Mbit/s",
            "--edge-memory",
            "1MiB",
        ])
        .fails_with(&["nothing fits", "--edge-memory"]);
}

#[test]
fn what_cannot_be_is_said_and_is_never_a_plan() {
    let bench = Bench::new(&shape());
    // Exit code 2: no request that makes sense.
    for (flags, words) in [
        ("--uplink 0Mbit/s", "it is zero"),
        ("--uplink -5Mbit/s", "it is negative"),
        ("--uplink 20", "no unit"),
        ("--uplink 20Mb", "unit is unknown"),
        ("--uplink 1Mbit/s --edge-memory 0GiB", "it is zero"),
        (
            "--uplink 1Mbit/s --edge-memory 99999999TiB",
            "nothing is that large",
        ),
        (
            "--uplink 1Mbit/s --edge-memory NaN",
            "does not begin with a number",
        ),
        ("--uplink 1Mbit/s --rtt -1ms", "it is negative"),
        ("--uplink 1Mbit/s --deadline 0ms", "it is zero"),
        ("--uplink 1Mbit/s --max-kl 0", "above 0"),
        ("--uplink 1Mbit/s --max-kl NaN", "above 0"),
        ("--uplink 1Mbit/s --context 0", "0 is not in 1"),
        (
            "--uplink 1Mbit/s --context 513",
            "trained for 512 positions",
        ),
        (
            "--uplink 1Mbit/s --context 10 --prompt-tokens 20",
            "do not fit a context of 10",
        ),
        ("--uplink 1Mbit/s --edges 0", "0 is not in 1"),
        ("--uplink 1Mbit/s --objective cheap", "invalid value"),
        (
            "--uplink 1Mbit/s --radio-bandwidth 1MHz --snr 20dB",
            "cannot be used with",
        ),
        ("--radio-bandwidth 1MHz", "--snr"),
        ("--snr 20dB", "--radio-bandwidth"),
        ("--radio-bandwidth 1MHz --snr 20dB --outage 100%", "below 1"),
        (
            "--radio-bandwidth 1Hz --snr -90dB --outage 0.0001",
            "less than a bit a second",
        ),
        ("", "--uplink 20Mbit/s"),
    ] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let run = bench.run(&[&["plan", "m.gguf"][..], &flags].concat());
        assert_eq!(run.code, 2, "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{flags:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{flags:?}: {}", run.stdout);
    }
    // The flags of a plan mean nothing to a plain conversion, and --auto chooses by itself.
    for args in [
        "m.gguf --split 1 --uplink 1Mbit/s",
        "m.gguf --auto --split 1 --uplink 1Mbit/s",
        "m.gguf --auto",
    ] {
        let args: Vec<&str> = args.split_whitespace().collect();
        assert_eq!(bench.run(&args).code, 2, "{args:?}");
    }
    // Exit code 1: a request that makes sense and cannot be met, with the limit that is in the
    // way and what would do.
    for (flags, limit) in [
        ("--edge-memory 1MiB", "--edge-memory"),
        ("--cloud-memory 1MiB", "--cloud-memory"),
        ("--deadline 5ms", "--deadline"),
    ] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let run = plan(&bench, &flags);
        run.fails_with(&["nothing fits", limit, "is in the way"]);
        let json = run.json();
        assert!(json["best"].is_null() && json["pareto"].as_array().unwrap().is_empty());
        assert_eq!(json["infeasible"]["binding"], limit);
        // And it does.
        let change = json["infeasible"]["changes"][0]
            .as_str()
            .unwrap()
            .to_owned();
        let change: Vec<&str> = change.split_whitespace().collect();
        let more = plan(&bench, &change).ok().json();
        assert!(!more["best"].is_null());
    }
    let run = plan(&bench, &["--edge-memory", "1MiB", "--cloud-memory", "1MiB"]);
    run.fails_with(&["no single change helps", "--edge-memory", "--cloud-memory"]);
    plan(&bench, &["--edge-profile", "cray-1"]).fails_with(&["cray-1", "jetson-xavier-nx"]);
    std::fs::write(bench.path("p.json"), "{}").unwrap();
    plan(&bench, &["--edge-profile", "p.json"]).fails_with(&["p.json", "splitrun bench --profile"]);
    plan(&bench, &["--sensitivity", "p.json"]).fails_with(&["p.json", "splitrun calibrate"]);
    bench
        .run(&["plan", "none.gguf", "--uplink", "1Mbit/s"])
        .fails_with(&["none.gguf"]);
}

#[test]
fn shapes_of_13b_and_70b_without_their_weights() {
    let bench = Bench::empty();
    for shape in [
        LlamaShape::llama2_13b(40, BlockType::F16),
        LlamaShape::llama2_70b(80, BlockType::F16),
    ] {
        shape.write_hollow(&bench.path("m.gguf")).unwrap();
        let begun = Instant::now();
        let json = plan(&bench, &["--edge-memory", "8GiB", "-c", "2048"])
            .ok()
            .json();
        let took = begun.elapsed();
        assert!(json["combinations"].as_u64().unwrap() > 5000);
        let row = &json["best"];
        assert!(number(row, "edge_resident_bytes") <= 8 << 30);
        // 0.3 and 0.6 s of the release build, alone; the tests share the machine.
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}
