//! What types of weights and codecs at the cuts cost a model, for [`LayerSensitivity`].
//!
//! Each matrix is encoded as splitconv would encode it without importances, alone, and the layers
//! from it on are run over rows that were kept; likewise the rows at a cut go through a codec and
//! the layers behind it. They are taken in an order in which layers, kinds, types and cuts all have
//! their turn early, so that whenever the time is over what is missing can be estimated from what
//! is there, and is marked so. Codecs come first, then many matrices together over more of the text, then
//! the matrices one by one.
//!
//! | file | idea |
//! |---|---|
//! | `types` | one matrix in another type; many at once |
//! | `codecs` | rows through a codec at a cut |
//! | `fit` | the order, and estimates of what is missing |
//! | `wide` | how figures of a few tokens stand to those of many |

mod codecs;
mod fit;
mod types;
mod wide;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::blocks::BlockType;
use formats::imatrix::KINDS;
use formats::measured::{CodecPoint, Front, LayerSensitivity, SENSITIVITY_VERSION, TypeDamage};

use self::wide::Wider;
use super::journal::Journal;
use super::sensitivity::{Undisturbed, most_tokens, pick_pieces};
use super::windows::windows;
use crate::exec::Executor as _;
use crate::exec::cpu::CpuExecutor;
use crate::role::RunError;
use crate::text::Tokenizer;

pub use self::codecs::CODECS;

/// Tokens of a window at least, if the text has them; the second half is scored.
const PIECE: usize = 256;
/// Types that are tried, of those that a matrix allows and that make it smaller: what recipes write.
const TYPES: [BlockType; 9] = [
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::IQ4_NL,
    BlockType::Q5_K,
    BlockType::Q5_1,
    BlockType::Q6_K,
    BlockType::Q8_0,
    BlockType::IQ4_XS,
];

/// Of the time, what codecs may take, what is kept at most for groups of matrices, and what for estimates.
const CODECS_SHARE: f64 = 0.25;
const GROUPS_SHARE: f64 = 0.35;
const FIT_SHARE: f64 = 0.03;
/// Of the time, what more of the text may take, about and at most.
const WIDE_SHARE: f64 = 0.25;
const WIDE_LIMIT: f64 = 0.4;

/// What to measure on, and for how long.
#[derive(Clone, Debug)]
pub struct DamageOptions {
    /// Tokens to run, at least; half of them are scored (fewer when the text has no more).
    pub tokens: usize,
    /// Tokens of a window, at most.
    pub ctx: usize,
    /// Windows to take them from, the first of the text; `None` for all it has.
    pub chunks: Option<usize>,
    /// How long to measure; what is missing then is fitted. It is exceeded by a pass of the model
    /// at most: one figure is not interrupted.
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
/// When the text is too short, the time is over before a figure is there, a part refuses, a figure
/// is not finite, or the journal cannot be written.
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
    let windows = pick_pieces(all.clone(), options.tokens, PIECE);
    let skip = windows.first().map_or(0, Vec::len) / 2;
    let mut model = Undisturbed::run(parts, &windows, skip)?;
    // No figure takes longer than this, but for encoding a matrix.
    let pass = began.elapsed();
    let n_layer = model.layers.len();
    let hp = parts
        .first()
        .map(|p| p.hparams().clone())
        .ok_or_else(|| RunError::Request("there is no model to calibrate".into()))?;
    let (jobs, mut cuts) = (types::jobs(&model), codecs::cuts(n_layer));
    let cuts_all = cuts.len();
    let groups = types::groups(n_layer);
    let mut probed = wide::probes(n_layer);
    let tokens_run = model.before[0].len() / hp.n_embd.max(1);
    let window = all.first().map_or(1, Vec::len).max(1);
    let kept = most_tokens(parts) / window;
    if kept == 0 {
        // Windows of a very long context cannot be kept: nothing is to be had from them.
        probed.clear();
    }
    // What is measured over more of the text too is never to be estimated.
    cuts.sort_by_key(|c| !probed.contains(c));
    let mut count = Count {
        done: 0,
        of: jobs.len() + cuts.len() + probed.len() + groups.len() * if kept > 0 { 2 } else { 1 },
        progress,
    };
    let late = |share: f64| began.elapsed().as_secs_f64() > options.time.as_secs_f64() * share;

    // Codecs first: they take less, and every plan needs one.
    let mut points: Vec<CodecPoint> = Vec::new();
    let mut channels = HashMap::new();
    for (cut, spec) in cuts {
        let key = format!("codec/{cut}/{}", CODECS[spec]);
        let held: Option<CodecPoint> = journal.get(&key);
        let held = held.filter(|p| p.cut as usize == cut && p.codec == CODECS[spec]);
        let enough = late(if points.is_empty() { 1.0 } else { CODECS_SHARE });
        if held.is_none() && enough {
            continue;
        }
        let point = if let Some(p) = held {
            p
        } else {
            let known = channels.entry(cut).or_default();
            let p = codecs::measure(&mut model, cut, CODECS[spec], known)?;
            journal.put(&key, &p)?;
            p
        };
        points.push(point);
        count.one();
    }
    // Then more of the text: what a plan costs hangs on that most.
    let seconds = options.time.as_secs_f64();
    let pass = pass.as_secs_f64();
    let (n_wide, each_s) =
        wide::windows_in(WIDE_SHARE * seconds, (pass, tokens_run), journal, &all);
    let n_wide = n_wide.min(kept);
    let wide_s = each_s * n_wide as f64;
    let mut wide = Wider {
        parts,
        all,
        windows: n_wide,
        found: wide::Found::new(probed, if kept > 0 { groups.len() } else { 0 }),
    };
    // A figure of a codec takes two passes at most, one of a group must encode its matrices besides.
    let wide_pass = wide_s / wide::PASSES;
    let costs = [2.0 * wide_pass, 2.0 * wide_pass + 3.0 * pass];
    // With too little time or memory for that now, what is known already is found all the same.
    let both = n_wide * window + tokens_run <= most_tokens(parts);
    let share = if both && wide_s <= WIDE_LIMIT * seconds {
        CODECS_SHARE + WIDE_LIMIT
    } else {
        0.0
    };
    let left = |share: f64| share * seconds - began.elapsed().as_secs_f64();
    let asked = (&*groups, &*jobs);
    wide.ask(journal, asked, &|| left(share), costs, &mut count)?;
    // Groups that have no figure there get one over the few tokens. Encoding takes as long as a pass, or
    // longer.
    let groups_s = 3.0 * pass * wide.found.groups.iter().filter(|kl| kl.is_none()).count() as f64;
    let share = (1.0 - groups_s / seconds.max(1e-9)).clamp(1.0 - GROUPS_SHARE, 1.0 - FIT_SHARE);
    let mut damages: Vec<TypeDamage> = Vec::new();
    for job in &jobs {
        let key = job.key();
        let held: Option<f64> = journal.get(&key);
        let held = held.filter(|kl| (0.0..1e15).contains(kl));
        let kl = match held {
            Some(kl) => kl,
            None if late(if damages.is_empty() { 1.0 } else { share }) => continue,
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
        count.one();
    }
    if points.is_empty() && damages.is_empty() {
        return Err(RunError::Request(format!(
            "{:.0} s are over after the first pass of the model as it is, which took {:.0} s: give --seconds more, or --sensitivity fewer tokens than {}",
            seconds,
            pass,
            model.tokens()
        )));
    }
    if damages.len() < jobs.len() {
        fit::types(&jobs, &types::errors(&model, &jobs), &mut damages);
    } else {
        fit::types(&jobs, &[], &mut damages);
    }
    if points.len() < cuts_all {
        fit::codecs(&codecs::codings(&model)?, &mut points);
    } else {
        fit::codecs(&[], &mut points);
    }
    let sums: Vec<f64> = groups.iter().map(|g| g.sum(&jobs, &damages)).collect();
    let mut together: Vec<Option<f64>> = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let key = group.key();
        let held: Option<f64> = journal.get(&key);
        let mut kl = held.filter(|kl| (0.0..1e15).contains(kl));
        let widely = wide.found.groups.get(i).copied().flatten();
        if kl.is_none() && widely.is_none() {
            kl = group.measure(&mut model, &jobs, &|| late(1.0))?;
            if let Some(kl) = kl {
                journal.put(&key, &kl)?;
            }
        }
        together.push(kl);
    }
    let tokens = model.tokens() as u64;
    let few = model.surprise(&windows);
    let few = few.iter().sum::<f64>() / few.len().max(1) as f64;
    drop(model);
    // What there was no time for before, if there is now.
    wide.ask(journal, asked, &|| left(1.0), costs, &mut count)?;
    for (i, few) in together.iter().enumerate() {
        if few.is_some() || wide.found.groups.get(i).copied().flatten().is_some() {
            count.one();
        }
    }
    let surprise = wide.surprise(journal).unwrap_or(few);
    let perplexity = Some(surprise.exp()).filter(|p| LayerSensitivity::is_perplexity(*p));
    let level = wide::level(&wide.found.probes(), &points);
    for p in &mut points {
        p.kl *= level;
    }
    let quick = count.done < count.of;
    // Figures of types stay as they were measured: a factor for the front and one for the rest say how
    // they add up on more of the text.
    let factors: Vec<Option<f64>> = sums
        .iter()
        .enumerate()
        .map(|(i, sum)| {
            let few = together[i].filter(|kl| *kl > 0.0).map(|kl| kl * level);
            let many = wide.found.groups.get(i).copied().flatten();
            let kl = many.filter(|kl| *kl > 0.0).or(few)?;
            (*sum > 0.0).then(|| (kl / sum).clamp(ADDITIVITY[0], ADDITIVITY[1]))
        })
        .collect();
    let front = factors.first().copied().flatten();
    let rest = factors.get(1).copied().flatten();
    // Where there is no time for one of them, the other is the better guess.
    let level = level.clamp(ADDITIVITY[0], ADDITIVITY[1]);
    let additivity = rest.or(front).unwrap_or(level);
    let front = (factors.len() > 1).then(|| Front {
        layers: types::front(n_layer) as u32,
        additivity: front.unwrap_or(additivity),
    });
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
        tokens,
        perplexity,
        quick,
        additivity,
        front,
        types: damages,
        codecs: points,
    })
}

/// The geometric mean of `to / from` over pairs in which both are above 0; 1 where there is none.
fn mean_ratio(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    for (from, to) in pairs.filter(|(from, to)| *from > 0.0 && *to > 0.0) {
        sum += (to / from).ln();
        n += 1;
    }
    (sum / f64::from(n.max(1))).exp()
}

/// What a file can say of how figures add up.
const ADDITIVITY: [f64; 2] = [1e-3, 1e3];

/// Says how far it is.
struct Count<'a> {
    done: usize,
    of: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Count<'_> {
    fn one(&mut self) {
        self.done += 1;
        (self.progress)(self.done, self.of);
    }
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
