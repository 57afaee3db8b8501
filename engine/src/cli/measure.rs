//! `splitrun eval | bench | tokenize | devices`.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::args::{Bench, Compute, Devices, Eval, Tokenize};
use super::codecs::eval_codecs;
use super::device::Place;
use super::roles::note_codec;
use super::{note, print_json, print_line};
use crate::exec::cpu::{CpuExecutor, Isa};
use crate::exec::gpu::{
    Adapter, AdapterKind, Gpu, GpuError, GpuExecutor, ShapeOptions, ShapeTime, Variants,
    bench_shapes,
};
use crate::exec::{ExecError, Executor};
use crate::measure::{BenchOptions, EvalOptions, bench_cpu, bench_gpu, evaluate, evaluate_against};
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
pub(super) fn executors(
    model: OpenedModel,
    place: &Place,
) -> Result<Vec<Arc<dyn Executor>>, RunError> {
    parts(model)
        .into_iter()
        .map(|p| place.executor(p))
        .collect()
}

/// Where `eval` computes: exactly, unless told otherwise.
pub(super) fn place(args: &Eval) -> Result<Place, RunError> {
    let compute = Compute {
        exact: args.compute.exact || !args.int8,
        // --int8 is about the processor: a card's arithmetic is that of both models of --against.
        gpu_variants: match args.compute.gpu_variants {
            Variants::Auto => Variants::Exact,
            named => named,
        },
        ..args.compute.clone()
    };
    Place::open(&compute)
}

/// Tokens of a window.
pub(super) fn window(args: &Eval) -> usize {
    args.ctx.map_or(512, usize::from)
}

/// `eval --against`.
fn eval_against(args: &Eval, text: &Path, source: &Path) -> Result<(), RunError> {
    let text = read_text(text)?;
    let model = open_model(args.model.model.as_deref())?;
    let source = open_model(Some(source))?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let place = place(args)?;
    let (model, source) = (
        executors(model, &place)?,
        executors(source, &place.reference())?,
    );
    let mut progress = |done: usize, of: usize, kl: f64| {
        note(&format!("window {done} of {of}: KL {kl:.5}"));
    };
    let chunks = args.chunks.map(usize::from);
    let ctx = window(args);
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
    if let Some(task) = &args.task {
        return super::task::eval_task(args, task);
    }
    if args.limit.is_some() || args.results.is_some() || args.compare.is_some() {
        return Err(RunError::Usage(
            "--limit, --results and --compare are about the questions of --task".into(),
        ));
    }
    let Some(text) = &args.text else {
        return Err(RunError::Usage(
            "--text or --task says what to score".into(),
        ));
    };
    if let Some(list) = &args.codecs {
        return eval_codecs(args, text, list);
    }
    if let Some(source) = &args.against {
        return eval_against(args, text, source);
    }
    let text = read_text(text)?;
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
    let execs = executors(model, &place(args)?)?;
    let options = EvalOptions {
        ctx: window(args),
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

/// `bench --kernels`.
fn bench_kernels(args: &Bench) -> Result<(), RunError> {
    let place = Place::open(&args.compute)?;
    let Some(gpu) = place.gpu() else {
        return Err(RunError::Request(
            "--kernels times those of a graphics card, and there is none; --device gpu takes any adapter, one in software too"
                .into(),
        ));
    };
    let options = ShapeOptions {
        types: args.types.clone(),
        rows: args.rows.iter().map(|n| usize::from(*n)).collect(),
        runs: args.runs.get(),
        models: args.shapes.clone(),
    };
    let mut line = |t: &ShapeTime| {
        note(&format!(
            "{:4} {:12} {:6} {:4} rows, {:11} {:9.3} ms, {:8.2} GB/s ({:5.1} % of a copy), {:7.3} TFLOP/s",
            t.model,
            t.matrix,
            t.block_type,
            t.rows,
            t.variant,
            t.ms,
            t.gb_per_s,
            100.0 * t.share_of_copy,
            t.tflop_per_s
        ));
    };
    let report =
        bench_shapes(gpu, &options, &mut line).map_err(|e| RunError::Exec(ExecError::Gpu(e)))?;
    if args.json {
        return print_json(&report);
    }
    print_line(&format!(
        "{}: {} products, a copy moves {:.2} GB/s",
        report.adapter,
        report.products.len(),
        report.copy_gb_per_s
    ))
}

pub(super) fn bench(args: &Bench) -> Result<(), RunError> {
    const MOST: usize = 1 << 20;
    if args.kernels {
        return bench_kernels(args);
    }
    if let Some(out) = &args.profile {
        return super::profile::profile(args, out);
    }
    if args.prompt.max(args.predict).max(args.depth) > MOST {
        return Err(RunError::Request(format!("-p, -n and -d go up to {MOST}")));
    }
    if args.sequences > 1 && args.predict == 0 {
        return Err(RunError::Usage(
            "--sequences decodes, and -n 0 leaves decoding out".into(),
        ));
    }
    if args.busy > 0 && args.predict == 0 && args.prompt == 0 {
        return Err(RunError::Usage(
            "--busy: with -p 0 and -n 0 there is nothing to measure".into(),
        ));
    }
    let parts = parts(open_model(args.model.model.as_deref())?);
    let weight_bytes = parts.iter().map(ModelPart::weight_bytes).sum();
    let place = Place::open(&args.compute)?;
    let opened = parts
        .into_iter()
        .map(|p| place.opened(p))
        .collect::<Result<Vec<_>, _>>()?;
    let execs: Vec<Arc<dyn Executor>> = opened.iter().map(|o| Arc::clone(&o.exec)).collect();
    let cpus: Vec<Arc<CpuExecutor>> = opened.iter().filter_map(|o| o.cpu.clone()).collect();
    let gpus: Vec<Arc<GpuExecutor>> = opened.into_iter().filter_map(|o| o.gpu).collect();
    let options = BenchOptions {
        prompt: args.prompt,
        decode: args.predict,
        runs: args.runs.get(),
        depth: args.depth,
        sequences: usize::from(args.sequences),
        busy: usize::from(args.busy),
    };
    let mut report = crate::measure::bench(
        &execs,
        options,
        weight_bytes,
        place.threads(),
        &place.kernels(gpus.first()),
    )?;
    report.cpu = bench_cpu(&execs, &cpus, options)?;
    report.gpu = bench_gpu(&execs, &gpus, options)?;
    if args.json {
        return print_json(&report);
    }
    if let Some(cpu) = &report.cpu {
        for (what, phases) in [("prefill", &cpu.prefill), ("decode", &cpu.decode)] {
            let shown = phases.iter().filter(|p| p.ms > 0.0);
            let shares: Vec<String> = shown
                .map(|p| format!("{} {:.1} %", p.phase, 100.0 * p.share))
                .collect();
            if !shares.is_empty() {
                print_line(&format!("{what}: {}", shares.join(", ")))?;
            }
        }
        print_line(&format!(
            "memory is read at {:.1} GB/s; decoding reads weights at {:.0} % of that",
            cpu.memory_gb_per_s,
            100.0 * report.decode_gb_per_s / cpu.memory_gb_per_s
        ))?;
    }
    if let Some(gpu) = &report.gpu {
        for (what, kernels) in [("prefill", &gpu.prefill), ("decode", &gpu.decode)] {
            for k in kernels {
                print_line(&format!(
                    "{what} {:10} {:6} dispatches, {:9.3} ms, {:7.2} GB/s",
                    k.kernel, k.dispatches, k.ms, k.gb_per_s
                ))?;
            }
        }
        print_line(&format!(
            "a copy moves {:.2} GB/s; decoding {:.0} % of that while the device computes",
            gpu.copy_gb_per_s,
            100.0 * gpu.share_of_copy
        ))?;
    }
    if report.depth > 0 {
        print_line(&format!(
            "behind {} positions, {:.1} MB of keys and values in {}",
            report.depth,
            report.kv_bytes as f64 / 1e6,
            report.kv_type
        ))?;
    }
    if let Some(b) = &report.batch {
        print_line(&format!(
            "{} sequences decode {:.1} tokens/s together, {:.2} × one",
            b.sequences, b.decode_tokens_per_s, b.of_one
        ))?;
    }
    if let Some(b) = &report.busy {
        print_line(&format!(
            "beside {} busy threads: prefill {:.1} tokens/s ({:.0} % of the quiet speed), decode {:.1} tokens/s ({:.0} %)",
            b.busy_threads,
            b.prefill_tokens_per_s,
            100.0 * b.prefill_of_quiet,
            b.decode_tokens_per_s,
            100.0 * b.decode_of_quiet
        ))?;
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
    let arch = std::env::consts::ARCH;
    // Opening tries the variants: what is listed is what models get.
    let adapters: Vec<_> = Adapter::all()
        .into_iter()
        .map(|a| match Gpu::open(&a, args.gpu_variants) {
            Ok(gpu) => gpu.report().clone(),
            Err(e) => a.refused(&e),
        })
        .collect();
    if args.json {
        let cpu = json!({ "kind": "cpu", "arch": arch, "cores": cores, "kernels": kernels });
        return print_json(&json!({ "devices": [cpu], "adapters": adapters }));
    }
    print_line(&format!(
        "cpu: {arch}, {cores} cores, kernels {}",
        kernels.join(", ")
    ))?;
    for a in &adapters {
        let gib = |n: u64| format!("{:.1} GiB", n as f64 / f64::from(1 << 30));
        print_line(&format!(
            "gpu: {} ({}, {}), {}, {} a binding; {}; {}",
            a.name,
            a.kind,
            a.backend,
            a.memory_bytes
                .map_or("memory unknown".to_owned(), |n| gib(n) + " of memory"),
            gib(a.max_binding_bytes),
            a.features.join(", "),
            a.variants.join(", "),
        ))?;
    }
    if cfg!(not(feature = "gpu")) {
        print_line(&format!(
            "--device auto computes on the CPU: {}",
            GpuError::NotBuilt
        ))?;
    } else if adapters.iter().all(|a| a.kind == AdapterKind::Software) {
        print_line("--device auto computes on the CPU: there is no graphics card")?;
    }
    Ok(())
}
