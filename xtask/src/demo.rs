//! A real model, cut, run as two processes, answering.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fixtures::fetch::SMOLLM2;
use serde_json::Value;

use crate::error::Failure;
use crate::process::{self, Profile, Programs, Server, Workspace, number, say};

/// What is asked when the user asks nothing.
pub(crate) const QUESTION: &str = "What is the capital of France? Explain in two sentences.";

/// Layers on the edge.
const SPLIT: &str = "10";
/// Bits of the edge's layers.
const EDGE_BITS: &str = "4";
/// Tokens of the answer, at most.
const TOKENS: &str = "64";
/// How long a conversion may take.
const CONVERT: Duration = Duration::from_mins(10);
/// How long the cloud may take until it listens.
pub(crate) const READY: Duration = Duration::from_mins(1);
/// How long the answer may take.
const ANSWER: Duration = Duration::from_mins(10);

/// Builds, fetches, converts, runs both halves, and shows the answer and what was measured.
pub(crate) fn run(workspace: &Workspace, question: &str, profile: Profile) -> Result<(), Failure> {
    let programs = workspace.build(profile)?;
    let pair = Pair::make(&programs)?;

    let mut cloud = programs.command("splitrun", &["--role", "cloud", "--model"]);
    cloud.arg(&pair.cloud).args(["--listen", "127.0.0.1:0"]);
    say(&cloud);
    let mut cloud = Server::start(cloud, READY)?;
    eprintln!("  the cloud half listens on {}", cloud.address);

    let stats = pair.folder.join("stats.json");
    let stats_file = programs.path(&stats);
    match fs::remove_file(&stats_file) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(file_error(&stats_file)(e));
        }
        _ => {}
    }
    let mut edge = programs.command("splitrun", &["--role", "edge", "--model"]);
    edge.arg(&pair.edge)
        .args(["--cloud", &cloud.address, "--chat", "--prompt", question])
        .args(["-n", TOKENS, "--temp", "0", "--stats-json"])
        .arg(&stats);
    let line = say(&edge);
    eprintln!();
    let answered = process::run(edge, ANSWER);
    println!();
    if let Err(e) = answered {
        // A cloud that died is the better reason.
        cloud.check()?;
        return Err(e);
    }
    drop(cloud);

    let text = fs::read_to_string(&stats_file).map_err(file_error(&stats_file))?;
    let bad = |why: String| Failure::Output {
        line: line.clone(),
        why,
    };
    let stats: Value = serde_json::from_str(&text)
        .map_err(|e| bad(format!("{} is not JSON: {e}", stats.display())))?;
    if stats["text"].as_str().is_none_or(|t| t.trim().is_empty()) {
        return Err(bad(format!("the answer is empty: {stats}")));
    }
    print!("{}", table(&stats, &pair, &line)?);
    Ok(())
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::File { path, source }
}

/// The real model, converted.
pub(crate) struct Pair {
    /// The folder of both files.
    pub(crate) folder: PathBuf,
    /// The source.
    pub(crate) model: PathBuf,
    /// The edge's file.
    pub(crate) edge: PathBuf,
    /// The cloud's file.
    pub(crate) cloud: PathBuf,
    edge_bytes: f64,
    cloud_bytes: f64,
    /// Values in a boundary row.
    pub(crate) width: f64,
}

impl Pair {
    /// Fetches the model, if need be, and converts it.
    pub(crate) fn make(programs: &Programs) -> Result<Self, Failure> {
        let model = SMOLLM2.get()?;
        let folder = programs.folder("demo")?;
        let mut args: Vec<OsString> = vec![model.clone().into()];
        args.extend(["--split", SPLIT, "--edge-bits", EDGE_BITS, "--out"].map(Into::into));
        args.push(folder.clone().into());
        args.extend(["--force", "--json"].map(Into::into));
        let convert = programs.command("splitconv", &args);
        let line = say(&convert);
        let report = process::json(convert, CONVERT)?;
        for note in report["notes"].as_array().into_iter().flatten() {
            eprintln!("  {}", note.as_str().unwrap_or_default());
        }
        let path = |key: &str| {
            let path = report[key].as_str().map(PathBuf::from);
            path.ok_or_else(|| Failure::Output {
                line: line.clone(),
                why: format!("no `{key}` in {report}"),
            })
        };
        Ok(Self {
            folder,
            model,
            edge: path("edge_file")?,
            cloud: path("cloud_file")?,
            edge_bytes: number(&report, "edge_bytes", &line)?,
            cloud_bytes: number(&report, "cloud_bytes", &line)?,
            width: number(&report, "width", &line)?,
        })
    }
}

/// What was measured, for people.
fn table(stats: &Value, pair: &Pair, line: &str) -> Result<String, Failure> {
    let n = |key| number(stats, key, line);
    let (uplink, f16_row) = (n("uplink_bytes_per_token")?, 2.0 * pair.width);
    let file = |bytes: f64, path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("{:.1} MB  {name}", bytes / 1e6)
    };
    let rows = [
        ("speed", format!("{:.1} tokens/s", n("tokens_per_s")?)),
        ("first token after", format!("{:.0} ms", n("ttft_ms")?)),
        (
            "uplink",
            format!(
                "{uplink:.0} bytes/token, {:.2} of the {f16_row:.0} that f16 needs",
                uplink / f16_row
            ),
        ),
        ("edge", format!("{:.2} ms/token", n("edge_ms_per_token")?)),
        ("link", format!("{:.2} ms/token", n("rtt_ms")?)),
        ("cloud", format!("{:.2} ms/token", n("cloud_ms_per_token")?)),
        ("edge file", file(pair.edge_bytes, &pair.edge)),
        ("cloud file", file(pair.cloud_bytes, &pair.cloud)),
    ];
    let mut out = String::new();
    for (name, value) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:18} {value}");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_was_measured_and_nothing_else() {
        let pair = Pair {
            folder: "target/demo".into(),
            model: "m.gguf".into(),
            edge: "target/demo/e.gguf".into(),
            cloud: "target/demo/c.gguf".into(),
            edge_bytes: 12.34e6,
            cloud_bytes: 5e6,
            width: 576.0,
        };
        let stats = serde_json::json!({
            "tokens_per_s": 12.34, "ttft_ms": 250.4, "uplink_bytes_per_token": 403.2,
            "edge_ms_per_token": 3.0, "rtt_ms": 0.5, "cloud_ms_per_token": 7.25,
        });
        let text = table(&stats, &pair, "splitrun").unwrap();
        for part in [
            "12.3 tokens/s",
            "250 ms",
            "403 bytes/token, 0.35 of the 1152",
            "3.00 ms",
            "0.50 ms",
            "7.25 ms",
            "12.3 MB  e.gguf",
            "5.0 MB  c.gguf",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let mut less = stats;
        less["rtt_ms"] = Value::Null;
        let error = table(&less, &pair, "splitrun").unwrap_err().to_string();
        assert!(error.contains("`rtt_ms`"), "{error}");
    }
}
