//! Measurements on the real model, as rows of the README's table.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use fixtures::fetch::WIKI_64K;
use serde_json::Value;

use crate::demo::Pair;
use crate::error::Failure;
use crate::process::{self, Profile, Programs, Workspace, number, say};

/// How long one measurement may take.
const DEADLINE: Duration = Duration::from_mins(30);
/// Windows of 512 tokens that are scored.
const WINDOWS: [&str; 4] = ["--ctx", "512", "--chunks", "16"];

/// Measures and prints Markdown.
pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    let programs = workspace.build(Profile::Release)?;
    let pair = Pair::make(&programs)?;
    let text = WIKI_64K.get()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.to_string();
    let mut rows = Vec::new();

    for (what, model) in [("unsplit", &pair.model), ("pair", &pair.folder)] {
        let mut args: Vec<OsString> = ["bench", "--model"].map(Into::into).into();
        args.push(model.into());
        args.extend(["-p", "512", "-n", "64", "-r", "3", "-t", &threads].map(Into::into));
        let bench = Measurement::take(&programs, &args, &[model])?;
        let p = bench.number("prefill_tokens_per_s")?;
        let d = bench.number("decode_tokens_per_s")?;
        let g = bench.number("decode_gb_per_s")?;
        rows.push(bench.row(
            &format!("speed, {what}, {threads} threads"),
            &format!("prompt {p:.0} tokens/s, decoding {d:.1} tokens/s ({g:.1} GB/s)"),
        ));
    }

    let eval = |model: &Path, codec: Option<&str>| {
        let mut args: Vec<OsString> = ["eval", "--model"].map(Into::into).into();
        args.push(model.into());
        args.extend(["--text".into(), text.clone().into()]);
        args.extend(WINDOWS.map(Into::into));
        if let Some(codec) = codec {
            args.extend(["--codec", codec].map(Into::into));
        }
        Measurement::take(&programs, &args, &[model, &text])
    };
    let unsplit = eval(&pair.model, None)?;
    let perplexity = |m: &Measurement| Ok::<_, Failure>(format!("{:.4}", m.number("perplexity")?));
    rows.push(unsplit.row("perplexity, unsplit", &perplexity(&unsplit)?));
    for codec in ["f32", "int8", "auto"] {
        let m = eval(&pair.folder, Some(codec))?;
        rows.push(m.row(&format!("perplexity, pair, `{codec}`"), &perplexity(&m)?));
        let (bytes, kl) = (m.number("bytes_per_token")?, m.number("kl_mean")?);
        let top1 = 100.0 * m.number("top1_agreement")?;
        rows.push(m.row(
            &format!("uplink, `{codec}`"),
            &format!(
                "{bytes:.0} bytes/token ({:.2} of f16), KL {kl:.4}, same top token {top1:.1} %",
                bytes / (2.0 * pair.width)
            ),
        ));
    }

    println!("| what | measured | with |\n|---|---|---|");
    for row in rows {
        println!("{row}");
    }
    Ok(())
}

/// What a command printed.
struct Measurement {
    line: String,
    shown: String,
    object: Value,
}

impl Measurement {
    /// Runs `splitrun ARGS… --json`. In what is printed, `paths` are shown by their file names.
    fn take(programs: &Programs, args: &[OsString], paths: &[&Path]) -> Result<Self, Failure> {
        let mut command = programs.command("splitrun", args);
        command.arg("--json");
        let line = say(&command);
        let mut shown = line.clone();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            shown = shown.replace(&*path.to_string_lossy(), &name);
        }
        let object = process::json(command, DEADLINE)?;
        Ok(Self {
            line,
            shown,
            object,
        })
    }

    fn number(&self, key: &str) -> Result<f64, Failure> {
        number(&self.object, key, &self.line)
    }

    fn row(&self, what: &str, measured: &str) -> String {
        format!("| {what} | {measured} | `{}` |", self.shown)
    }
}
