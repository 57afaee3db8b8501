//! Is the harm that `splitconv plan` predicts true? Ten plans taken at random from its tables are
//! converted and measured on a text: divergence of the weights from the source (`eval --against`)
//! and of the codec (`eval --codec`), whose sum is compared with the prediction. Plans are made for
//! the perplexity that the model as it is has on the text (`eval` as well).
//!
//! `cargo run --release -p integration --example harm_check -- MODEL.gguf SENSITIVITY.json TEXT [CHUNKS [IMATRIX [SEED]]]`
//!
//! `-` as SENSITIVITY: the prior; as IMATRIX: none. Exit code 1 when a prediction is off by more than a factor of 1.5.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value as Json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The factor that a prediction may be off.
const FACTOR: f64 = 1.5;
const PLANS: usize = 10;
/// Below this both are nothing, as they are printed, and a prediction of nothing is right.
const NOTHING: f64 = 0.000_05;
/// Which ten, unless another number is given.
const SEED: u64 = 2024;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (&[model, sensitivity, text], more) = words
        .split_first_chunk::<3>()
        .filter(|(_, more)| more.len() <= 3)
        .ok_or("usage: harm_check MODEL.gguf SENSITIVITY.json TEXT [CHUNKS [IMATRIX [SEED]]]")?;
    let chunks = more.first().copied().unwrap_or("4");
    let imatrix = more.get(1).copied().filter(|im| *im != "-");
    let seed = more.get(2).map_or(Ok(SEED), |s| s.parse())?;
    let dir = std::env::temp_dir().join(format!("harm_check-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let plain = [
        "eval", "--model", model, "--text", text, "--chunks", chunks, "--json",
    ];
    let perplexity = json("splitrun", &plain)?["perplexity"]
        .as_f64()
        .ok_or("no perplexity")?
        .to_string();
    println!("the model's own perplexity on the text: {perplexity}");
    let mut random = Random(seed);
    let mut seen: Vec<Json> = Vec::new();
    let (mut good, mut tries) = (true, 0);
    println!(
        "plan         codec                          predicted  measured = weights + codec  factor"
    );
    while seen.len() < PLANS && tries < 100 {
        tries += 1;
        let kl = format!(
            "{:.3}",
            0.01 * 50_f64.powf(random.below(1000) as f64 / 1000.0)
        );
        let objective = ["speed", "quality", "server-load"][random.below(3)];
        let mut plan = vec![
            "plan", model, "--json", "--uplink", "20Mbit/s", "--max-kl", &kl,
        ];
        plan.extend(["--objective", objective]);
        if sensitivity != "-" {
            plan.extend(["--sensitivity", sensitivity, "--perplexity", &perplexity]);
        }
        if let Some(im) = imatrix {
            plan.extend(["--imatrix", im]);
        }
        let Ok(answer) = json("splitconv", &plan) else {
            // Nothing may be as true as that.
            continue;
        };
        let rows = answer["pareto"].as_array().ok_or("no rows")?;
        let row = &rows[random.below(rows.len())];
        if seen.contains(&row["argv"]) {
            continue;
        }
        seen.push(row["argv"].clone());
        let words = row["argv"].as_array().ok_or("no argv")?;
        let mut argv: Vec<&str> = words.iter().filter_map(Json::as_str).collect();
        let pair = dir.join("pair");
        let folder = pair.to_str().ok_or("a path that is no text")?;
        argv.extend(["--out", folder, "--json"]);
        json("splitconv", &argv)?;
        let codec = row["codec"].as_str().ok_or("no codec")?;
        let eval = [
            "eval", "--model", folder, "--text", text, "--chunks", chunks, "--json",
        ];
        let of = |more: &[&str]| -> Result<f64> {
            let done = json("splitrun", &[&eval[..], more].concat())?;
            done["kl_mean"].as_f64().ok_or_else(|| "no kl_mean".into())
        };
        let weights = of(&["--against", model])?;
        let boundary = of(&["--codec", codec])?;
        std::fs::remove_dir_all(Path::new(folder))?;
        let measured = weights + boundary;
        let predicted = row["kl"].as_f64().ok_or("no kl")?;
        let factor = if predicted.max(measured) < NOTHING {
            1.0
        } else {
            predicted / measured
        };
        good &= (1.0 / FACTOR..=FACTOR).contains(&factor);
        println!(
            "{:12} {codec:30} {predicted:9.4}  {measured:8.4} = {weights:7.4} + {boundary:.4}  {factor:6.2}",
            format!(
                "s{}e{}c{}",
                row["split"], row["edge_bits"], row["cloud_bits"]
            )
        );
    }
    std::fs::remove_dir_all(&dir)?;
    if good && seen.len() == PLANS {
        return Ok(());
    }
    std::process::exit(1)
}

/// A generator of the kind that every textbook has.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// Runs a program of this build and parses the object that it prints.
fn json(name: &str, args: &[&str]) -> Result<Json> {
    let mut folder = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("."));
    folder.pop();
    folder.pop();
    let out = Command::new(folder.join(name))
        .args(args)
        .env("SPLITRUN_DEVICE", "cpu")
        .stdin(Stdio::null())
        .output()?;
    if !out.status.success() {
        return Err(format!("{name} {args:?}: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    Ok(serde_json::from_slice(&out.stdout)?)
}
