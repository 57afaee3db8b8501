//! `cargo xtask bench NAME`: a definition of `benches/`, beside llama-bench if its path is given.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fixtures::LlamaShape;
use fixtures::fetch::SMOLLM2;
use serde_json::{Value, json};

use crate::error::Failure;
use crate::process::{self, Profile, Programs, Workspace, number, say};

/// How long one run may take.
const DEADLINE: Duration = Duration::from_mins(10);

/// What to run.
pub(crate) struct Options<'a> {
    /// `benches/NAME.json`.
    pub(crate) name: &'a str,
    /// llama-bench, to run in turn with ours.
    pub(crate) peer: Option<&'a str>,
    /// Only models whose name contains this.
    pub(crate) only: Option<&'a str>,
    /// Where to keep the result: a table, or with a name that ends in `.json` figures, beside those
    /// that other commands have left there.
    pub(crate) save: Option<&'a str>,
}

/// Tokens per second of each round: prompt, decoding.
#[derive(Default)]
struct Speeds {
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

/// A model at a number of threads.
#[derive(Default)]
struct Row {
    ours: Speeds,
    peer: Speeds,
    /// Share of the memory's speed while decoding.
    of_memory: Vec<f64>,
    /// What the peer calls itself.
    peer_build: Option<String>,
}

/// Measures and prints Markdown.
pub(crate) fn run(workspace: &Workspace, options: &Options<'_>) -> Result<(), Failure> {
    let file = workspace
        .root
        .join(format!("benches/{}.json", options.name));
    let text = fs::read_to_string(&file).map_err(file_error(&file))?;
    let definition: Value =
        serde_json::from_str(&text).map_err(|e| wrong(&file, &e.to_string()))?;
    let from = file.display().to_string();
    let rounds = number(&definition, "rounds", &from)? as usize;
    let list = |key: &str| {
        definition[key]
            .as_array()
            .ok_or_else(|| wrong(&file, &format!("no list `{key}`")))
    };
    let threads: Vec<String> = list("threads")?.iter().map(Value::to_string).collect();
    let programs = workspace.build(Profile::Release)?;
    let folder = programs.path(&programs.folder("bench")?);

    let mut table = String::from(
        "| model | threads | prompt tokens/s | llama.cpp | ratio | decoded tokens/s | llama.cpp | ratio | of the memory's speed |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut figures = Vec::new();
    for model in list("models")? {
        let name = model["name"].as_str().unwrap_or_default();
        if options.only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let path = model_file(model, &folder, &file)?;
        let tokens = |key: &str| number(model, key, &from).map(|n| n as usize);
        let (prompt, decode) = (tokens("prompt")?, tokens("decode")?);
        let mut rows: BTreeMap<usize, Row> = BTreeMap::new();
        // In turn, so that a drift of the machine meets all alike.
        for _ in 0..rounds {
            for (i, threads) in threads.iter().enumerate() {
                let row = rows.entry(i).or_default();
                ours(&programs, &path, [prompt, decode], threads, row)?;
                if let Some(peer) = options.peer {
                    theirs(peer, &path, [prompt, decode], threads, row)?;
                }
            }
        }
        for (i, row) in &mut rows {
            figures.push(as_json(name, &threads[*i], [prompt, decode], row));
            let name = format!("{name}, {prompt} and {decode} tokens");
            table.push_str(&line(&name, &threads[*i], row));
        }
    }
    print!("{table}");
    if let Some(save) = options.save {
        let path = workspace.root.join(save);
        let mut command = format!("cargo xtask bench {}", options.name);
        for (option, value) in [
            ("--peer", options.peer.map(|_| "LLAMA_BENCH")),
            ("--only", options.only),
        ] {
            if let Some(value) = value {
                let _ = write!(command, " {option} {value}");
            }
        }
        let text = if path.extension().is_some_and(|e| e == "json") {
            let run = json!({
                "command": command,
                "date": today(),
                "machine": machine(),
                "build": build(workspace),
                "rounds": rounds,
                "rows": figures,
            });
            with_others(&path, run)?
        } else {
            format!(
                "{}\n\n`{command}`: medians of {rounds} rounds in turn.\n\n{table}",
                machine(),
            )
        };
        fs::write(&path, text).map_err(file_error(&path))?;
    }
    Ok(())
}

/// The runs that `path` holds already, with `run` in place of one of the same command.
fn with_others(path: &Path, run: Value) -> Result<String, Failure> {
    let mut all = match fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|mut v| v["runs"].as_array_mut().map(std::mem::take))
            .ok_or_else(|| {
                wrong(
                    path,
                    "no results of an earlier run; give --save another name",
                )
            })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(file_error(path)(e)),
    };
    all.retain(|other| other["command"] != run["command"]);
    all.push(run);
    Ok(format!("{:#}\n", json!({ "runs": all })))
}

/// Medians of a row, and ratios of ours to the peer's.
fn as_json(name: &str, threads: &str, [prompt, decode]: [usize; 2], row: &mut Row) -> Value {
    let one = |what: &str, ours: &mut [f64], peer: &mut [f64]| {
        let (ours, peer) = (median(ours), median(peer));
        let ratio = ours.zip(peer).map(|(a, b)| a / b);
        [
            (format!("{what}_tokens_per_s"), json!(ours)),
            (format!("peer_{what}_tokens_per_s"), json!(peer)),
            (format!("{what}_ratio"), json!(ratio)),
        ]
    };
    let mut fields = serde_json::Map::new();
    fields.extend(one("prefill", &mut row.ours.prefill, &mut row.peer.prefill));
    fields.extend(one("decode", &mut row.ours.decode, &mut row.peer.decode));
    fields.insert("model".into(), json!(name));
    fields.insert("threads".into(), json!(threads.parse::<u32>().ok()));
    fields.insert("prompt_tokens".into(), json!(prompt));
    fields.insert("decode_tokens".into(), json!(decode));
    let share = json!(median(&mut row.of_memory));
    fields.insert("decode_of_memory".into(), share);
    fields.insert("peer_build".into(), json!(row.peer_build));
    Value::Object(fields)
}

/// The commit that was built, as far as git tells.
fn build(workspace: &Workspace) -> String {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(args).current_dir(&workspace.root);
        let out = command.output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]);
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match (commit, changed) {
        (Some(commit), Some(changed)) if changed.is_empty() => commit,
        (Some(commit), _) => format!("{commit} and changes"),
        _ => "unknown".into(),
    }
}

/// The date in UTC, as `2026-11-25`.
pub(crate) fn today() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    date(since.unwrap_or_default().as_secs() / 86_400)
}

/// The date of day `days` after 1970-01-01, in the proleptic Gregorian calendar.
fn date(mut days: u64) -> String {
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, days + 1)
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    |source| Failure::File { path, source }
}

fn wrong(file: &Path, why: &str) -> Failure {
    Failure::Output {
        line: file.display().to_string(),
        why: why.to_owned(),
    }
}

/// The file of a model, made or fetched if it is not there yet.
fn model_file(model: &Value, folder: &Path, definition: &Path) -> Result<PathBuf, Failure> {
    if model["fetched"] == "smollm2" {
        return Ok(SMOLLM2.get()?);
    }
    let text = |key: &str| {
        model[key]
            .as_str()
            .ok_or_else(|| wrong(definition, &format!("a model without `{key}`: {model}")))
    };
    let (size, ty) = (text("shape")?, text("type")?);
    let layers = number(model, "layers", &definition.display().to_string())? as u32;
    let path = folder.join(format!("{size}-{layers}-{ty}.gguf"));
    if path.exists() {
        return Ok(path);
    }
    let matrix_type = ty
        .parse()
        .map_err(|_| wrong(definition, &format!("`{ty}` is no block type")))?;
    let shape = match size {
        "1b" => LlamaShape::tinyllama_1b(layers, matrix_type),
        "13b" => LlamaShape::llama2_13b(layers, matrix_type),
        _ => return Err(wrong(definition, &format!("`{size}` is none of 1b, 13b"))),
    };
    eprintln!("making {}", path.display());
    shape
        .write(&path)
        .map_err(|e| wrong(&path, &e.to_string()))?;
    Ok(path)
}

fn ours(
    programs: &Programs,
    model: &Path,
    [prompt, decode]: [usize; 2],
    threads: &str,
    row: &mut Row,
) -> Result<(), Failure> {
    let (p, n) = (prompt.to_string(), decode.to_string());
    let args = [
        "bench", "-r", "1", "-p", &p, "-n", &n, "-t", threads, "--json", "--model",
    ];
    let mut command = programs.command("splitrun", &args);
    command.arg(model);
    let line = say(&command);
    let report = process::json(command, DEADLINE)?;
    row.ours
        .prefill
        .push(number(&report, "prefill_tokens_per_s", &line)?);
    row.ours
        .decode
        .push(number(&report, "decode_tokens_per_s", &line)?);
    let memory = number(&report["cpu"], "memory_gb_per_s", &line)?;
    row.of_memory
        .push(number(&report, "decode_gb_per_s", &line)? / memory);
    Ok(())
}

fn theirs(
    peer: &str,
    model: &Path,
    [prompt, decode]: [usize; 2],
    threads: &str,
    row: &mut Row,
) -> Result<(), Failure> {
    let (p, n) = (prompt.to_string(), decode.to_string());
    let mut command = Command::new(peer);
    command
        .args([
            "-r", "1", "-p", &p, "-n", &n, "-t", threads, "-o", "json", "-m",
        ])
        .arg(model)
        // Threads that spin while they wait would slow each other down.
        .env("OMP_WAIT_POLICY", "passive");
    let line = say(&command);
    let report = process::json(command, DEADLINE)?;
    for run in report.as_array().into_iter().flatten() {
        let speed = number(run, "avg_ts", &line)?;
        let commit = run["build_commit"].as_str().unwrap_or_default();
        row.peer_build = Some(format!("llama.cpp {} ({commit})", run["build_number"]));
        if number(run, "n_gen", &line)? > 0.0 {
            row.peer.decode.push(speed);
        } else {
            row.peer.prefill.push(speed);
        }
    }
    Ok(())
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn line(name: &str, threads: &str, row: &mut Row) -> String {
    let mut line = format!("| {name} | {threads} ");
    for (ours, peer) in [
        (&mut row.ours.prefill, &mut row.peer.prefill),
        (&mut row.ours.decode, &mut row.peer.decode),
    ] {
        let (ours, peer) = (median(ours), median(peer));
        let show = |v: Option<f64>| v.map_or("–".to_owned(), |v| format!("{v:.1}"));
        let ratio = ours.zip(peer).map(|(a, b)| a / b);
        let ratio = ratio.map_or("–".to_owned(), |r| format!("{r:.2}"));
        // Writing to a string does not fail.
        let _ = write!(line, "| {} | {} | {ratio} ", show(ours), show(peer));
    }
    let share = median(&mut row.of_memory).map_or(0.0, |s| 100.0 * s);
    format!("{line}| {share:.0} % |\n")
}

/// The processor, as the system describes it.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = info.lines().find(|l| l.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let flags = field("flags").unwrap_or_default();
    let sets: Vec<&str> = ["avx2", "avx512f", "avx512_vnni", "avx_vnni"]
        .into_iter()
        .filter(|s| flags.split_whitespace().any(|f| f == *s))
        .collect();
    format!(
        "{}, family {}, model {}, {cores} cores in use, {}, {}",
        field("model name").unwrap_or_else(|| "an unknown processor".into()),
        field("cpu family").unwrap_or_default(),
        field("model\t").unwrap_or_default(),
        std::env::consts::ARCH,
        sets.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_medians() {
        let mut row = Row {
            of_memory: vec![0.5],
            ..Row::default()
        };
        row.ours.prefill = vec![100.0, 900.0, 300.0];
        row.peer.prefill = vec![50.0, 150.0, 200.0];
        row.ours.decode = vec![40.0];
        let line = line("M", "2", &mut row);
        assert_eq!(
            line,
            "| M | 2 | 300.0 | 150.0 | 2.00 | 40.0 | – | – | 50 % |\n"
        );
    }

    #[test]
    fn figures_carry_ratios_and_stay_beside_those_of_other_commands() {
        let mut row = Row::default();
        row.ours.decode = vec![30.0, 60.0, 40.0];
        row.peer.decode = vec![20.0];
        let figures = as_json("M", "2", [128, 24], &mut row);
        assert_eq!(figures["decode_ratio"], json!(2.0));
        assert!(figures["prefill_ratio"].is_null());
        let folder = std::env::temp_dir().join(format!("xtask-versus-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("r.json");
        for (command, rounds) in [("a", 1), ("b", 2), ("a", 3)] {
            let text = with_others(&path, json!({ "command": command, "rounds": rounds }));
            fs::write(&path, text.unwrap()).unwrap();
        }
        let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let rounds: Vec<_> = kept["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| &r["rounds"])
            .collect();
        assert_eq!(rounds, [2, 3]);
        fs::write(&path, "precious").unwrap();
        assert!(with_others(&path, json!({})).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, want) in [
            (0, "1970-01-01"),
            (19_782, "2024-02-29"),
            (20_782, "2026-11-25"),
        ] {
            assert_eq!(date(days), want);
        }
    }

    #[test]
    fn definitions_name_models_that_can_be_had() {
        let folder = Workspace::find().root.join("benches");
        let text = fs::read_to_string(folder.join("cpu.json")).unwrap();
        let definition: Value = serde_json::from_str(&text).unwrap();
        let models = definition["models"].as_array().unwrap();
        assert!(!models.is_empty());
        for model in models {
            let known = model["fetched"] == "smollm2" || model["shape"] == "1b";
            assert!(known && model["name"].is_string(), "{model}");
        }
    }
}
