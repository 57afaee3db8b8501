//! `splitrun eval | bench | tokenize | devices`.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::args::{Bench, Compute, Devices, Eval, Tokenize};
use super::roles::note_codec;
use super::{executor, note, print_json, print_line, threads};
use crate::exec::Executor;
use crate::exec::cpu::Isa;
use crate::measure::{BenchOptions, EvalOptions, evaluate, evaluate_against};
use crate::model::ModelPart;
use crate::role::{OpenedModel, RunError, open_model, read_metadata};
use crate::text::Tokenizer;

/// The parts of a model in order: one, or two halves.
pub(super) fn parts(model: OpenedModel) -> Vec<ModelPart> {
    match model {
        OpenedModel::Whole { part, .. } => vec![*part],
        OpenedModel::Pair { edge, cloud } => vec![edge.part, cloud.part],
    }
}

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String, RunError> {
    let text = std::fs::read(path).map_err(RunError::io(path.display().to_string()))?;
    // A text cut at a byte count may end inside a character.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Executors of all parts of a model.
fn executors(model: OpenedModel, compute: &Compute) -> Result<Vec<Arc<dyn Executor>>, RunError> {
    let one = |p| executor(p, compute).map(|e| e as Arc<dyn Executor>);
    parts(model).into_iter().map(one).collect()
}

/// `eval --against`.
fn eval_against(args: &Eval, source: &Path) -> Result<(), RunError> {
    let text = read_text(&args.text)?;
    let model = open_model(args.model.model.as_deref())?;
    let source = open_model(Some(source))?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let (model, source) = (
        executors(model, &args.compute)?,
        executors(source, &args.compute)?,
    );
    let mut progress = |done: usize, of: usize, kl: f64| {
        note(&format!("window {done} of {of}: KL {kl:.5}"));
    };
    let chunks = args.chunks.map(usize::from);
    let ctx = args.ctx.get();
    let r = evaluate_against(
        &model,
        &source,
        &tokenizer,
        &text,
        ctx,
        chunks,
        &mut progress,
    )?;
    if args.json {
        return print_json(&r);
    }
    print_line(&format!(
        "KL mean {:.5}, p99 {:.5}, max {:.4}, same top token {:.2} %; perplexity {:.4}, of the \
         source {:.4}, over {} tokens in {} windows of {}",
        r.kl_mean,
        r.kl_p99,
        r.kl_max,
        r.top1_agreement * 100.0,
        r.perplexity,
        r.perplexity_source,
        r.tokens_scored,
        r.windows,
        r.ctx
    ))
}

pub(super) fn eval(args: &Eval) -> Result<(), RunError> {
    if let Some(source) = &args.against {
        return eval_against(args, source);
    }
    let text = read_text(&args.text)?;
    let model = open_model(args.model.model.as_deref())?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    if matches!(model, OpenedModel::Whole { .. }) && args.codec.is_some() {
        note("an unsplit model has no boundary: the codec is ignored");
    }
    let cut = match &model {
        OpenedModel::Whole { .. } => None,
        OpenedModel::Pair { edge, .. } => edge.boundary.clone(),
    };
    if let (Some(codec), OpenedModel::Pair { .. }) = (&args.codec, &model) {
        note_codec(codec, cut.as_ref());
    }
    let execs = executors(model, &args.compute)?;
    let options = EvalOptions {
        ctx: args.ctx.get(),
        chunks: args.chunks.map(usize::from),
        codec: args.codec,
        cut,
        frame_rows: args.frame_rows.get(),
    };
    let mut progress = |done: usize, of: usize, ppl: f64| {
        note(&format!("window {done} of {of}: perplexity {ppl:.4}"));
    };
    let report = evaluate(
        &execs[0],
        execs.get(1),
        &tokenizer,
        &text,
        &options,
        &mut progress,
    )?;
    if args.json {
        return print_json(&report);
    }
    print_line(&format!(
        "perplexity {:.4} over {} tokens in {} windows of {}",
        report.perplexity, report.tokens_scored, report.windows, report.ctx
    ))?;
    if let Some(c) = &report.codec {
        print_line(&format!(
            "codec {}: {:.1} bytes/token (largest frame {}), KL mean {:.5}, p99 {:.5}, max {:.4}, \
             same top token {:.2} %, perplexity without codec {:.4}",
            c.codec,
            c.bytes_per_token,
            c.bytes_max_frame,
            c.kl_mean,
            c.kl_p99,
            c.kl_max,
            c.top1_agreement * 100.0,
            c.perplexity_no_codec
        ))?;
    }
    Ok(())
}

pub(super) fn bench(args: &Bench) -> Result<(), RunError> {
    const MOST: usize = 1 << 20;
    if args.prompt.max(args.predict) > MOST {
        return Err(RunError::Request(format!("-p and -n go up to {MOST}")));
    }
    let parts = parts(open_model(args.model.model.as_deref())?);
    let weight_bytes = parts.iter().map(ModelPart::weight_bytes).sum();
    let execs: Vec<Arc<dyn Executor>> = parts
        .into_iter()
        .map(|p| executor(p, &args.compute).map(|e| e as Arc<dyn Executor>))
        .collect::<Result<_, _>>()?;
    let options = BenchOptions {
        prompt: args.prompt,
        decode: args.predict,
        runs: args.runs.get(),
    };
    let kernels = match args.compute.kernels.as_str() {
        "auto" => Isa::detect().to_string(),
        named => named.to_owned(),
    };
    let report = crate::measure::bench(
        &execs,
        options,
        weight_bytes,
        threads(&args.compute),
        &kernels,
    )?;
    if args.json {
        return print_json(&report);
    }
    print_line(&format!(
        "prefill {:.1} tokens/s (of {}), decode {:.1} tokens/s (of {}), {:.2} GB/s of weights, \
         {} threads, {} kernels, medians of {}",
        report.prefill_tokens_per_s,
        report.prompt_tokens,
        report.decode_tokens_per_s,
        report.decode_tokens,
        report.decode_gb_per_s,
        report.threads,
        report.kernels,
        report.runs
    ))
}

pub(super) fn tokenize(args: &Tokenize) -> Result<(), RunError> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(RunError::io("reading text from standard input"))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| RunError::Request(format!("standard input is not UTF-8: {e}")))?;
    let metadata = read_metadata(args.model.model.as_deref())?;
    let tokenizer = Tokenizer::from_metadata(&metadata)?;
    let ids = if args.no_bos {
        tokenizer.encode(&text, true)
    } else {
        tokenizer.encode_prompt(&text)
    };
    if args.json {
        return print_json(&json!({ "ids": ids }));
    }
    let words: Vec<String> = ids.iter().map(u32::to_string).collect();
    print_line(&words.join(" "))
}

pub(super) fn devices(args: &Devices) -> Result<(), RunError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernels: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
    if args.json {
        return print_json(&json!({
            "devices": [{ "kind": "cpu", "arch": std::env::consts::ARCH, "cores": cores, "kernels": kernels }],
        }));
    }
    print_line(&format!(
        "cpu: {}, {cores} cores, kernels {}",
        std::env::consts::ARCH,
        kernels.join(", ")
    ))
}
