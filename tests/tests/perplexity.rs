//! Perplexity against llama.cpp's figures, and what the default codec costs at every cut.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::exec::Executor;
use engine::exec::cpu::{CpuExecutor, Isa};
use engine::measure::{EvalOptions, EvalReport, evaluate};
use engine::model::ModelPart;
use engine::text::Tokenizer;
use formats::gguf::GgufSet;
use formats::wire::Codec;
use integration::{must, must_json, smollm2_pair};

/// Held by each test: they use all cores, and two at once would only wait for each other.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wiki() -> String {
    fixtures::wiki_64k().to_str().unwrap().to_owned()
}

#[test]
fn unsplit_and_copied_pair_give_the_figure_of_llama_cpp_and_the_same_bits() {
    let _turn = turn();
    let golden = fixtures::golden("perplexity.json");
    let want = golden["running_perplexity"]["dequantised to F32"][15]
        .as_f64()
        .unwrap();
    let (dir, text) = (smollm2_pair(), wiki());
    let model = fixtures::smollm2_gguf();
    let eval = |model: &[&str]| {
        let mut args = vec![
            "eval", "--text", &text, "--ctx", "512", "--chunks", "16", "--json",
        ];
        args.extend(model);
        must_json(dir, "splitrun", &args)
    };
    let unsplit = eval(&["--model", model.to_str().unwrap()]);
    assert_eq!(unsplit["tokens_scored"], 16 * 255);
    let got = unsplit["perplexity"].as_f64().unwrap();
    assert!(
        (got / want - 1.0).abs() < 0.005,
        "{got}, llama.cpp has {want}"
    );
    assert_eq!(
        eval(&[])["perplexity"].as_f64().unwrap().to_bits(),
        got.to_bits()
    );
}

#[test]
fn llama_cpp_agrees_about_every_block_type_on_the_edge() {
    let _turn = turn();
    // Each entry: splitconv's flags, and the perplexity after each window that
    // llama.cpp prints when it loads the pair from its first file.
    let golden = fixtures::golden("pairs.json");
    let model = fixtures::smollm2_gguf();
    let text = wiki();
    for case in golden["cases"].as_array().unwrap() {
        let flags: Vec<&str> = case["flags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f.as_str().unwrap())
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec![model.to_str().unwrap(), "--split", "10"];
        args.extend(&flags);
        must(dir.path(), "splitconv", &args);
        let eval = |windows: usize| {
            let chunks = windows.to_string();
            let args = [
                "eval", "--text", &text, "--ctx", "512", "--chunks", &chunks, "--json",
            ];
            must_json(dir.path(), "splitrun", &args)["perplexity"]
                .as_f64()
                .unwrap()
        };
        let near = |key: &str, windows: usize, got: f64, within: f64| {
            let want = case[key][windows - 1].as_f64().unwrap();
            assert!(
                (got / want - 1.0).abs() < within,
                "{flags:?}, {key}: {got} after {windows} windows, llama.cpp has {want}"
            );
        };
        // The K-quants are on the widest rows, where rounding activations costs llama.cpp up to
        // 1.3 % after four windows; over the whole text that evens out.
        let windows = case["windows"].as_u64().unwrap_or(4) as usize;
        let got = eval(windows);
        // The same weights as floats: nothing is rounded on either side.
        near("perplexity_f32", windows, got, 1e-3);
        // The file itself: llama.cpp rounds activations to eight bits there.
        near("perplexity", windows, got, 0.01);
    }
}

/// SmolLM2 cut in this process: a copied pair holds the same bytes as the whole file.
fn cut(set: &Arc<GgufSet>, at: usize, codec: &str, frame_rows: usize) -> EvalReport {
    let half = |layers| -> Arc<dyn Executor> {
        let part = ModelPart::load(set, layers).unwrap();
        Arc::new(CpuExecutor::new(part, 2, Isa::detect()).unwrap())
    };
    let text = std::fs::read_to_string(fixtures::wiki_64k()).unwrap();
    let options = EvalOptions {
        cut: None,
        ctx: 512,
        chunks: Some(1),
        codec: Some(codec.parse::<Codec>().unwrap()),
        frame_rows,
    };
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    evaluate(
        &half(0..at),
        Some(&half(at..30)),
        &tokenizer,
        &text,
        &options,
        &mut |_, _, _| {},
    )
    .unwrap()
}

#[test]
fn the_default_codec_holds_its_bounds_at_every_cut() {
    let _turn = turn();
    let set = Arc::new(GgufSet::open(&fixtures::smollm2_gguf()).unwrap());
    for at in 3..=27 {
        let r = cut(&set, at, "auto", 1).codec.unwrap();
        println!(
            "cut {at}: {:.1} bytes/token, KL {:.5}, same top {:.3}",
            r.bytes_per_token, r.kl_mean, r.top1_agreement
        );
        assert!(
            r.bytes_per_token <= 440.0,
            "cut {at}: {} bytes a token",
            r.bytes_per_token
        );
        assert!(r.kl_mean <= 0.012, "cut {at}: KL {}", r.kl_mean);
    }
}

#[test]
fn codec_f32_costs_nothing_and_larger_frames_cost_less() {
    let _turn = turn();
    let set = Arc::new(GgufSet::open(&fixtures::smollm2_gguf()).unwrap());
    let r = cut(&set, 10, "f32", 64);
    let c = r.codec.unwrap();
    assert_eq!((c.kl_max, c.top1_agreement), (0.0, 1.0));
    assert_eq!(r.perplexity.to_bits(), c.perplexity_no_codec.to_bits());
    let one = cut(&set, 10, "auto", 1).codec.unwrap();
    let many = cut(&set, 10, "auto", 64).codec.unwrap();
    assert!(many.bytes_per_token < one.bytes_per_token);
    assert_eq!(
        many.kl_mean.to_bits(),
        one.kl_mean.to_bits(),
        "rows are coded one by one"
    );
}
