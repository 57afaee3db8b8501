//! `calibrate` against a plain computation of the first layer, and its file in the converter.

use std::path::Path;
use std::sync::Arc;

use engine::exec::cpu::{CpuExecutor, Isa};
use engine::measure::{CalibrateOptions, calibrate};
use engine::model::ModelPart;
use engine::text::Tokenizer;
use fixtures::LlamaShape;
use formats::blocks::{BlockType, dequantize_row};
use formats::gguf::{Gguf, GgufSet};
use formats::imatrix::{Imatrix, NORM_QUANTILES};
use integration::{must, must_json, run};

const CTX: usize = 12;
const TEXT: &str = "One row after the other goes through the layers, and each leaves its squares.";

fn shape() -> LlamaShape {
    LlamaShape {
        n_embd: 32,
        n_ff: 64,
        n_layer: 3,
        n_head: 4,
        n_head_kv: 2,
        tied: true,
        matrix_type: BlockType::F32,
        ..LlamaShape::tiny()
    }
}

/// Decoded weights of a file.
struct Weights(Gguf);

impl Weights {
    fn rows(&self, name: &str) -> Vec<Vec<f64>> {
        let t = self.0.tensor(name).unwrap();
        let mut row = vec![0.0; t.row_len()];
        let bytes = self.0.data(t).chunks(t.row_bytes());
        bytes
            .map(|b| {
                dequantize_row(t.block_type, b, &mut row).unwrap();
                row.iter().map(|x| f64::from(*x)).collect()
            })
            .collect()
    }

    fn times(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let w = self.rows(name);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        let product = |x: &Vec<f64>| w.iter().map(|w| dot(w, x)).collect();
        x.iter().map(product).collect()
    }

    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let w = &self.rows(name)[0];
        let one = |x: &Vec<f64>| {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            x.iter().zip(w).map(|(x, w)| x * scale * w).collect()
        };
        x.iter().map(one).collect()
    }
}

fn add(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
    a.iter().zip(b).map(row).collect()
}

fn turn(row: &mut [f64], position: usize, dim: usize) {
    for head in row.chunks_mut(dim) {
        for i in 0..dim / 2 {
            let angle = position as f64 * 10_000_f64.powf(-2.0 * i as f64 / dim as f64);
            let (a, b) = (head[2 * i], head[2 * i + 1]);
            head[2 * i] = a * angle.cos() - b * angle.sin();
            head[2 * i + 1] = a * angle.sin() + b * angle.cos();
        }
    }
}

/// What the four inputs of layer 0 and the cut behind it see in one window.
fn first_layer(w: &Weights, ids: &[u32], shape: &LlamaShape) -> [Vec<Vec<f64>>; 5] {
    let dim = (shape.n_embd / shape.n_head) as usize;
    let group = (shape.n_head / shape.n_head_kv) as usize;
    let table = w.rows("token_embd.weight");
    let x: Vec<Vec<f64>> = ids.iter().map(|i| table[*i as usize].clone()).collect();
    let normed = w.norm("blk.0.attn_norm.weight", &x);
    let [mut q, mut k, mut v] =
        ["q", "k", "v"].map(|n| w.times(&format!("blk.0.attn_{n}.weight"), &normed));
    for p in 0..ids.len() {
        turn(&mut q[p], p, dim);
        turn(&mut k[p], p, dim);
    }
    // The cache holds halves.
    for x in k.iter_mut().chain(&mut v).flatten() {
        *x = half::f16::from_f64(*x).to_f64();
    }
    let mut mixed = vec![vec![0.0; shape.n_embd as usize]; ids.len()];
    for (p, out) in mixed.iter_mut().enumerate() {
        for (h, out) in out.chunks_mut(dim).enumerate() {
            let at = h / group * dim..(h / group + 1) * dim;
            let query = &q[p][h * dim..(h + 1) * dim];
            let score = |t: usize| -> f64 {
                let dot: f64 = k[t][at.clone()].iter().zip(query).map(|(a, b)| a * b).sum();
                (dot / (dim as f64).sqrt()).exp()
            };
            let scores: Vec<f64> = (0..=p).map(score).collect();
            let sum: f64 = scores.iter().sum();
            for (t, s) in scores.iter().enumerate() {
                for (o, v) in out.iter_mut().zip(&v[t][at.clone()]) {
                    *o += s / sum * v;
                }
            }
        }
    }
    let x = add(&x, &w.times("blk.0.attn_output.weight", &mixed));
    let ffn = w.norm("blk.0.ffn_norm.weight", &x);
    let gate = w.times("blk.0.ffn_gate.weight", &ffn);
    let up = w.times("blk.0.ffn_up.weight", &ffn);
    let silu = |(g, u): (&Vec<f64>, &Vec<f64>)| {
        g.iter()
            .zip(u)
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
            .collect()
    };
    let inner: Vec<Vec<f64>> = gate.iter().zip(&up).map(silu).collect();
    let x = add(&x, &w.times("blk.0.ffn_down.weight", &inner));
    [normed, mixed, ffn, inner, x]
}

fn library(path: &Path, cuts: &[usize], threads: usize) -> (Imatrix, Vec<Vec<u32>>) {
    let set = Arc::new(GgufSet::open(path).unwrap());
    let parts: Vec<Arc<CpuExecutor>> = cuts
        .windows(2)
        .map(|c| {
            let part = ModelPart::load(&set, c[0]..c[1]).unwrap();
            Arc::new(CpuExecutor::new(part, threads, Isa::detect()).unwrap())
        })
        .collect();
    let tokenizer = Tokenizer::from_metadata(set.metadata()).unwrap();
    let options = CalibrateOptions {
        ctx: CTX,
        chunks: Some(2),
        dataset: "t".into(),
    };
    let im = calibrate(&parts, &tokenizer, TEXT, &options, &mut |_, _| {}).unwrap();
    let mut ids = tokenizer.encode(TEXT, false);
    ids.insert(0, tokenizer.bos().unwrap());
    let mut windows: Vec<Vec<u32>> = ids.chunks(CTX).take(2).map(<[u32]>::to_vec).collect();
    windows[1][0] = windows[0][0];
    (im, windows)
}

#[track_caller]
fn close(what: &str, got: f32, want: f64) {
    assert!(
        (f64::from(got) - want).abs() <= 1e-4 * want.abs() + 1e-6,
        "{what}: {got}, {want}"
    );
}

#[test]
fn the_sums_are_those_of_a_plain_computation() {
    let dir = tempfile::tempdir().unwrap();
    let (path, shape) = (dir.path().join("m.gguf"), shape());
    shape.write(&path).unwrap();
    let (im, windows) = library(&path, &[0, 3], 2);
    let weights = Weights(Gguf::open(&path).unwrap());
    let seen: Vec<_> = windows
        .iter()
        .map(|w| first_layer(&weights, w, &shape))
        .collect();
    let names: [&[&str]; 4] = [
        &["attn_q", "attn_k", "attn_v"],
        &["attn_output"],
        &["ffn_gate", "ffn_up"],
        &["ffn_down"],
    ];
    for (site, names) in names.iter().enumerate() {
        for name in *names {
            let entry = &im.entries[&format!("blk.0.{name}.weight")];
            assert_eq!(entry.counts, [2.0 * CTX as f32]);
            for (j, got) in entry.sums.iter().enumerate() {
                let rows = seen.iter().flat_map(|s| &s[site]);
                let want = rows.map(|r| r[j] * r[j]).sum();
                close(&format!("{name} {j}"), *got, want);
            }
        }
    }
    let b = im.boundary.as_ref().unwrap();
    assert_eq!((b.width, b.cuts, b.rows), (32, 2, 2 * (CTX as u64 - 1)));
    let rows: Vec<&Vec<f64>> = seen.iter().flat_map(|s| &s[4][1..]).collect();
    for j in 0..32 {
        let mean = rows.iter().map(|r| r[j]).sum::<f64>() / rows.len() as f64;
        let variance = rows.iter().map(|r| (r[j] - mean).powi(2)).sum::<f64>() / rows.len() as f64;
        assert!((f64::from(b.mean[j]) - mean).abs() < 1e-5);
        close("sigma", b.sigma[j], variance.sqrt());
        close(
            "absmax",
            b.absmax[j],
            rows.iter().map(|r| r[j].abs()).fold(0.0, f64::max),
        );
        let first = seen.iter().map(|s| s[4][0][j].abs()).fold(0.0, f64::max);
        close("first", b.first_row_absmax[j], first);
    }
    let mut norms: Vec<f64> = rows
        .iter()
        .map(|r| r.iter().map(|x| x * x).sum::<f64>().sqrt())
        .collect();
    norms.sort_by(f64::total_cmp);
    close("least norm", b.row_norms[0], norms[0]);
    close(
        "largest norm",
        b.row_norms[NORM_QUANTILES.len() - 1],
        norms[norms.len() - 1],
    );
    // Three layers of seven matrices, and the head under the name of the tied embedding.
    assert_eq!(im.entries.len(), 3 * 7 + 1);
    assert!(im.entries.contains_key("token_embd.weight"));
}

#[test]
fn halves_and_threads_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    shape().write(&path).unwrap();
    let whole = library(&path, &[0, 3], 1).0;
    assert_eq!(whole, library(&path, &[0, 3], 3).0);
    assert_eq!(whole, library(&path, &[0, 1, 3], 2).0);
}

#[test]
fn from_one_program_to_the_other() {
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
        &[&args[..], &["--chunks", "3", "--json"]].concat(),
    );
    assert_eq!(report["tensors"], 4 * 7 + 1);
    assert_eq!(
        (&report["cuts"], &report["tokens"]),
        (&3.into(), &192.into())
    );
    // An older one may be replaced, a model not.
    must(dir, "splitrun", &args);
    let mut onto_model = args;
    onto_model[6] = "m.gguf";
    let refused = run(dir, "splitrun", &onto_model);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no importance matrix"));

    let cut = |extra: &[&str]| {
        let base = [
            "m.gguf",
            "--split",
            "2",
            "--edge-bits",
            "3",
            "--force",
            "--json",
        ];
        must_json(dir, "splitconv", &[&base[..], extra].concat())
    };
    let plain = cut(&["--recipe", "flat"]);
    let weighted = cut(&["--recipe", "flat", "--imatrix", "im.gguf"]);
    assert_ne!(plain["pair_id"], weighted["pair_id"]);
    assert_eq!(
        plain["edge_budget_bits_per_weight"],
        weighted["edge_budget_bits_per_weight"]
    );
    let eval = [
        "eval",
        "--text",
        "t.txt",
        "-c",
        "64",
        "--chunks",
        "4",
        "--against",
        "m.gguf",
        "--json",
    ];
    let against = must_json(dir, "splitrun", &eval);
    assert!(against["kl_mean"].as_f64().unwrap() > 0.0);
    let itself = must_json(dir, "splitrun", &[&eval[..], &["-m", "m.gguf"]].concat());
    assert_eq!(itself["kl_max"], 0.0);
    assert_eq!(itself["top1_agreement"], 1.0);
}
