//! Whole models on a graphics adapter (llvmpipe will do) against the CPU executor.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use engine::exec::cpu::{CpuExecutor, Isa};
use engine::exec::gpu::{Adapter, Gpu, GpuExecutor, Variants};
use engine::exec::{ExecError, Executor, Sequence};
use engine::measure::{EvalOptions, compare, evaluate, log_softmax};
use engine::model::ModelPart;
use engine::text::{Tokenizer, argmax};
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::GgufSet;
use integration::{Cloud, must, must_json};

/// The device of all tests here. Without an adapter they fail: `cargo xtask test` installs one.
fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    let open = || Arc::new(Gpu::open(&Adapter::best(true).unwrap(), Variants::Auto).unwrap());
    Arc::clone(GPU.get_or_init(open))
}

fn on_gpu(set: &Arc<GgufSet>, layers: std::ops::Range<usize>) -> Arc<dyn Executor> {
    Arc::new(GpuExecutor::new(ModelPart::load(set, layers).unwrap(), gpu()).unwrap())
}

fn on_cpu(set: &Arc<GgufSet>, layers: std::ops::Range<usize>) -> Arc<dyn Executor> {
    Arc::new(CpuExecutor::new(ModelPart::load(set, layers).unwrap(), 2, Isa::detect()).unwrap())
}

fn model(dir: &Path, shape: &LlamaShape) -> Arc<GgufSet> {
    let path = dir.join("m.gguf");
    shape.write(&path).unwrap();
    Arc::new(GgufSet::open(&path).unwrap())
}

fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 79 + 13) % 320).collect()
}

/// The logits of all positions, in chunks.
fn logits(parts: &[Arc<dyn Executor>], ids: &[u32], chunk: usize) -> Vec<f32> {
    let mut caches: Vec<_> = parts.iter().map(|p| p.new_cache(600).unwrap()).collect();
    let mut all = Vec::new();
    for ids in ids.chunks(chunk) {
        let (mut rows, mut some) = (Vec::new(), Vec::new());
        parts[0].embed(ids, &mut rows).unwrap();
        for (p, c) in parts.iter().zip(&mut caches) {
            p.forward(c, &mut rows).unwrap();
        }
        parts.last().unwrap().logits(&rows, &mut some).unwrap();
        all.extend(some);
    }
    all
}

/// Mean divergence of the distributions behind two lists of logits.
fn divergence(p: &[f32], q: &[f32], vocab: usize) -> f64 {
    assert_eq!(p.len(), q.len());
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let kl = |(p, q)| {
        log_softmax(p, &mut a);
        log_softmax(q, &mut b);
        compare(&a, &b).kl
    };
    let rows = p.chunks(vocab).zip(q.chunks(vocab));
    let n = rows.len() as f64;
    rows.map(kl).sum::<f64>() / n
}

/// How far a layer's rows may be from the processor's: root of the mean square of the difference, by that of the rows.
/// Both add floats, in other orders; a key or value on the border between two halves then falls to either side, which is
/// half a step of a half float.
const LAYER_TOLERANCE: f64 = 1.0 / 2048.0;

/// Norm, rotation, attention and gate at shapes that nobody chose: odd widths, one head, one row, up to 600 positions in
/// chunks of any size. What a device cannot do is a width that is no multiple of 4, and it says so.
#[test]
fn a_layer_of_any_shape_is_the_processors() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |from: u32, to: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        from + (state >> 33) as u32 % (to - from + 1)
    };
    for case in 0..16 {
        let (kv, group, half) = (draw(1, 3), draw(1, 4), draw(1, 20));
        let shape = LlamaShape {
            n_layer: 2,
            n_head_kv: kv,
            n_head: kv * group,
            n_embd: kv * group * 4 * half,
            n_ff: 4 * draw(1, 75),
            matrix_type: BlockType::F32,
            rope_freqs: case % 2 == 0,
            seed: case,
            ..LlamaShape::tiny()
        };
        let tokens = if case == 0 { 1 } else { draw(1, 600) };
        let (chunk, ids) = (draw(1, tokens) as usize, ids(tokens));
        let set = model(dir.path(), &shape);
        let rows = |exec: Arc<dyn Executor>| {
            let mut cache = exec.new_cache(600).unwrap();
            let mut all = Vec::new();
            for ids in ids.chunks(chunk) {
                let mut rows = Vec::new();
                exec.embed(ids, &mut rows).unwrap();
                exec.forward(&mut cache, &mut rows).unwrap();
                all.extend(rows);
            }
            all
        };
        let (want, got) = (rows(on_cpu(&set, 0..1)), rows(on_gpu(&set, 0..1)));
        assert_eq!(want.len(), got.len());
        let square = |v: f32| f64::from(v).powi(2);
        let size: f64 = want.iter().map(|w| square(*w)).sum();
        let error: f64 = want.iter().zip(&got).map(|(w, g)| square(w - g)).sum();
        let error = (error / size).sqrt();
        assert!(
            error < LAYER_TOLERANCE,
            "{error:e} with {tokens} tokens in chunks of {chunk}, {shape:?}"
        );
    }
}

#[test]
fn halves_on_either_device_give_the_same_distribution() {
    let dir = tempfile::tempdir().unwrap();
    let ids = ids(300);
    let shapes = [
        LlamaShape::tiny(),
        LlamaShape::tiny_qwen2(),
        LlamaShape {
            // Heads of 80 values; feed-forward rows that are no whole runs; Llama-3's factors; tied.
            n_embd: 320,
            n_head: 4,
            n_head_kv: 1,
            n_ff: 420,
            n_layer: 2,
            tied: true,
            rope_freqs: true,
            ..LlamaShape::tiny()
        },
    ];
    for shape in shapes {
        let set = model(dir.path(), &shape);
        let (n, vocab) = (shape.n_layer as usize, shape.n_vocab as usize);
        let want = logits(&[on_cpu(&set, 0..n)], &ids, 64);
        let whole = [on_gpu(&set, 0..n)];
        let first = logits(&whole, &ids, 64);
        assert!(divergence(&want, &first, vocab) < 1e-6);
        // Equal runs, equal bits; other chunks, nearly so.
        assert_eq!(first, logits(&whole, &ids, 64));
        for chunk in [1, 5, 299] {
            assert!(divergence(&want, &logits(&whole, &ids, chunk), vocab) < 1e-6);
        }
        for parts in [
            [on_gpu(&set, 0..1), on_cpu(&set, 1..n)],
            [on_cpu(&set, 0..1), on_gpu(&set, 1..n)],
            [on_gpu(&set, 0..1), on_gpu(&set, 1..n)],
        ] {
            assert!(divergence(&want, &logits(&parts, &ids, 64), vocab) < 1e-6);
        }
    }
}

#[test]
fn a_sequence_does_not_feel_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let set = model(dir.path(), &LlamaShape::tiny());
    let exec = on_gpu(&set, 0..6);
    let step = |n: usize, together: bool| {
        let mut caches: Vec<_> = (0..n).map(|_| exec.new_cache(64).unwrap()).collect();
        let mut last = Vec::new();
        for t in 0..20_u32 {
            let mut rows: Vec<Vec<f32>> = (0..n as u32)
                .map(|s| {
                    let mut rows = Vec::new();
                    exec.embed(&[(t * 7 + s * 31) % 320], &mut rows).unwrap();
                    rows
                })
                .collect();
            let pairs = caches.iter_mut().zip(&mut rows);
            let mut batch: Vec<_> = pairs
                .map(|(cache, rows)| Sequence { cache, rows })
                .collect();
            if together {
                exec.forward_batch(&mut batch).unwrap();
            } else {
                for s in &mut batch {
                    exec.forward(s.cache, s.rows).unwrap();
                }
            }
            last = rows;
        }
        last
    };
    let alone = step(21, false);
    for n in [2, 5, 8, 9, 21] {
        assert_eq!(alone[..n], step(n, true)[..], "{n} sequences");
    }
    // A prompt among them, and one with nothing to do.
    let mut caches: Vec<_> = (0..3).map(|_| exec.new_cache(64).unwrap()).collect();
    let mut rows = vec![Vec::new(); 3];
    for (rows, ids) in rows.iter_mut().zip([&ids(30)[..], &[], &[5]]) {
        exec.embed(ids, rows).unwrap();
    }
    let mut want = rows.clone();
    let pairs = caches.iter_mut().zip(&mut rows);
    let mut batch: Vec<_> = pairs
        .map(|(cache, rows)| Sequence { cache, rows })
        .collect();
    exec.forward_batch(&mut batch).unwrap();
    assert_eq!(
        caches
            .iter()
            .map(engine::cache::KvCache::len)
            .collect::<Vec<_>>(),
        [30, 0, 1]
    );
    for (rows, want) in rows.iter().zip(&mut want) {
        exec.forward(&mut exec.new_cache(64).unwrap(), want)
            .unwrap();
        assert_eq!(rows, want);
    }

    // Two threads at once, each with a sequence of its own.
    let ids = ids(120);
    let want = logits(&[Arc::clone(&exec)], &ids, 8);
    let run = || logits(&[Arc::clone(&exec)], &ids, 8);
    let both = std::thread::scope(|s| [s.spawn(run), s.spawn(run)].map(|t| t.join().unwrap()));
    assert!(both.iter().all(|got| *got == want));
}

#[test]
fn what_is_fused_is_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let set = model(dir.path(), &LlamaShape::tiny());
    for exec in [on_gpu(&set, 0..6), on_cpu(&set, 0..6)] {
        let (mut rows, mut fused, mut apart) = (Vec::new(), Vec::new(), Vec::new());
        exec.embed(&ids(40), &mut rows).unwrap();
        let mut again = rows.clone();
        let mut cache = exec.new_cache(64).unwrap();
        exec.forward_logits(&mut cache, &mut rows, 3, &mut fused)
            .unwrap();
        assert_eq!(cache.len(), 40);
        let mut cache = exec.new_cache(64).unwrap();
        exec.forward(&mut cache, &mut again).unwrap();
        exec.logits(&again[37 * 64..], &mut apart).unwrap();
        assert_eq!(fused, apart);
        let mut cache = exec.new_cache(64).unwrap();
        exec.embed(&ids(40), &mut rows).unwrap();
        let id = exec
            .forward_argmax(&mut cache, &mut rows, &mut Vec::new())
            .unwrap();
        assert_eq!((id, cache.len()), (argmax(&apart[2 * 320..]), 40));
    }
}

#[test]
fn a_cache_grows_rolls_back_and_stays_with_its_executor() {
    let dir = tempfile::tempdir().unwrap();
    let set = model(dir.path(), &LlamaShape::tiny());
    let exec = on_gpu(&set, 0..6);
    let forward = |cache: &mut _, ids: &[u32]| {
        let mut rows = Vec::new();
        exec.embed(ids, &mut rows).unwrap();
        exec.forward(cache, &mut rows).map(|()| rows)
    };
    let ids = ids(400);
    let mut cache = exec.new_cache(400).unwrap();
    forward(&mut cache, &ids[..250]).unwrap();
    let small = cache.bytes();
    // Past the first 256 positions.
    let want = forward(&mut cache, &ids[250..260]).unwrap();
    assert!(cache.bytes() > small);
    cache.truncate(250);
    assert_eq!(forward(&mut cache, &ids[250..260]).unwrap(), want);
    let full = forward(&mut cache, &ids).unwrap_err();
    assert!(matches!(full, ExecError::ContextFull { used: 260, .. }));
    assert_eq!(cache.len(), 260);
    for mut other in [
        on_gpu(&set, 0..6).new_cache(9).unwrap(),
        on_cpu(&set, 0..6).new_cache(9).unwrap(),
    ] {
        let refused = forward(&mut other, &ids[..1]).unwrap_err();
        assert!(matches!(refused, ExecError::OtherCache { .. }));
    }
    let cpu = on_cpu(&set, 0..6);
    let refused = cpu.forward(&mut cache, &mut [0.0; 64]).unwrap_err();
    assert!(matches!(refused, ExecError::OtherCache { .. }));
}

/// Far into a context a decoded token's attention is parted among workgroups: nearly the same, the same every time,
/// and with several rows at once.
#[test]
fn attention_in_parts_is_attention() {
    let dir = tempfile::tempdir().unwrap();
    let shape = LlamaShape {
        n_layer: 2,
        ..LlamaShape::tiny()
    };
    let set = model(dir.path(), &shape);
    let (cpu, gpu) = (on_cpu(&set, 0..2), on_gpu(&set, 0..2));
    let ids = ids(1100);
    let last = |exec: &Arc<dyn Executor>, chunk: usize| {
        let mut cache = exec.new_cache(1200).unwrap();
        let (mut rows, mut all) = (Vec::new(), Vec::new());
        for ids in ids[..1064].chunks(200) {
            exec.embed(ids, &mut rows).unwrap();
            exec.forward(&mut cache, &mut rows).unwrap();
        }
        for ids in ids[1064..].chunks(chunk) {
            let mut some = Vec::new();
            exec.embed(ids, &mut rows).unwrap();
            exec.forward_logits(&mut cache, &mut rows, ids.len(), &mut some)
                .unwrap();
            all.extend(some);
        }
        all
    };
    let want = last(&cpu, 9);
    for chunk in [1, 2, 7] {
        let got = last(&gpu, chunk);
        assert!(divergence(&want, &got, 320) < 1e-6, "{chunk} rows at once");
        assert_eq!(got, last(&gpu, chunk));
    }
}

#[test]
fn shapes_that_kernels_are_not_made_for_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let shape = LlamaShape {
        n_embd: 1088,
        n_head: 2,
        n_head_kv: 2,
        n_layer: 2,
        ..LlamaShape::tiny()
    };
    let set = model(dir.path(), &shape);
    let part = ModelPart::load(&set, 0..2).unwrap();
    let error = GpuExecutor::new(part, gpu()).unwrap_err().to_string();
    assert!(error.contains("a head of 544 values"), "{error}");
    assert!(error.contains("--device cpu"), "{error}");
}

#[test]
fn the_real_model_is_the_same_on_both() {
    let set = Arc::new(GgufSet::open(&fixtures::smollm2_gguf()).unwrap());
    let text = std::fs::read_to_string(fixtures::wiki_64k()).unwrap();
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    let gpu: [Arc<dyn Executor>; 2] = [on_gpu(&set, 0..10), on_gpu(&set, 10..30)];
    let cpu: [Arc<dyn Executor>; 2] = [on_cpu(&set, 0..10), on_cpu(&set, 10..30)];
    let options = EvalOptions {
        ctx: 192,
        chunks: Some(1),
        codec: None,
        frame_rows: 1,
        cut: None,
    };
    let perplexity = |front: &Arc<dyn Executor>, back: &Arc<dyn Executor>| {
        let mut quiet = |_: usize, _: usize, _: f64| {};
        let report = evaluate(front, Some(back), &tokenizer, &text, &options, &mut quiet);
        report.unwrap().perplexity
    };
    let want = perplexity(&cpu[0], &cpu[1]);
    for (front, back) in [(&gpu[0], &gpu[1]), (&gpu[0], &cpu[1]), (&cpu[0], &gpu[1])] {
        let got = perplexity(front, back);
        assert!((got / want - 1.0).abs() < 0.007, "{got}, not {want}");
    }
    let ids = tokenizer.encode_prompt(&text[..400]);
    let vocab = cpu[1].hparams().n_vocab;
    let want = logits(&cpu, &ids, 64);
    let first = logits(&gpu, &ids, 64);
    let kl = divergence(&want, &first, vocab);
    assert!(kl < 1e-3, "KL {kl}");
    let kl = divergence(&first, &logits(&gpu, &ids, 7), vocab);
    assert!(kl < 1e-4, "KL {kl} between chunks");
}

/// What the variants cost that round: to the logits of floats, and between chunks.
#[test]
fn the_real_model_in_8_bits_and_in_halves() {
    let set = Arc::new(GgufSet::open(&fixtures::smollm2_gguf()).unwrap());
    let text = std::fs::read_to_string(fixtures::wiki_64k()).unwrap();
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    let ids = tokenizer.encode_prompt(&text[..800]);
    let cpu = on_cpu(&set, 0..30);
    let vocab = cpu.hparams().n_vocab;
    let want = logits(&[cpu], &ids, 64);
    for (variants, most) in [("subgroups,int8", 0.0027), ("subgroups,f16", 1e-3)] {
        let adapter = Adapter::best(true).unwrap();
        let gpu = Arc::new(Gpu::open(&adapter, variants.parse().unwrap()).unwrap());
        let part = ModelPart::load(&set, 0..30).unwrap();
        let exec: [Arc<dyn Executor>; 1] = [Arc::new(GpuExecutor::new(part, gpu).unwrap())];
        let first = logits(&exec, &ids, 64);
        let kl = divergence(&want, &first, vocab);
        eprintln!("{variants}: KL {kl:.6}");
        assert!(kl < most, "{variants}: KL {kl}");
        let (first, other) = (&first[..35 * vocab], logits(&exec, &ids[..35], 7));
        let kl = divergence(first, &other, vocab);
        eprintln!("{variants}: KL {kl:.8} between chunks");
        assert!(kl < 1e-4, "{variants}: KL {kl} between chunks");
        // Sums of whole numbers run in one order, few rows or many.
        assert!(!variants.contains("int8") || first == other);
    }
}

/// As typed: a pair over the link, one half on each kind of device, and the bench.
#[test]
fn programs_take_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let shape = LlamaShape {
        matrix_type: BlockType::Q8_0,
        ..LlamaShape::tiny()
    };
    shape.write(&dir.path().join("t.gguf")).unwrap();
    must(
        dir.path(),
        "splitconv",
        &["t.gguf", "--split", "2", "--edge-bits", "8"],
    );
    let pair = "t-s2e8c8-00001-of-00002.gguf";
    let args = [
        "-p",
        "The ration",
        "-n",
        "12",
        "--temp",
        "0",
        "--ignore-eos",
        "--exact",
        "--json",
    ];
    let with = |role: &[&str]| {
        let ran = must_json(dir.path(), "splitrun", &[role, &args[..]].concat());
        ran["ids"].clone()
    };
    let want = with(&[
        "--role", "both", "--model", pair, "--device", "cpu", "--codec", "f32",
    ]);
    let cloud = Cloud::start(dir.path(), &["--device", "gpu"]);
    let address = cloud.address.clone();
    let edge = [
        "--role", "edge", "--cloud", &address, "--codec", "f32", "--device",
    ];
    for device in ["gpu", "cpu"] {
        assert_eq!(
            with(&[&edge[..], &[device]].concat()),
            want,
            "edge on {device}"
        );
    }
    let bench = [
        "bench", "-m", pair, "-p", "16", "-n", "4", "-r", "1", "--device", "gpu", "--json",
    ];
    let report = must_json(dir.path(), "splitrun", &bench);
    assert!(report["gpu"]["copy_gb_per_s"].as_f64().unwrap() > 0.0);
    let devices = must_json(dir.path(), "splitrun", &["devices", "--json"]);
    let adapters = devices["adapters"].as_array().unwrap();
    assert!(
        adapters
            .iter()
            .all(|a| a["max_binding_bytes"].as_u64() > Some(0))
    );
    assert!(!adapters.is_empty());
    // What is asked for is what is tried, and what is listed is what passed.
    let variants = |list: &str| {
        let args = ["devices", "--json", "--gpu-variants", list];
        must_json(dir.path(), "splitrun", &args)["adapters"][0]["variants"].clone()
    };
    let plain = ["sums in workgroup memory", "tiles in floats"];
    assert_eq!(variants("plain"), serde_json::json!(plain));
    let whole = [plain[0], "activations in 8 bits", "tiles of whole numbers"];
    assert_eq!(variants("int8,f16"), serde_json::json!(whole));
}
