//! `splitrun bench --profile`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use formats::blocks::BlockType;
use formats::measured::Profile;
use formats::model::KvType;

use super::args::Bench;
use super::device::Place;
use super::measure::{executors, parts};
use super::{note, print_json, print_line, write_whole};
use crate::exec::gpu::copy_gb_per_s;
use crate::exec::{ExecError, Executor};
use crate::measure::profile::{ProfileOptions, memory_bytes, profile as measure, runtime_bytes};
use crate::model::ModelPart;
use crate::role::{RunError, open_model};
use crate::text::Tokenizer;

/// Seconds that products may take.
const SECONDS: f64 = 36.0;

pub(super) fn profile(args: &Bench, out: &Path) -> Result<(), RunError> {
    check_target(out)?;
    if args.compute.kv_type != KvType::F16 {
        return Err(RunError::Usage(format!(
            "--kv-type {}: a profile is measured with f16, and plans take its times for every type; leave it out",
            args.compute.kv_type
        )));
    }
    let place = Place::open(&args.compute)?;
    let model = args.model.model.as_deref();
    let make = |p: ModelPart| place.executor(p);
    // Before there is a model whose memory would count.
    let runtime_bytes = runtime_bytes(&make)
        .inspect_err(|e| note(&format!("memory of the program is not measured: {e}")))
        .ok()
        .flatten()
        .unwrap_or(formats::model::RUNTIME_BYTES);
    // Once without a clock: the file is in the system's cache then, as the figure supposes.
    load(model, &place)?;
    let load_gb_per_s = load(model, &place)?;
    let part = parts(open_model(model)?);
    let Some(front) = part.first() else {
        return Err(RunError::Request("a model without parts".into()));
    };
    let types = types(&part);
    let gpu = place.gpu();
    let copy = gpu
        .map(|g| copy_gb_per_s(g).map_err(|e| RunError::Exec(ExecError::Gpu(e))))
        .transpose()?;
    let options = ProfileOptions {
        hparams: front.hparams.clone(),
        types,
        make: &make,
        device: match gpu {
            Some(g) => g.report().name.clone(),
            None => format!("cpu ({})", place.kernels(None)),
        },
        threads: if gpu.is_some() {
            0
        } else {
            place.threads() as u32
        },
        seconds: SECONDS,
        load_gb_per_s,
        runtime_bytes,
        memory_bytes: match gpu {
            Some(g) => g.report().memory_bytes,
            None => memory_bytes(),
        },
        memory_gb_per_s: copy,
    };
    let profile = measure(&options, &mut |what| note(&format!("profile: {what}")))?;
    profile
        .check()
        .map_err(|e| RunError::Request(format!("what was measured cannot be: {e}")))?;
    write_whole(out, profile.to_json().as_bytes())?;
    if profile.loaded {
        note("the machine did other work: the profile is marked as taken under load");
    }
    if args.json {
        return print_json(&profile);
    }
    print_line(&format!(
        "{}: {} on {}, {} block types, memory {:.1} GB/s, loading {:.2} GB/s, {:.0} MiB without a model{}",
        out.display(),
        profile.device,
        profile.machine,
        profile.matrices.len(),
        profile.memory_gb_per_s,
        profile.load_gb_per_s,
        profile.runtime_bytes as f64 / f64::from(1 << 20),
        if profile.loaded { ", under load" } else { "" }
    ))
}

/// The types of a model's matrices, those with most weights first.
fn types(parts: &[ModelPart]) -> Vec<BlockType> {
    let mut weights: HashMap<BlockType, usize> = HashMap::new();
    for t in parts.iter().flat_map(ModelPart::matrices) {
        *weights.entry(t.block_type).or_default() += t.rows * t.cols;
    }
    let mut types: Vec<_> = weights.into_iter().collect();
    types.sort_by_key(|(ty, n)| (std::cmp::Reverse(*n), ty.id()));
    types.into_iter().map(|(ty, _)| ty).collect()
}

/// Loads the model, as a role would, and runs a token twice: the first brings the weights. 10⁹
/// bytes of them a second.
fn load(path: Option<&Path>, place: &Place) -> Result<f64, RunError> {
    let start = Instant::now();
    let model = open_model(path)?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let bytes: usize = match &model {
        crate::role::OpenedModel::Whole { part, .. } => part.weight_bytes(),
        crate::role::OpenedModel::Pair { edge, cloud } => {
            edge.part.weight_bytes() + cloud.part.weight_bytes()
        }
    };
    let execs = executors(model, place)?;
    token(&execs)?;
    let first = start.elapsed().as_secs_f64();
    let second = Instant::now();
    token(&execs)?;
    let load = (first - second.elapsed().as_secs_f64()).max(1e-6);
    drop(tokenizer);
    Ok(bytes as f64 / load / 1e9)
}

/// Runs one token through all parts.
fn token(execs: &[Arc<dyn Executor>]) -> Result<(), RunError> {
    let mut rows = Vec::new();
    for (i, exec) in execs.iter().enumerate() {
        if i == 0 {
            exec.embed(&[0], &mut rows)?;
        }
        exec.forward(&mut exec.new_cache(1)?, &mut rows)?;
    }
    if let Some(last) = execs.last() {
        last.logits(&rows, &mut Vec::new())?;
    }
    Ok(())
}

/// An older profile may be replaced; anything else (the model, say) stays.
fn check_target(path: &Path) -> Result<(), RunError> {
    if std::fs::symlink_metadata(path).is_ok() && Profile::open(path).is_err() {
        return Err(RunError::Request(format!(
            "--profile {}: a file that is no profile stands there; choose another name",
            path.display()
        )));
    }
    Ok(())
}
