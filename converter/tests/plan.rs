//! `splitconv plan`: what it predicts is what a conversion writes, and no request is answered
//! with a wrong plan.

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Run};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::imatrix::{Entry, Imatrix};
use serde_json::{Value as Json, json};

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
fn keys_and_values_are_planned_in_the_form_that_is_asked_for() {
    let bench = Bench::new(&shape());
    let with = |kv: &str| {
        let flags = ["-c", "500", "--objective", "quality", "--kv-type", kv];
        plan(&bench, &flags).ok().json()
    };
    let (f16, q8_0, auto) = (with("f16"), with("q8_0"), with("auto"));
    // Nothing forbids the most exact.
    assert_eq!(auto["best"], f16["best"]);
    let fewer = &q8_0["best"];
    assert_eq!(fewer["kv_type"], "q8_0");
    assert!(fewer["kl"].as_f64() > f16["best"]["kl"].as_f64());
    for words in q8_0["run"].as_array().unwrap() {
        let words = words.to_string();
        assert!(words.contains(r#""--kv-type","q8_0""#), "{words}");
    }
    assert!(!f16["run"].to_string().contains("--kv-type"));
    // Whole pages of 16 positions, 34 bytes for 64.
    let server = |json: &Json| number(&json["server"], "kv_bytes");
    let layers = 6 - number(&f16["best"], "split");
    assert_eq!(server(&f16), layers * 512 * 2 * 2 * 64 * 2);
    let layers = 6 - number(fewer, "split");
    assert_eq!(server(&q8_0), layers * 512 * 2 * 2 * 68);

    let bench = Bench::new(&LlamaShape::tiny());
    for (kv, word) in [("q5_0", "q8_0 or q4_0"), ("q8_0", "heads of 16 values")] {
        let refused = plan(&bench, &["--kv-type", kv]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    let auto = plan(&bench, &["--kv-type", "auto"]).ok().json();
    assert_eq!(auto["best"]["kv_type"], "f16");
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

/// A profile and a file of sensitivities of the model of [`shape`], as small as they can be.
fn measured() -> [Json; 2] {
    let curve = json!({"rows": [1, 64], "ns": [0.05, 1.0]});
    let profile = json!({
        "format": "splitconv.profile", "version": 1, "machine": "m", "build": "b", "device": "cpu",
        "threads": 2, "derived": false, "loaded": false,
        "matrices": [{"block_type": "Q8_0", "curve": curve}],
        "attention": [{"positions": 256, "curve": {"rows": [1], "ns": [1.0]}}],
        "layer_fixed_ns": 1000.0, "layer_value_ns": 1.0, "pass_fixed_ns": 1000.0,
        "embed_value_ns": 1.0, "sample_value_ns": 1.0, "codecs": [], "memory_gb_per_s": 1.0,
        "load_gb_per_s": 1.0, "runtime_bytes": 1_000_000, "memory_bytes": 1_000_000_000
    });
    let s = shape();
    let sensitivity = json!({
        "format": "splitconv.sensitivity", "version": 1, "model": "m", "n_layer": s.n_layer,
        "n_embd": s.n_embd, "n_ff": s.n_ff, "n_vocab": s.n_vocab, "build": "b", "text": "t",
        "tokens": 100, "quick": true, "additivity": 0.9,
        "types": [{"layer": 0, "kind": "attn_v", "block_type": "Q2_K", "kl": 0.01}],
        "codecs": [{"cut": 3, "codec": "int8", "bytes_per_token": 300.0, "kl": 0.001}]
    });
    [profile, sensitivity]
}

#[test]
fn damaged_and_hostile_measurements_are_named_and_make_no_plan() {
    let bench = Bench::new(&shape());
    let flags = ["--edge-profile", "--sensitivity"];
    let run = |at: usize, bytes: &[u8]| {
        std::fs::write(bench.path("f.json"), bytes).unwrap();
        plan(&bench, &[flags[at], "f.json", "--max-kl", "50"])
    };
    let refused = |at: usize, bytes: &[u8], words: &[&str]| {
        let run = run(at, bytes);
        run.fails_with(&[&["f.json"], words].concat());
        assert!(run.stdout.is_empty(), "{}", run.stdout);
    };
    for (at, sound) in measured().iter().enumerate() {
        let text = sound.to_string();
        let answer = run(at, text.as_bytes()).ok().json();
        let said = answer["assumptions"].to_string();
        if at == 1 {
            // One matrix of forty-two was measured; the second plan writes it in another type.
            let other = "--sensitivity has no figures of";
            assert!(!said.contains(other), "{said}");
            let quality = [
                "--sensitivity",
                "f.json",
                "--max-kl",
                "50",
                "--objective",
                "quality",
            ];
            let said_then = plan(&bench, &quality).ok().json()["assumptions"].to_string();
            assert!(said_then.contains(other), "{said_then}");
            assert!(
                said.contains("nothing of some matrices of 6 layers"),
                "{said}"
            );
            assert!(answer["best"]["kl"].as_f64().unwrap() > 0.001);
        } else {
            assert!(said.contains("--edge-profile has no times of"), "{said}");
            assert!(!said.contains("--cloud-profile has no times"), "{said}");
        }
        for cut in (0..text.len()).step_by(text.len() / 9) {
            refused(at, &text.as_bytes()[..cut], &[]);
        }
        for (key, bad) in [
            ("version", json!(0)),
            ("version", json!(3)),
            ("version", json!(-1)),
            ("version", json!(1.5)),
            ("format", json!("splitconv.other")),
            ("format", json!(["splitconv.profile"])),
            ("machine", json!(7)),
            ("tokens", json!(-3)),
            ("types", json!("many")),
            ("matrices", json!({})),
        ] {
            let mut changed = sound.clone();
            if changed.get(key).is_some() {
                changed[key] = bad;
                refused(at, changed.to_string().as_bytes(), &[]);
            }
        }
        // Numbers that are none, in place of every number there is.
        let number = |text: &str, from: usize| {
            let found = text[from..].find(|c: char| c.is_ascii_digit())?;
            let start = from + found;
            let rest = &text[start..];
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            Some(start..start + end.unwrap_or(rest.len()))
        };
        let (mut place, mut count) = (0, 0);
        while let Some(range) = number(&text, place) {
            place = range.end;
            // Not those of names: `Q8_0`, `int8`.
            if !text[..range.start].ends_with([':', '[', ',']) {
                continue;
            }
            let bad = ["NaN", "-1", "1e308", "1e999"][count % 4];
            let changed = [&text[..range.start], bad, &text[range.end..]].concat();
            refused(at, changed.as_bytes(), &[]);
            count += 1;
        }
        assert!(count >= 8);
        let nested = text.replacen('{', &format!("{{\"x\":{}", "[".repeat(10 << 20)), 1);
        refused(at, nested.as_bytes(), &[]);
        refused(at, &vec![b' '; (16 << 20) + 1], &["is it another file"]);
        refused(at, &[0xff, 0xfe, 0], &[]);
        // A file of the other kind.
        let other = measured()[1 - at].to_string();
        refused(at, other.as_bytes(), &["expected a `splitconv."]);
    }
    let mut other = measured()[1].clone();
    other["n_layer"] = json!(7);
    refused(
        1,
        other.to_string().as_bytes(),
        &["measured on", "calibrate"],
    );
    // What a file says is shown, but steers no terminal.
    let mut steering = measured()[0].clone();
    steering["machine"] = json!("\u{1b}[2J");
    steering["loaded"] = json!(true);
    std::fs::write(bench.path("f.json"), steering.to_string()).unwrap();
    let args = [
        "plan",
        "m.gguf",
        "--uplink",
        "1Mbit/s",
        "--edge-profile",
        "f.json",
    ];
    for more in [&[][..], &["--edge-memory", "1MiB"]] {
        let run = bench.run(&[&args[..], more].concat());
        assert!(!run.stdout.contains('\u{1b}') && !run.stderr.contains('\u{1b}'));
    }
}

#[test]
fn absurd_and_contradictory_limits_have_clear_answers() {
    let bench = Bench::new(&shape());
    for flags in [
        "--edge-memory 1B --cloud-memory 1B --deadline 1us --max-kl 0.000000001",
        "--deadline 1us",
        "--max-kl 0.0000000000001 --deadline 1ms",
        "--edges 1000000 --deadline 10ms --cloud-memory 1GiB",
        "--edge-memory 1B --context 512",
        "--cloud-memory 1GiB --edges 1000000",
    ] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let run = plan(&bench, &flags);
        run.fails_with(&["nothing fits"]);
        let json = run.json();
        assert!(json["best"].is_null(), "{flags:?}");
        // What is named is enough, as it stands.
        let changes = json["infeasible"]["changes"].as_array().unwrap();
        let changes: Vec<&str> = changes.iter().map(|c| c.as_str().unwrap()).collect();
        let each: Vec<String> = if json["infeasible"]["binding"].is_null() {
            vec![changes.join(" ")]
        } else {
            changes.iter().map(|c| (*c).to_owned()).collect()
        };
        for change in each.iter().filter(|c| !c.is_empty()) {
            let typed: Vec<&str> = change.split_whitespace().collect();
            let mut words = flags.clone();
            for pair in typed.chunks(2) {
                if let Some(at) = words.iter().position(|w| *w == pair[0]) {
                    words.drain(at..at + 2);
                }
            }
            words.extend(typed.iter().filter(|_| !change.contains("--uplink")));
            if !change.contains("--uplink") {
                let best = &plan(&bench, &words).ok().json()["best"];
                assert!(!best.is_null(), "{flags:?} {change}");
            }
        }
    }
    // A radio is made faster by what makes radios faster.
    let radio = ["plan", "m.gguf", "--json", "--rtt", "1ms", "--snr", "20dB"];
    let slow = ["--radio-bandwidth", "10kHz", "--deadline", "30ms"];
    let run = bench.run(&[&radio[..], &slow].concat());
    run.fails_with(&["--radio-bandwidth"]);
    assert!(!run.stdout.contains("--uplink"), "{}", run.stdout);
    let json = run.json();
    let changes = json["infeasible"]["changes"].as_array().unwrap();
    let wider = (changes.iter().filter_map(Json::as_str))
        .find_map(|c| c.strip_prefix("--radio-bandwidth "))
        .unwrap();
    let fast = ["--radio-bandwidth", wider, "--deadline", "30ms"];
    bench.run(&[&radio[..], &fast].concat()).ok();
    // A prompt that is wanted is not given up for a shorter context.
    let within = |bytes: u64, more: &[&str]| {
        let bytes = format!("{bytes}B");
        plan(&bench, &[&["--edge-memory", &bytes][..], more].concat())
    };
    // The least memory of the edge that 300 positions fit into.
    let (mut low, mut high) = (1 << 20, 1 << 30);
    while high - low > 1 {
        let middle = u64::midpoint(low, high);
        if within(middle, &["-c", "300"]).code == 0 {
            high = middle;
        } else {
            low = middle;
        }
    }
    let changes = |more: &[&str]| within(high, more).json()["infeasible"]["changes"].to_string();
    let shorter = changes(&["-c", "512"]);
    assert!(shorter.contains("--context 3"), "{shorter}");
    let wanted = changes(&["-c", "512", "--prompt-tokens", "400"]);
    assert!(!wanted.contains("--context 3"), "{wanted}");
    // The largest that flags take.
    let most = "plan m.gguf --json --uplink 1Gbit/s --edges 1000000 --rtt 86400s --cloud-memory 1024TiB --max-kl 100";
    let most: Vec<&str> = most.split(' ').collect();
    let best = bench.run(&most).ok().json()["best"].clone();
    assert!(
        best["token_ms"].as_f64().is_some_and(f64::is_finite),
        "{best}"
    );
}
