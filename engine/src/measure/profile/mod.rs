//! How fast this host computes: the measurements behind [`formats::measured::Profile`].
//!
//! Everything is measured in passes of an executor over models of random weights in the shapes of
//! a given model, so it holds for every device alike. What kernels cost follows by differences:
//!
//! - a pass over many layers whose matrices are next to nothing, less one over few: what a layer
//!   costs by itself; the rest of it: what a pass costs;
//! - a head of many rows less one of few: what a weight costs, from which follows what is left of
//!   a layer beside products: norms, rotation, SwiGLU, sums;
//! - a pass at a later position less one at the first: attention;
//! - a pass over layers of one type, less all of that: products of this type.
//!
//! So a prediction for the model that was measured is its measured time again, whatever the parts
//! are; for other shapes it is as good as the parts are.
//!
//! | file | idea |
//! |---|---|
//! | `synthetic` | models of random weights |
//! | `passes` | times of passes, and the differences above |
//! | `rows` | codecs, embedding, choice of the token |
//! | `message` | a message and its answer over loopback |
//! | `machine` | names, memory, other work on the machine |

mod machine;
mod message;
mod passes;
mod rows;
mod synthetic;

use std::sync::Arc;
use std::time::Instant;

use formats::blocks::BlockType;
use formats::measured::{PROFILE_VERSION, Profile};

use self::machine::Watch;
use crate::exec::Executor;
use crate::model::{HParams, ModelPart};
use crate::role::RunError;

pub use self::machine::{memory_bytes, resident_bytes};
pub use self::message::runtime_bytes;

/// What a profile is made from.
pub struct ProfileOptions<'a> {
    /// The shapes to measure in.
    pub hparams: HParams,
    /// Types of the model's matrices, which are measured first.
    pub types: Vec<BlockType>,
    /// Makes an executor of a part, on the device that is to be measured.
    pub make: &'a dyn Fn(ModelPart) -> Result<Arc<dyn Executor>, RunError>,
    /// What computes, as a person would name it.
    pub device: String,
    /// Threads that compute; 0 on a graphics processor.
    pub threads: u32,
    /// Seconds that products may take together.
    pub seconds: f64,
    /// How fast a file became a model, 10⁹ bytes a second.
    pub load_gb_per_s: f64,
    /// Resident bytes without weights, KV cache and activations.
    pub runtime_bytes: u64,
    /// Memory of the device, where it is known.
    pub memory_bytes: Option<u64>,
    /// What the device's memory delivers to a reader, where it was measured already, in 10⁹
    /// bytes a second; else the processor's is measured.
    pub memory_gb_per_s: Option<f64>,
}

/// Types that are measured besides those of the model: what splitconv writes.
const USUAL: [BlockType; 10] = [
    BlockType::Q4_K,
    BlockType::Q8_0,
    BlockType::Q3_K,
    BlockType::Q6_K,
    BlockType::Q2_K,
    BlockType::Q5_K,
    BlockType::IQ4_NL,
    BlockType::Q5_1,
    BlockType::F16,
    BlockType::Q4_0,
];

/// Measures a profile. `progress` hears what comes next.
///
/// # Errors
/// When a part of a model does not fit the device, or it fails.
pub fn profile(
    options: &ProfileOptions<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<Profile, RunError> {
    let watch = Watch::start();
    let began = Instant::now();
    let mut notes = Vec::new();
    let mut types: Vec<BlockType> = Vec::new();
    for ty in options.types.iter().copied().chain(USUAL) {
        if types.contains(&ty) {
            continue;
        }
        if ty.can_encode() {
            types.push(ty);
        } else {
            notes.push(format!("{ty} is not among the types: it has no encoder"));
        }
    }
    progress("what a pass and a layer cost by themselves");
    let rest = passes::overheads(options.make)?;
    progress("what is left of a layer beside its products");
    let base = *types.first().unwrap_or(&BlockType::Q8_0);
    let shape = synthetic::shape(&options.hparams, base);
    let layer_value_ns = passes::layer_value_ns(options.make, &shape, base, &rest)?;
    progress("attention");
    let attention = passes::attention(options.make, &shape, base, options.seconds / 6.0)?;
    let known = passes::Known {
        rest,
        layer_value_ns,
        attention: &attention,
    };
    let mut matrices = Vec::new();
    for (i, ty) in types.iter().enumerate() {
        progress(&format!("products: {ty}, {} of {}", i + 1, types.len()));
        let shape = synthetic::shape(&options.hparams, *ty);
        let seconds = options.seconds / types.len() as f64;
        let time = passes::products(options.make, &shape, *ty, &known, seconds)?;
        if time.curve.rows.last() != passes::ROWS.last() {
            let most = time.curve.rows.last().copied().unwrap_or(0);
            notes.push(format!("{ty}: for time, no more than {most} rows"));
        }
        matrices.push(time);
    }
    progress("codecs, embedding, choice of the token");
    let width = options.hparams.n_embd;
    let codecs = rows::codecs(width)?;
    progress("a message and its answer");
    let message_ns = message::message_ns(options.make)
        .map_err(|e| notes.push(format!("a message over loopback was not measured: {e}")))
        .ok();
    let memory_gb_per_s = match options.memory_gb_per_s {
        Some(v) => v,
        None => machine::read_gb_per_s(options.threads.max(1) as usize),
    };
    let (loaded, note) = watch.others();
    notes.extend(note);
    notes.push(format!(
        "shapes: width {width}, feed-forward {}, {} heads; {:.0} s",
        options.hparams.n_ff,
        options.hparams.n_head,
        began.elapsed().as_secs_f64()
    ));
    Ok(Profile {
        format: Profile::FORMAT.into(),
        version: PROFILE_VERSION,
        machine: machine::name(),
        build: machine::build(),
        device: options.device.clone(),
        threads: options.threads,
        derived: false,
        loaded,
        notes,
        matrices,
        attention,
        layer_fixed_ns: rest.layer_ns,
        layer_value_ns,
        pass_fixed_ns: rest.pass_ns,
        embed_value_ns: rows::embed_value_ns(options.make, &shape, base)?,
        sample_value_ns: rows::sample_value_ns(options.hparams.n_vocab),
        codecs,
        message_ns,
        memory_gb_per_s,
        load_gb_per_s: options.load_gb_per_s,
        runtime_bytes: options.runtime_bytes,
        memory_bytes: options.memory_bytes,
    })
}
