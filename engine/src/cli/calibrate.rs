//! `splitrun calibrate`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::imatrix::{Imatrix, Sensitivity};
use serde::Serialize;

use super::args::Calibrate;
use super::device::observable;
use super::measure::{parts, read_text};
use super::{note, print_json, print_line, write_whole};
use crate::exec::Executor as _;
use crate::exec::cpu::CpuExecutor;
use crate::measure;
use crate::measure::{CalibrateOptions, SensitivityOptions, StepOptions};
use crate::role::{RunError, open_model};
use crate::text::Tokenizer;

/// How often the slow part says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What was written.
#[derive(Serialize)]
struct Report {
    file: String,
    file_bytes: usize,
    tensors: usize,
    cuts: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    sensitivity_tokens: Option<u64>,
    windows: u32,
    ctx: u32,
    tokens: u64,
    seconds: f64,
    tokens_per_s: f64,
}

pub(super) fn calibrate(args: &Calibrate) -> Result<(), RunError> {
    if args
        .out
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("json"))
    {
        return super::damage::damage(args);
    }
    if args.quick || args.seconds.is_some() {
        return Err(RunError::Usage(
            "--quick and --seconds are about what types and codecs cost, which is written to a file whose name ends in .json".into(),
        ));
    }
    // Not after minutes of work.
    check_target(&args.out)?;
    let text = read_text(&args.text)?;
    let model = open_model(args.model.model.as_deref())?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let execs = parts(model)
        .into_iter()
        .map(|p| observable(p, &args.compute))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(exec) = execs.first() {
        measure::check_cuts(&args.cuts, exec.hparams().n_layer)?;
    }
    let dataset = args.text.file_name().unwrap_or_default();
    let options = CalibrateOptions {
        ctx: args.ctx.get(),
        chunks: args.chunks.map(usize::from),
        dataset: dataset.to_string_lossy().into_owned(),
    };
    let sensitivities = match args.sensitivity {
        Some(tokens) => {
            let options = SensitivityOptions {
                tokens: tokens.get(),
                ctx: options.ctx,
                chunks: options.chunks,
            };
            Some(sensitivity(&execs, &tokenizer, &text, &options)?)
        }
        None => None,
    };
    let start = Instant::now();
    let mut progress = |done: usize, of: usize| {
        let left = start.elapsed().as_secs_f64() / done as f64 * (of - done) as f64;
        note(&format!("window {done} of {of}, {left:.0} s left"));
    };
    let mut im = measure::calibrate(&execs, &tokenizer, &text, &options, &mut progress)?;
    if let (Some(boundary), 1..) = (&mut im.boundary, args.cut_chunks) {
        let options = StepOptions {
            ctx: options.ctx,
            windows: args.cut_chunks,
            cuts: args.cuts.clone(),
        };
        let mut progress = |done: usize, of: usize| {
            note(&format!("what steps of the codec cost: {done} of {of}"));
        };
        let done = measure::steps(&execs, &tokenizer, &text, &options, boundary, &mut progress);
        // What was measured before is worth keeping.
        if let Err(e) = done {
            note(&format!(
                "what steps of the codec cost was not measured: {e}"
            ));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    im.sensitivity = sensitivities;
    let bytes = im
        .to_gguf()
        .map_err(|e| RunError::Request(format!("cannot encode the importance matrix: {e}")))?;
    write_whole(&args.out, &bytes)?;
    let tokens = u64::from(im.chunk_count) * u64::from(im.chunk_size);
    let report = Report {
        file: args.out.display().to_string(),
        file_bytes: bytes.len(),
        tensors: im.entries.len(),
        cuts: im.boundary.as_ref().map_or(0, |b| b.cuts),
        sensitivity_tokens: im.sensitivity.as_ref().map(|s| s.tokens),
        windows: im.chunk_count,
        ctx: im.chunk_size,
        tokens,
        seconds,
        tokens_per_s: tokens as f64 / seconds,
    };
    if args.json {
        return print_json(&report);
    }
    let sensitivity = match report.sensitivity_tokens {
        Some(n) => format!("; sensitivities from {n} tokens"),
        None => String::new(),
    };
    print_line(&format!(
        "{}: importances of {} matrices, statistics of {} cuts, from {} windows of {} tokens in {:.1} s{sensitivity}",
        report.file, report.tensors, report.cuts, report.windows, report.ctx, report.seconds
    ))
}

/// Measures sensitivities; says every few seconds how far it is.
fn sensitivity(
    execs: &[Arc<CpuExecutor>],
    tokenizer: &Tokenizer,
    text: &str,
    options: &SensitivityOptions,
) -> Result<Sensitivity, RunError> {
    let start = Instant::now();
    let mut said = start;
    let mut progress = |done: usize, of: usize| {
        if done < of && said.elapsed() < SAY_EVERY {
            return;
        }
        said = Instant::now();
        let left = start.elapsed().as_secs_f64() / done as f64 * (of - done) as f64;
        note(&format!(
            "sensitivities: {} %, {left:.0} s left",
            done * 100 / of
        ));
    };
    measure::sensitivity(execs, tokenizer, text, options, &mut progress)
}

/// An older importance matrix may be replaced; anything else (the model, say) stays.
fn check_target(path: &Path) -> Result<(), RunError> {
    if std::fs::symlink_metadata(path).is_ok() && Imatrix::open(path).is_err() {
        return Err(RunError::Request(format!(
            "--out {}: a file that is no importance matrix stands there; choose another name",
            path.display()
        )));
    }
    Ok(())
}
