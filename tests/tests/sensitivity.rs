//! Sensitivities: what matters much is seen to, however often and wherever it is measured.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::exec::cpu::{CpuExecutor, Isa};
use engine::measure::damage::{DamageOptions, damage};
use engine::measure::{Journal, SensitivityOptions, sensitivity};
use engine::model::ModelPart;
use engine::role::RunError;
use engine::text::Tokenizer;
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::{Gguf, GgufSet};
use formats::imatrix::{Imatrix, KINDS, Sensitivity};
use formats::measured::LayerSensitivity;
use integration::{must, must_json, run};
use serde_json::json;

const TEXT: &str = "What disturbs one layer is felt by all that come after it, more or less. ";

fn shape() -> LlamaShape {
    LlamaShape {
        n_embd: 32,
        n_ff: 64,
        n_layer: 3,
        n_head: 4,
        n_head_kv: 2,
        matrix_type: BlockType::F32,
        ..LlamaShape::tiny()
    }
}

/// Multiplies the weights of an F32 tensor in its file.
fn scale(path: &Path, name: &str, factor: f32) {
    let file = Gguf::open(path).unwrap();
    let t = file.tensor(name).unwrap();
    let (words, _) = file.data(t).as_chunks::<4>();
    let scaled = words.iter().map(|w| f32::from_le_bytes(*w) * factor);
    let bytes: Vec<u8> = scaled.flat_map(f32::to_le_bytes).collect();
    let mut out = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    out.seek(SeekFrom::Start(t.start as u64)).unwrap();
    out.write_all(&bytes).unwrap();
}

fn measure(
    path: &Path,
    cuts: &[usize],
    threads: usize,
    tokens: usize,
) -> Result<Sensitivity, RunError> {
    let set = Arc::new(GgufSet::open(path).unwrap());
    let parts: Vec<Arc<CpuExecutor>> = cuts
        .windows(2)
        .map(|c| {
            let part = ModelPart::load(&set, c[0]..c[1]).unwrap();
            Arc::new(CpuExecutor::new(part, threads, Isa::detect()).unwrap())
        })
        .collect();
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    let options = SensitivityOptions {
        tokens,
        ctx: 32,
        chunks: None,
    };
    let (mut last, mut all) = (0, 0);
    let mut progress = |done: usize, of: usize| {
        assert!(done > last && (all == 0 || of == all), "{last} {done} {of}");
        (last, all) = (done, of);
    };
    let out = sensitivity(
        &parts,
        &tokenizer,
        &TEXT.repeat(20),
        &options,
        &mut progress,
    )?;
    assert_eq!(last, all, "it ends when it says so");
    Ok(out)
}

#[test]
fn what_carries_the_answer_is_sensitive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    shape().write(&path).unwrap();
    let before = measure(&path, &[0, 3], 2, 32).unwrap();
    let values = before.layers.as_flattened();
    assert!(
        values.iter().all(|v| v.is_finite() && *v > 0.0),
        "{values:?}"
    );
    // A block that adds next to nothing to the rows: neither do errors in it. All else does.
    for (layer, kind, block) in [(1, "ffn_down", 4..7), (2, "attn_output", 0..4)] {
        shape().write(&path).unwrap();
        scale(&path, &format!("blk.{layer}.{kind}.weight"), 1e-3);
        let after = measure(&path, &[0, 3], 2, 32).unwrap();
        for (l, row) in after.layers.iter().enumerate() {
            for (k, v) in row.iter().enumerate() {
                let share = v / before.layers[l][k];
                assert_eq!(
                    l == layer && block.contains(&k),
                    share < 1e-3,
                    "{kind} of layer {layer} is small: {} of {l} went to {share}",
                    KINDS[k]
                );
            }
        }
    }
    // Queries that say nothing: every token looks at all others alike, whatever the keys are.
    shape().write(&path).unwrap();
    for l in 0..3 {
        scale(&path, &format!("blk.{l}.attn_q.weight"), 1e-3);
    }
    for row in measure(&path, &[0, 3], 2, 32).unwrap().layers {
        assert!(row[0] + row[1] < 0.01 * row[2], "{row:?}");
    }
}

#[test]
fn halves_and_threads_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    shape().write(&path).unwrap();
    let one = measure(&path, &[0, 3], 1, 64).unwrap();
    assert_eq!(one.tokens, 64);
    assert_eq!(one, measure(&path, &[0, 3], 2, 64).unwrap());
    assert_eq!(one, measure(&path, &[0, 1, 3], 3, 64).unwrap());
    assert_ne!(one, measure(&path, &[0, 3], 1, 32).unwrap());
}

#[test]
fn a_model_that_makes_no_numbers_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    shape().write(&path).unwrap();
    scale(&path, "blk.1.ffn_up.weight", f32::NAN);
    let said = measure(&path, &[0, 3], 1, 32).unwrap_err().to_string();
    assert!(said.contains("not finite"), "{said}");
}

#[test]
fn from_the_measurement_to_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shape = LlamaShape {
        n_embd: 256,
        n_layer: 4,
        ..LlamaShape::tiny()
    };
    shape.write(&dir.join("m.gguf")).unwrap();
    std::fs::write(dir.join("t.txt"), TEXT.repeat(20)).unwrap();
    let args = [
        "calibrate",
        "-m",
        "m.gguf",
        "--text",
        "t.txt",
        "--out",
        "im.gguf",
        "-c",
        "64",
    ];
    let report = must_json(
        dir,
        "splitrun",
        &[&args[..], &["--sensitivity", "40", "--json"]].concat(),
    );
    assert_eq!(report["sensitivity_tokens"], 40);
    let cut = || {
        let args = [
            "m.gguf",
            "--split",
            "2",
            "--edge-bits",
            "3",
            "--recipe",
            "auto",
            "--imatrix",
            "im.gguf",
            "--dry-run",
            "--json",
        ];
        must_json(dir, "splitconv", &args)["notes"].to_string()
    };
    let measured = Imatrix::open(&dir.join("im.gguf")).unwrap();
    assert_eq!(measured.sensitivity.as_ref().unwrap().layers.len(), 4);
    assert!(cut().contains("measured over 40 tokens"), "{}", cut());
    must(
        dir,
        "splitrun",
        &[&args[..], &["--sensitivity", "--chunks", "4"]].concat(),
    );
    let said = cut();
    assert!(said.contains("measured over 256 tokens"), "{said}");
    must(dir, "splitrun", &args);
    let plain = Imatrix::open(&dir.join("im.gguf")).unwrap();
    assert_eq!(plain.sensitivity, None);
    assert_eq!(plain.entries, measured.entries);
    assert!(cut().contains("stated factors"));
    let none = run(
        dir,
        "splitrun",
        &[&args[..], &["--sensitivity", "0"]].concat(),
    );
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn what_types_and_codecs_cost_is_measured_and_fitted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shape = LlamaShape {
        n_embd: 256,
        n_ff: 256,
        n_layer: 3,
        ..LlamaShape::tiny()
    };
    shape.write(&dir.join("m.gguf")).unwrap();
    std::fs::write(dir.join("t.txt"), TEXT.repeat(30)).unwrap();
    let args = [
        "calibrate",
        "-m",
        "m.gguf",
        "--text",
        "t.txt",
        "--out",
        "s.json",
        "-c",
        "64",
        "--sensitivity",
        "32",
        "--json",
    ];
    let run_for = |seconds: &str| {
        must_json(
            dir,
            "splitrun",
            &[&args[..], &["--seconds", seconds]].concat(),
        )
    };
    let report = run_for("600");
    // Nine types in 21 matrices, eight codecs at two cuts.
    assert_eq!(
        (&report["types"], &report["types_fitted"]),
        (&json!(189), &json!(0))
    );
    assert_eq!(
        (&report["codecs"], &report["codecs_fitted"]),
        (&json!(16), &json!(0))
    );
    assert!(!dir.join("s.json.results").exists());
    let s = LayerSensitivity::open(&dir.join("s.json")).unwrap();
    assert!(!s.quick && s.tokens == 32);
    assert!((0.1..10.0).contains(&s.additivity), "{}", s.additivity);
    // Fewer bits cost more, in every matrix.
    let kl = |layer: u32, kind: &str, ty: &str| {
        let found =
            (s.types.iter()).find(|t| t.layer == layer && t.kind == kind && t.block_type == ty);
        found.unwrap().kl
    };
    for layer in 0..3 {
        for kind in KINDS {
            let of = |ty| kl(layer, kind, ty);
            assert!(
                of("Q2_K") > of("Q4_K") && of("Q4_K") > of("Q8_0"),
                "{layer} {kind}"
            );
        }
    }
    for cut in 1..3 {
        let of = |spec: &str| {
            s.codecs
                .iter()
                .find(|c| c.cut == cut && c.codec == spec)
                .unwrap()
        };
        let (fine, coarse) = (of("tcq:step=0.3"), of("tcq:step=1.4"));
        assert!(fine.kl < coarse.kl && fine.bytes_per_token > coarse.bytes_per_token);
        assert!(fine.prompt_bytes_per_token.unwrap() < fine.bytes_per_token);
    }
    // A second at a time: what is missing is fitted, and the next run goes on from there.
    std::fs::remove_file(dir.join("s.json")).unwrap();
    let args = [&args[..], &["--seconds", "1"]].concat();
    let mut fitted = u64::MAX;
    for _ in 0..200 {
        let report = must_json(dir, "splitrun", &args);
        let left =
            report["types_fitted"].as_u64().unwrap() + report["codecs_fitted"].as_u64().unwrap();
        assert!(left < fitted || left == 0, "{left} of {fitted}");
        assert_eq!(
            (&report["types"], &report["codecs"]),
            (&json!(189), &json!(16))
        );
        fitted = left;
        if left == 0 {
            break;
        }
        let s = LayerSensitivity::open(&dir.join("s.json")).unwrap();
        assert!(s.quick && dir.join("s.json.results").exists());
    }
    assert_eq!(fitted, 0);
    let again = LayerSensitivity::open(&dir.join("s.json")).unwrap();
    assert_eq!(
        again.types, s.types,
        "the same figures, in however many runs"
    );
    // Wrong usage, and a file that is not to be lost.
    for more in [&["--cut", "1"][..], &["--quick", "--seconds", "3"]] {
        let out = run(dir, "splitrun", &[&args[..11], more].concat());
        assert_eq!(out.status.code(), Some(2), "{more:?}");
    }
    std::fs::write(dir.join("s.json"), "precious").unwrap();
    let out = run(dir, "splitrun", &args[..11]);
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(
        std::fs::read_to_string(dir.join("s.json")).unwrap(),
        "precious"
    );
}

#[test]
fn when_the_time_is_over_no_other_figure_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    shape().write(&path).unwrap();
    let set = Arc::new(GgufSet::open(&path).unwrap());
    let part = ModelPart::load(&set, 0..3).unwrap();
    let parts = [Arc::new(CpuExecutor::new(part, 1, Isa::detect()).unwrap())];
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    let text = TEXT.repeat(20);
    let measure = |time, journal: &mut Journal, progress: &mut dyn FnMut(usize, usize)| {
        let options = DamageOptions {
            tokens: 64,
            ctx: 64,
            chunks: None,
            time,
            model: "m".into(),
            text: "t".into(),
        };
        damage(&parts, &tokenizer, &text, &options, journal, progress)
    };
    let mut journal = Journal::default();
    let none = measure(Duration::ZERO, &mut journal, &mut |_, _| panic!("a figure"));
    let said = none.unwrap_err().to_string();
    assert!(said.contains("--seconds"), "{said}");
    // The first takes as long as there is time.
    let time = Duration::from_secs(3);
    let mut figures = 0;
    let mut slow = |done: usize, _: usize| {
        figures = done;
        std::thread::sleep(time);
    };
    let s = measure(time, &mut journal, &mut slow).unwrap();
    assert_eq!(figures, 1);
    s.check().unwrap();
    let measured = s.codecs.iter().filter(|c| !c.fitted).count();
    assert_eq!((s.types.len(), s.codecs.len(), measured), (0, 2, 1));
    assert!(s.quick && s.additivity == 1.0);
}
