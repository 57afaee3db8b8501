//! `splitrun calibrate --sensitivity --out F.json`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use formats::gguf::Value;
use formats::measured::{Front, LayerSensitivity};
use serde::Serialize;
use serde_json::{Map, json};

use super::args::Calibrate;
use super::device::observable;
use super::measure::{parts, read_text};
use super::task::digest;
use super::{note, print_json, print_line, write_whole};
use crate::measure::Journal;
use crate::measure::damage::{DamageOptions, damage as measure};
use crate::role::{OpenedModel, RunError, open_model};
use crate::text::Tokenizer;

/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// Seconds that it takes if not said otherwise, and with `--quick`.
const SECONDS: u64 = 600;
const QUICK_SECONDS: u64 = 60;
/// What was written.
#[derive(Serialize)]
struct Report {
    file: String,
    types: usize,
    types_fitted: usize,
    codecs: usize,
    codecs_fitted: usize,
    tokens_scored: u64,
    additivity: f64,
    front: Option<Front>,
    seconds: f64,
}

pub(super) fn damage(args: &Calibrate) -> Result<(), RunError> {
    let Some(asked) = args.sensitivity else {
        return Err(RunError::Usage(
            "--out F.json is what --sensitivity writes; an importance matrix is a GGUF".into(),
        ));
    };
    if !args.cuts.is_empty() {
        return Err(RunError::Usage(
            "--cut: with --out F.json codecs are measured at every cut that the time allows".into(),
        ));
    }
    check_target(&args.out)?;
    let start = Instant::now();
    let text = read_text(&args.text)?;
    let model = open_model(args.model.model.as_deref())?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let seconds = if args.quick {
        QUICK_SECONDS
    } else {
        args.seconds.unwrap_or(SECONDS)
    };
    let name = args.text.file_name().unwrap_or_default();
    let options = DamageOptions {
        // The second halves of windows are scored.
        tokens: asked.get().saturating_mul(2),
        ctx: args.ctx.get(),
        chunks: args.chunks.map(usize::from),
        time: Duration::from_secs(seconds),
        model: model_name(&model),
        text: name.to_string_lossy().into_owned(),
    };
    let mut head = Map::new();
    head.insert("measures".into(), json!("sensitivity"));
    head.insert("model".into(), json!(digest(&model)?));
    let hash = blake3::hash(text.as_bytes()).to_hex();
    head.insert("text".into(), json!(hash[..32].to_owned()));
    head.insert("tokens".into(), json!(options.tokens));
    head.insert("ctx".into(), json!(options.ctx));
    head.insert("chunks".into(), json!(options.chunks));
    let kept = results_beside(&args.out);
    let mut journal = Journal::open(&kept, &head)?;
    if !journal.is_empty() {
        note(&format!(
            "{} figures are there already, in {}",
            journal.len(),
            kept.display()
        ));
    }
    let execs = parts(model)
        .into_iter()
        .map(|p| observable(p, &args.compute))
        .collect::<Result<Vec<_>, _>>()?;
    let mut said = Instant::now();
    let mut progress = |done: usize, of: usize| {
        if done < of && said.elapsed() < SAY_EVERY {
            return;
        }
        said = Instant::now();
        let left = seconds.saturating_sub(start.elapsed().as_secs());
        note(&format!("figure {done} of {of}, {left} s left at most"));
    };
    let found = measure(
        &execs,
        &tokenizer,
        &text,
        &options,
        &mut journal,
        &mut progress,
    )?;
    found
        .check()
        .map_err(|e| RunError::Request(format!("what was measured cannot be: {e}")))?;
    write_whole(&args.out, found.to_json().as_bytes())?;
    drop(journal);
    if !found.quick {
        // All of it is in the file now. What cannot be removed does no harm.
        let _ = std::fs::remove_file(&kept);
    }
    report(args, &found, start.elapsed().as_secs_f64())
}

fn report(args: &Calibrate, found: &LayerSensitivity, seconds: f64) -> Result<(), RunError> {
    let report = Report {
        file: args.out.display().to_string(),
        types: found.types.len(),
        types_fitted: found.types.iter().filter(|t| t.fitted).count(),
        codecs: found.codecs.len(),
        codecs_fitted: found.codecs.iter().filter(|c| c.fitted).count(),
        tokens_scored: found.tokens,
        additivity: found.additivity,
        front: found.front,
        seconds,
    };
    if args.json {
        return print_json(&report);
    }
    let first = found.front.map_or_else(String::new, |front| {
        let Front { layers, additivity } = front;
        format!("those of the first {layers} layers {additivity:.2}, all others ")
    });
    print_line(&format!(
        "{}: {} figures of matrices in types ({} fitted), {} of codecs at cuts ({} fitted), over {} tokens in {:.0} s; \
         together they cost {first}{:.2} of their sum",
        report.file,
        report.types,
        report.types_fitted,
        report.codecs,
        report.codecs_fitted,
        report.tokens_scored,
        report.seconds,
        report.additivity
    ))
}

/// `general.name`, or the file's name.
fn model_name(model: &OpenedModel) -> String {
    let path = match model {
        OpenedModel::Whole { path, .. } => path,
        OpenedModel::Pair { edge, .. } => &edge.path,
    };
    let named = model.metadata().get("general.name").and_then(Value::as_str);
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    named.map_or_else(|| file.into_owned(), str::to_owned)
}

/// Where figures are kept until all are there.
fn results_beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".results");
    PathBuf::from(name)
}

/// An older file of sensitivities may be replaced; anything else stays.
fn check_target(path: &Path) -> Result<(), RunError> {
    if std::fs::symlink_metadata(path).is_ok() && LayerSensitivity::open(path).is_err() {
        return Err(RunError::Request(format!(
            "--out {}: a file that holds no sensitivities stands there; choose another name",
            path.display()
        )));
    }
    Ok(())
}
