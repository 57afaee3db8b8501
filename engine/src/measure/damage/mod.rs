//! What types of weights and codecs at the cuts cost a model, for [`LayerSensitivity`].
//!
//! Each matrix is encoded as splitconv would encode it without importances, alone, and the layers
//! from it on are run over rows that were kept; likewise the rows at a cut go through a codec and
//! the layers behind it. Layers and cuts are taken in an order that halves the gaps, so that
//! whenever the time is over those measured are spread over the model, and what is missing lies
//! between two of them: it is fitted, on a logarithmic scale, and marked so.
//!
//! | file | idea |
//! |---|---|
//! | `types` | one matrix in another type; many at once |
//! | `codecs` | rows through a codec at a cut |
//! | `fit` | the order, and what lies between |

mod codecs;
mod fit;
mod types;

use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::blocks::BlockType;
use formats::imatrix::KINDS;
use formats::measured::{CodecPoint, LayerSensitivity, SENSITIVITY_VERSION, TypeDamage};

use super::journal::Journal;
use super::sensitivity::{Undisturbed, pick_pieces};
use super::windows::windows;
use crate::exec::Executor as _;
use crate::exec::cpu::CpuExecutor;
use crate::role::RunError;
use crate::text::Tokenizer;

pub use self::codecs::CODECS;

/// Tokens of a window at least, if the text has them; the second half is scored.
const PIECE: usize = 256;
/// Types that are tried, of those that a matrix allows and that make it smaller.
const TYPES: [BlockType; 9] = [
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::IQ4_NL,
    BlockType::Q5_K,
    BlockType::Q5_1,
    BlockType::Q6_K,
    BlockType::Q8_0,
    BlockType::Q4_0,
];

/// What to measure on, and for how long.
#[derive(Clone, Debug)]
pub struct DamageOptions {
    /// Tokens to run, at least; half of them are scored (fewer when the text has no more).
    pub tokens: usize,
    /// Tokens of a window, at most.
    pub ctx: usize,
    /// Windows to take them from, the first of the text; `None` for all it has.
    pub chunks: Option<usize>,
    /// How long to measure; what is missing then is fitted. At least one layer and one cut are
    /// measured, whatever it takes.
    pub time: Duration,
    /// Names for the file.
    pub model: String,
    /// The text's name.
    pub text: String,
}

/// Measures what types and codecs cost the model in `parts`, in order. What `journal` has is not
/// measured again. `progress` hears how many figures there are, of how many.
///
/// # Errors
/// When the text is too short, a part refuses, a figure is not finite, or the journal cannot be
/// written.
pub fn damage(
    parts: &[Arc<CpuExecutor>],
    tokenizer: &Tokenizer,
    text: &str,
    options: &DamageOptions,
    journal: &mut Journal,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LayerSensitivity, RunError> {
    let began = Instant::now();
    let all = windows(tokenizer, text, options.ctx, options.chunks)?;
    let windows = pick_pieces(all, options.tokens, PIECE);
    let skip = windows.first().map_or(0, Vec::len) / 2;
    let mut model = Undisturbed::run(parts, &windows, skip)?;
    let n_layer = model.layers.len();
    let hp = parts
        .first()
        .map(|p| p.hparams().clone())
        .ok_or_else(|| RunError::Request("there is no model to calibrate".into()))?;
    let jobs = types::jobs(&model);
    let cuts = fit::spread(n_layer.saturating_sub(1));
    let total = jobs.len() + cuts.len() * CODECS.len();
    let mut done = 0;

    // Codecs first: they take less, and every plan needs one.
    let mut points: Vec<CodecPoint> = Vec::new();
    let late = |share: f64| began.elapsed().as_secs_f64() > options.time.as_secs_f64() * share;
    for cut in cuts.iter().map(|c| c + 1) {
        let mut channels = None;
        for spec in CODECS {
            let key = format!("codec/{cut}/{spec}");
            let held: Option<CodecPoint> = journal.get(&key);
            if held.is_none() && !points.is_empty() && points[0].cut != cut as u32 && late(0.4) {
                continue;
            }
            let point = if let Some(p) = held {
                p
            } else {
                let p = codecs::measure(&mut model, cut, spec, &mut channels)?;
                journal.put(&key, &p)?;
                p
            };
            points.push(point);
            done += 1;
            progress(done, total);
        }
    }
    let mut damages: Vec<TypeDamage> = Vec::new();
    let first = jobs.first().map(|j| j.layer);
    for job in &jobs {
        let key = job.key();
        let held: Option<f64> = journal.get(&key);
        let kl = match held {
            Some(kl) => kl,
            None if Some(job.layer) != first && late(0.9) => continue,
            None => {
                let kl = finite(job.measure(&mut model)?, &key)?;
                journal.put(&key, &kl)?;
                kl
            }
        };
        damages.push(TypeDamage {
            layer: job.layer as u32,
            kind: KINDS[job.kind].to_owned(),
            block_type: job.ty.to_string(),
            kl,
            fitted: false,
        });
        done += 1;
        progress(done, total);
    }
    let quick = done < total;
    fit::types(&jobs, &mut damages);
    fit::codecs(n_layer, &mut points);
    let additivity = types::additivity(&mut model, &damages)?;
    Ok(LayerSensitivity {
        format: LayerSensitivity::FORMAT.into(),
        version: SENSITIVITY_VERSION,
        model: options.model.clone(),
        n_layer: n_layer as u32,
        n_embd: hp.n_embd as u32,
        n_ff: hp.n_ff as u32,
        n_vocab: hp.n_vocab as u32,
        build: format!("splitrun {}", env!("CARGO_PKG_VERSION")),
        text: options.text.clone(),
        tokens: model.tokens() as u64,
        quick,
        additivity,
        types: damages,
        codecs: points,
    })
}

/// `kl`, not below 0, if it is a number.
fn finite(kl: f64, what: &str) -> Result<f64, RunError> {
    if kl.is_finite() {
        // Rounding can take an equal pair a hair below zero.
        return Ok(figure(kl.max(0.0)));
    }
    Err(RunError::Request(format!(
        "{what}: the model's logits are not finite; it is damaged"
    )))
}

/// To ten digits, and 0 when next to nothing: what is read from a journal again is the same
/// number then.
fn figure(v: f64) -> f64 {
    const LEAST: f64 = 1e-12;
    if v < LEAST {
        return 0.0;
    }
    format!("{v:.9e}").parse().unwrap_or(v)
}
