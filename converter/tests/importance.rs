//! Importance matrices and uneven recipes: budgets hold, weighted errors fall, and what does not
//! fit is named.

mod common;

use common::{Bench, cloud, edge, weights};
use converter::importance::Importance;
use converter::recipe::{Bits, Plan, Request, Spending, plan};
use converter::source::Source;
use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::Value;
use formats::imatrix::{Entry, Imatrix, KINDS, Sensitivity};
use formats::pair::HalfRole;

/// Importances of all matrices of `shape`: a few columns a hundred times the others.
fn importances(shape: &LlamaShape) -> Imatrix {
    let mut im = Imatrix::default();
    for (t, decl) in shape.tensors().iter().enumerate() {
        if decl.dims.len() < 2 || decl.name == "token_embd.weight" {
            continue;
        }
        let column = |j: u64| match (j * 31 + t as u64) % 17 {
            0 => 100.0,
            n => 0.2 + n as f32 * 0.1,
        };
        let entry = Entry {
            sums: (0..decl.dims[0]).map(|j| column(j) * 8.0).collect(),
            counts: vec![8.0],
        };
        im.entries.insert(decl.name.clone(), entry);
    }
    im
}

fn bench(shape: &LlamaShape) -> Bench {
    let bench = Bench::new(shape);
    let im = importances(shape).to_gguf().unwrap();
    std::fs::write(bench.path("im.gguf"), im).unwrap();
    bench
}

fn request(bits: u32, spending: Spending) -> Request {
    Request {
        effort: formats::blocks::Effort::Normal,
        split: 2,
        edge_bits: Bits::new(bits).unwrap(),
        cloud_bits: Bits::new(8).unwrap(),
        edge_type: None,
        cloud_type: None,
        tensor_types: Vec::new(),
        spending,
        edge_budget: None,
    }
}

fn edge_bytes(plan: &Plan) -> u64 {
    let layers = plan.half(HalfRole::Edge).filter(|t| t.layer_matrix);
    layers.map(|t| t.bytes).sum()
}

fn weights_of(plan: &Plan) -> f64 {
    let layers = plan.half(HalfRole::Edge).filter(|t| t.layer_matrix);
    layers.map(|t| t.weights() as f64).sum()
}

#[test]
fn budgets_hold_and_equal_questions_get_equal_answers() {
    for (n_embd, n_ff, matrix_type) in [
        (256, 512, BlockType::F16),
        (256, 512, BlockType::Q4_K),
        (64, 256, BlockType::F16),
        (96, 160, BlockType::F32),
        (256, 320, BlockType::Q5_1),
    ] {
        let matrix_type = if n_ff % 256 > 0 || n_embd % 256 > 0 {
            BlockType::F16
        } else {
            matrix_type
        };
        let shape = LlamaShape {
            n_layer: 4,
            n_embd,
            n_ff,
            matrix_type,
            ..LlamaShape::tiny()
        };
        let bench = bench(&shape);
        let source = Source::open(&bench.path("m.gguf")).unwrap();
        let importance = Importance::open(&bench.path("im.gguf")).unwrap();
        for bits in [2, 3, 5] {
            for importance in [None, Some(&importance)] {
                let of = |spending, threads| {
                    plan(&source, &request(bits, spending), importance, threads).unwrap()
                };
                let (flat, auto) = (of(Spending::Flat, 1), of(Spending::Auto, 1));
                // Flat copies what costs less already, so it may spend less than the budget.
                let allowed: u64 = (flat.half(HalfRole::Edge).filter(|t| t.layer_matrix))
                    .map(|t| {
                        let ty = Bits::new(bits).unwrap().for_rows(t.from, t.dims[0]);
                        t.weights() / ty.block_len() as u64 * ty.block_bytes() as u64
                    })
                    .sum();
                let spent = edge_bytes(&auto);
                assert!(
                    spent <= allowed,
                    "{n_embd}/{n_ff} at {bits}: {spent} of {allowed}"
                );
                let again = of(Spending::Auto, 3);
                assert_eq!(auto.tensors, again.tensors);
                for t in auto.half(HalfRole::Edge).filter(|t| t.layer_matrix) {
                    assert!(
                        t.to.bits_per_weight() <= t.from.bits_per_weight(),
                        "{}",
                        t.name
                    );
                    assert_eq!(t.encode, t.to != t.from, "{}", t.name);
                }
            }
        }
    }
}

#[test]
fn a_budget_in_figures() {
    let shape = LlamaShape {
        n_layer: 4,
        n_embd: 256,
        n_ff: 768,
        ..LlamaShape::tiny()
    };
    let bench = bench(&shape);
    let mut last = 0.0;
    for budget in ["2.7", "3.1", "3.6", "4.4", "5.9"] {
        let args = [
            "m.gguf",
            "--split",
            "2",
            "--edge-budget",
            budget,
            "--dry-run",
            "--json",
        ];
        let report = bench.run(&args).ok().json();
        let spent = report["edge_bits_per_weight"].as_f64().unwrap();
        let allowed: f64 = budget.parse().unwrap();
        assert_eq!(
            report["edge_budget_bits_per_weight"].as_f64(),
            Some(allowed)
        );
        assert!(
            spent <= allowed && spent > allowed - 0.4 && spent > last,
            "{budget}: {spent}"
        );
        last = spent;
        let types = report["edge_layer_types"].as_object().unwrap();
        let n: u64 = types.values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(n, 2 * 7);
    }
    for budget in ["0", "33", "x", "NaN"] {
        let args = ["m.gguf", "--split", "2", "--edge-budget", budget];
        assert_eq!(bench.run(&args).code, 2, "{budget}");
    }
}

#[test]
fn a_named_type_is_not_touched_and_not_counted() {
    let shape = LlamaShape {
        n_layer: 4,
        n_embd: 256,
        ..LlamaShape::tiny()
    };
    let bench = bench(&shape);
    let args = [
        "m.gguf",
        "--split",
        "2",
        "--recipe",
        "auto",
        "--edge-bits",
        "3",
        "--tensor-type",
        "blk.0.*=Q8_0",
        "--dry-run",
        "--json",
    ];
    let report = bench.run(&args).ok().json();
    let tensors = report["tensors"].as_array().unwrap();
    let (mut bytes, mut weights) = (0, 0);
    for t in tensors
        .iter()
        .filter(|t| t["role"] == "edge" && t["shape"].as_array().unwrap().len() > 1)
    {
        let name = t["name"].as_str().unwrap();
        if name.starts_with("blk.0.") {
            assert_eq!(t["to"], "Q8_0");
        } else if name.starts_with("blk.1.") {
            bytes += t["bytes"].as_u64().unwrap();
            weights += t["shape"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d.as_u64().unwrap())
                .product::<u64>();
        }
    }
    assert!(
        bytes * 8 * 256 <= weights * 110 * 8,
        "the others have their own budget"
    );
}

/// One matrix a thousand times as sensitive as the others, wherever it stands.
#[test]
fn the_sensitive_matrix_gets_the_bits() {
    let shape = LlamaShape {
        n_layer: 4,
        n_embd: 256,
        ..LlamaShape::tiny()
    };
    let bench = bench(&shape);
    let source = Source::open(&bench.path("m.gguf")).unwrap();
    let chosen = |file: &str| {
        let importance = Importance::open(&bench.path(file)).unwrap();
        plan(&source, &request(3, Spending::Auto), Some(&importance), 2).unwrap()
    };
    let by_factors = chosen("im.gguf");
    assert!(by_factors.notes[0].contains("stated factors"));
    for (layer, kind) in [(0, 0), (1, 2), (0, 5), (1, 6)] {
        let mut im = importances(&shape);
        let mut layers = vec![[0.5; KINDS.len()]; 4];
        layers[layer][kind] = 500.0;
        im.sensitivity = Some(Sensitivity { tokens: 77, layers });
        std::fs::write(bench.path("sens.gguf"), im.to_gguf().unwrap()).unwrap();
        let plan = chosen("sens.gguf");
        let note = &plan.notes[0];
        assert!(
            note.contains("edge: the bits are spent as the sensitivities in")
                && note.contains("sens.gguf")
                && note.contains("77 tokens"),
            "{note}"
        );
        assert!(edge_bytes(&plan) <= 3.4375_f64.mul_add(weights_of(&plan) / 8.0, 0.5) as u64);
        let name = format!("blk.{layer}.{}.weight", KINDS[kind]);
        for t in plan.half(HalfRole::Edge).filter(|t| t.layer_matrix) {
            let bits = t.to.bits_per_weight();
            assert!(
                (t.name == name) == (bits > 6.0),
                "{name} matters, {} has {bits}",
                t.name
            );
        }
    }
    // Of another model.
    let mut im = importances(&shape);
    im.sensitivity = Some(Sensitivity {
        tokens: 1,
        layers: vec![[1.0; KINDS.len()]; 5],
    });
    std::fs::write(bench.path("five.gguf"), im.to_gguf().unwrap()).unwrap();
    let args = ["m.gguf", "--split", "2", "--imatrix", "five.gguf"];
    bench
        .run(&args)
        .fails_with(&["five.gguf", "5 layers", "has 4"]);
}

#[test]
fn weighted_errors_fall() {
    let shape = LlamaShape {
        n_layer: 4,
        n_embd: 256,
        ..LlamaShape::tiny()
    };
    let bench = bench(&shape);
    let im = importances(&shape);
    let source = bench.open("m.gguf");
    for bits in ["2", "3", "4", "5"] {
        let error = |extra: &[&str]| {
            let args = [
                "m.gguf",
                "--split",
                "2",
                "--edge-bits",
                bits,
                "--recipe",
                "flat",
                "--force",
            ];
            bench.run(&[&args[..], extra].concat()).ok();
            let half = bench.open(&edge(2, &format!("e{bits}c8")));
            let mut sum = 0.0;
            for t in half
                .tensors()
                .iter()
                .filter(|t| t.name.starts_with("blk.") && t.dims.len() > 1)
            {
                let columns = im.entries[&t.name].mean().unwrap();
                let (a, b) = (weights(&source, &t.name), weights(&half, &t.name));
                for (i, (a, b)) in a.iter().zip(&b).enumerate() {
                    sum += f64::from(columns[i % columns.len()] * (a - b) * (a - b));
                }
            }
            sum
        };
        let (without, with) = (error(&[]), error(&["--imatrix", "im.gguf"]));
        assert!(
            with < 0.8 * without,
            "{bits} bits: {with}, without {without}"
        );
    }
}

#[test]
fn the_pair_says_which_importances_and_any_file_form_gives_the_same() {
    let shape = LlamaShape {
        n_layer: 4,
        n_embd: 256,
        ..LlamaShape::tiny()
    };
    let bench = bench(&shape);
    let run = |extra: &[&str]| {
        let args = [
            "m.gguf",
            "--split",
            "2",
            "--edge-bits",
            "3",
            "--force",
            "--json",
        ];
        bench.run(&[&args[..], extra].concat()).ok().json()
    };
    let plain = run(&[]);
    let none = bench.open(&edge(2, "e3c8"));
    assert!(none.metadata().get("splitconv.imatrix_digest").is_none());
    let with = run(&["--imatrix", "im.gguf"]);
    assert_ne!(plain["pair_id"], with["pair_id"]);
    for name in [edge(2, "e3c8"), cloud(2, "e3c8")] {
        let half = bench.open(&name);
        let digest = half
            .metadata()
            .get("splitconv.imatrix_digest")
            .and_then(Value::as_str);
        assert_eq!(digest, with["imatrix_digest"].as_str());
        bench.run(&["verify", &name]).ok();
    }
    // The older form: counts of 8, so that no digit is lost.
    let im = importances(&shape);
    let mut dat = (im.entries.len() as i32).to_le_bytes().to_vec();
    for (name, e) in &im.entries {
        dat.extend((name.len() as i32).to_le_bytes());
        dat.extend(name.as_bytes());
        dat.extend(8_i32.to_le_bytes());
        dat.extend((e.sums.len() as i32).to_le_bytes());
        e.sums.iter().for_each(|s| dat.extend(s.to_le_bytes()));
    }
    std::fs::write(bench.path("im.dat"), dat).unwrap();
    assert_eq!(run(&["--imatrix", "im.dat"])["pair_id"], with["pair_id"]);
}

#[test]
fn what_does_not_fit_is_named() {
    let shape = LlamaShape {
        n_layer: 4,
        n_embd: 256,
        ..LlamaShape::tiny()
    };
    let bench = bench(&shape);
    let run = |file: &str| {
        bench.run(&[
            "m.gguf",
            "--split",
            "2",
            "--edge-bits",
            "3",
            "--imatrix",
            file,
            "--dry-run",
        ])
    };
    let mut im = importances(&shape);
    im.entries
        .get_mut("blk.1.ffn_down.weight")
        .unwrap()
        .sums
        .pop();
    std::fs::write(bench.path("short.gguf"), im.to_gguf().unwrap()).unwrap();
    run("short.gguf").fails_with(&["short.gguf", "blk.1.ffn_down.weight", "255", "256"]);
    let mut im = importances(&shape);
    im.entries.remove("blk.1.ffn_down.weight");
    im.entries.remove("blk.0.attn_q.weight");
    std::fs::write(bench.path("holes.gguf"), im.to_gguf().unwrap()).unwrap();
    let said = run("holes.gguf").ok().stderr;
    assert!(
        said.contains("says nothing about 2 tensors, `blk.0.attn_q.weight`"),
        "{said}"
    );
    run("m.gguf").fails_with(&["m.gguf", "not an importance matrix"]);
    run("absent.gguf").fails_with(&["absent.gguf"]);
    std::fs::write(bench.path("text"), "no importances here").unwrap();
    run("text").fails_with(&["text", "neither a GGUF"]);
}
