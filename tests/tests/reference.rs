//! The engine against figures from another program: logits and boundary rows of SmolLM2, and
//! bit-exactness across chunk sizes, thread counts, instruction sets and the cut.

use std::sync::Arc;

use engine::cache::KvCache;
use engine::exec::cpu::{Activations, CpuExecutor, Isa};
use engine::exec::{Executor, Sequence};
use engine::model::ModelPart;
use formats::gguf::GgufSet;
use formats::model::KvType;

fn set() -> Arc<GgufSet> {
    Arc::new(GgufSet::open(&fixtures::smollm2_gguf()).unwrap())
}

fn half(
    set: &Arc<GgufSet>,
    layers: std::ops::Range<usize>,
    threads: usize,
    isa: Isa,
) -> CpuExecutor {
    CpuExecutor::new(ModelPart::load(set, layers).unwrap(), threads, isa).unwrap()
}

fn ids(case: &serde_json::Value) -> Vec<u32> {
    case["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

/// Log-probabilities of the last row of `logits`.
fn logprobs(logits: &[f32], vocab: usize) -> Vec<f64> {
    let last = &logits[logits.len() - vocab..];
    let max = last.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = last.iter().map(|l| f64::from(l - max).exp()).sum();
    last.iter().map(|l| f64::from(l - max) - sum.ln()).collect()
}

#[test]
fn smollm2_matches_a_float32_forward_pass() {
    let set = set();
    let (front, back) = (
        half(&set, 0..10, 2, Isa::detect()),
        half(&set, 10..30, 2, Isa::detect()),
    );
    let golden = fixtures::golden("reference.json");
    for case in golden["cases"].as_array().unwrap() {
        let ids = ids(case);
        let (mut rows, mut logits) = (Vec::new(), Vec::new());
        front.embed(&ids, &mut rows).unwrap();
        front
            .forward(&mut front.new_cache(64).unwrap(), &mut rows)
            .unwrap();
        let width = front.hparams().n_embd;
        for row in case["boundary_after_layer_10"].as_array().unwrap() {
            let r = row["row"].as_u64().unwrap() as usize;
            let x = &rows[r * width..(r + 1) * width];
            let l2 = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let want = row["l2"].as_f64().unwrap();
            assert!(
                (l2 / want - 1.0).abs() < 0.02,
                "row {r}: norm {l2}, expected {want}"
            );
        }
        back.forward(&mut back.new_cache(64).unwrap(), &mut rows)
            .unwrap();
        back.logits(&rows, &mut logits).unwrap();
        let lp = logprobs(&logits, back.hparams().n_vocab);
        let top = (0..lp.len())
            .max_by(|a, b| lp[*a].total_cmp(&lp[*b]))
            .unwrap();
        let next = case["next"].as_array().unwrap();
        assert_eq!(
            Some(top as u64),
            next[0]["id"].as_u64(),
            "{}",
            case["prompt"]
        );
        for want in &next[..3] {
            let got = lp[want["id"].as_u64().unwrap() as usize];
            let want = want["logprob"].as_f64().unwrap();
            assert!(
                (got - want).abs() < 0.2,
                "{}: {got}, expected {want}",
                case["prompt"]
            );
        }
    }
}

/// Logits of every position, the prompt cut into chunks.
fn run(parts: &[CpuExecutor], ids: &[u32], chunk: usize) -> Vec<u32> {
    let mut caches: Vec<_> = parts
        .iter()
        .map(|p| p.new_cache(ids.len()).unwrap())
        .collect();
    let (mut rows, mut logits, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for ids in ids.chunks(chunk) {
        parts[0].embed(ids, &mut rows).unwrap();
        for (p, c) in parts.iter().zip(&mut caches) {
            p.forward(c, &mut rows).unwrap();
        }
        parts[parts.len() - 1].logits(&rows, &mut logits).unwrap();
        all.extend(logits.iter().map(|v| v.to_bits()));
    }
    all
}

/// Both ways to multiply: what holds for one holds for the other.
const BOTH: [Activations; 2] = [Activations::F32, Activations::Int8];

#[test]
fn bits_do_not_depend_on_chunks_threads_or_the_cut() {
    let set = set();
    let ids: Vec<u32> = (0..150).map(|i| (i * 7919 + 13) % 49_152).collect();
    for activations in BOTH {
        let half = |layers, threads| {
            half(&set, layers, threads, Isa::detect()).with_activations(activations)
        };
        let whole = [half(0..30, 1)];
        let want = run(&whole, &ids, ids.len());
        for chunk in [1, 7, 64] {
            assert!(
                run(&whole, &ids, chunk) == want,
                "{activations:?}: chunks of {chunk} differ"
            );
        }
        for threads in [2, 3, 5] {
            let mut cut = [half(0..10, threads), half(10..30, threads)];
            cut[1].repack(0).unwrap();
            assert!(
                run(&cut, &ids, 64) == want,
                "{activations:?}: {threads} threads, cut, differ"
            );
        }
    }
}

/// Bits of the logits along which sequences with `prompts` decode greedily, `steps` passes each. The
/// sequences begin one pass after another and go together in groups of `group`.
fn greedy(
    exec: &CpuExecutor,
    prompts: &[Vec<u32>],
    steps: usize,
    group: usize,
) -> Vec<Vec<(u32, Vec<u32>)>> {
    let vocab = exec.hparams().n_vocab;
    let width = exec.hparams().n_embd;
    let mut caches: Vec<_> = prompts
        .iter()
        .map(|p| exec.new_cache(p.len() + steps).unwrap())
        .collect();
    let mut out = vec![Vec::new(); prompts.len()];
    for step in 0..steps + prompts.len() {
        let mut active: Vec<_> = caches
            .iter_mut()
            .zip(&mut out)
            .zip(prompts)
            .enumerate()
            .filter(|(s, ((_, out), _))| *s <= step && out.len() < steps)
            .map(|(_, sequence)| sequence)
            .collect();
        for group in active.chunks_mut(group) {
            let mut rows = vec![Vec::new(); group.len()];
            for (((_, out), prompt), rows) in group.iter().zip(&mut rows) {
                let last = out.last().map(|(id, _)| [*id]);
                let ids = last.as_ref().map_or(&prompt[..], |id| id);
                exec.embed(ids, rows).unwrap();
            }
            let mut batch: Vec<_> = group
                .iter_mut()
                .zip(&mut rows)
                .map(|(((cache, _), _), rows)| Sequence { cache, rows })
                .collect();
            exec.forward_batch(&mut batch).unwrap();
            let last: Vec<f32> = rows
                .iter()
                .flat_map(|r| r[r.len() - width..].to_vec())
                .collect();
            let mut logits = Vec::new();
            exec.logits(&last, &mut logits).unwrap();
            for (((_, out), _), logits) in group.iter_mut().zip(logits.chunks(vocab)) {
                let id = engine::text::argmax(logits);
                out.push((id, logits.iter().map(|v| v.to_bits()).collect()));
            }
        }
    }
    out
}

#[test]
fn a_sequence_does_not_feel_its_neighbours() {
    let set = set();
    let prompts: Vec<Vec<u32>> = [3, 1, 90, 50, 7]
        .into_iter()
        .map(|n| (0..n).map(|i| (i * 7919 + n * 31) % 49_152).collect())
        .collect();
    for activations in BOTH {
        let exec =
            |threads| half(&set, 0..30, threads, Isa::detect()).with_activations(activations);
        let want = greedy(&exec(1), &prompts, 6, 1);
        for (threads, group) in [(2, 5), (1, 2), (3, 3)] {
            let mut exec = exec(threads);
            exec.repack(0).unwrap();
            assert!(
                greedy(&exec, &prompts, 6, group) == want,
                "{activations:?}: {threads} threads, {group} together differ"
            );
        }
    }
}

#[test]
fn a_batch_with_a_sequence_that_does_not_fit_changes_nothing() {
    let set = set();
    let exec = half(&set, 0..2, 1, Isa::detect());
    let (mut roomy, mut full) = (exec.new_cache(8).unwrap(), exec.new_cache(1).unwrap());
    let (mut two, mut none) = (Vec::new(), Vec::new());
    exec.embed(&[5, 6], &mut two).unwrap();
    let before = two.clone();
    let mut again = two.clone();
    let mut batch = |cache: &mut KvCache, rows: &mut [f32]| {
        let mut idle = exec.new_cache(1).unwrap();
        exec.forward_batch(&mut [
            Sequence {
                cache: &mut roomy,
                rows: &mut two,
            },
            Sequence {
                cache: &mut idle,
                rows: &mut none,
            },
            Sequence { cache, rows },
        ])
    };
    batch(&mut full, &mut again).unwrap_err();
    let mut other = exec.new_cache(2).unwrap();
    batch(&mut other, &mut again).unwrap();
    assert_eq!((roomy.len(), full.len(), other.len()), (2, 0, 2));
    assert!(two == again && two != before);
}

#[test]
fn nor_with_keys_and_values_in_fewer_bits() {
    let set = set();
    let ids: Vec<u32> = (0..150).map(|i| (i * 7919 + 13) % 49_152).collect();
    for kv_type in [KvType::Q8_0, KvType::Q4_0] {
        for activations in BOTH {
            let half = |layers, threads| {
                half(&set, layers, threads, Isa::detect())
                    .with_activations(activations)
                    .with_kv_type(kv_type)
                    .unwrap()
            };
            let want = run(&[half(0..30, 1)], &ids, ids.len());
            let cut = [half(0..10, 3), half(10..30, 2)];
            let got = run(&cut, &ids, 7);
            assert!(got == want, "{activations:?} {kv_type}: cut, in chunks");
            // What was taken back leaves nothing behind.
            let mut caches = cut.each_ref().map(|p| p.new_cache(200).unwrap());
            let mut logits = Vec::new();
            for (from, to) in [(0, 60), (60, 90), (35, 150)] {
                let mut rows = Vec::new();
                cut[0].embed(&ids[from..to], &mut rows).unwrap();
                for (p, c) in cut.iter().zip(&mut caches) {
                    c.truncate(from);
                    p.forward(c, &mut rows).unwrap();
                }
                cut[1].logits(&rows, &mut logits).unwrap();
            }
            let got: Vec<u32> = logits.iter().map(|v| v.to_bits()).collect();
            assert!(
                want.ends_with(&got),
                "{activations:?} {kv_type}: after a rollback"
            );
        }
    }
}

#[test]
fn scalar_and_vector_kernels_give_the_same_bits() {
    let set = set();
    let ids = [504, 3575, 282, 4649, 314, 9, 11, 12, 13];
    for activations in BOTH {
        let half = |isa| half(&set, 0..30, 2, isa).with_activations(activations);
        let want = run(&[half(Isa::SCALAR)], &ids, ids.len());
        for isa in Isa::available() {
            let mut one = [half(isa)];
            assert!(run(&one, &ids, 4) == want, "{activations:?}: {isa} differs");
            let laid = one[0].repack(0).unwrap();
            if activations == Activations::Int8 && isa != Isa::SCALAR {
                // All but norms: the file has little else.
                assert!(laid > 80 << 20, "{isa}: {laid} bytes in tiles");
            } else {
                assert_eq!(laid, 0);
            }
            assert!(
                run(&one, &ids, 4) == want,
                "{activations:?}: {isa} in tiles differs"
            );
        }
    }
}
