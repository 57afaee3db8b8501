//! What a step of codec `tcq` costs at each cut: the curve by which `auto` chooses.

use std::sync::Arc;

use formats::imatrix::Boundary;
use formats::wire::{self, Codec, Expect, KL_STEPS, Origin, PairTag, Scratch, Tcq};

use super::eval::{Scores, score};
use super::windows::windows;
use crate::exec::Executor as _;
use crate::exec::cpu::{CpuExecutor, Observer, Rows, Site};
use crate::role::RunError;
use crate::text::Tokenizer;

/// Cuts that are measured unless others are asked for; between them the curve is interpolated.
const CUTS: usize = 5;

/// What to measure on.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows of the text.
    pub windows: usize,
    /// Cuts to measure, as numbers of layers in front of them; empty for some, evenly spaced.
    pub cuts: Vec<usize>,
}

/// Keeps the rows at some cuts.
struct Keeper<'a> {
    cuts: &'a [usize],
    rows: Vec<Vec<f32>>,
}

impl Observer for Keeper<'_> {
    fn input(&mut self, _: usize, _: Site, _: Rows<'_>) {}

    fn hidden(&mut self, layers: usize, _: usize, rows: Rows<'_>) {
        for (cut, kept) in self.cuts.iter().zip(&mut self.rows) {
            if *cut == layers {
                rows.iter().for_each(|r| kept.extend_from_slice(r));
            }
        }
    }
}

/// Whether a model of `n_layer` layers can be cut at all of `cuts`.
///
/// # Errors
/// With the first that it cannot.
pub fn check_cuts(cuts: &[usize], n_layer: usize) -> Result<(), RunError> {
    chosen(cuts, n_layer).map(drop)
}

/// The cuts to measure in a model of `n_layer` layers, ascending.
fn chosen(cuts: &[usize], n_layer: usize) -> Result<Vec<usize>, RunError> {
    if let Some(bad) = cuts.iter().find(|c| !(1..n_layer).contains(*c)) {
        return Err(RunError::Usage(format!(
            "--cut {bad}: a model of {n_layer} layers can be cut after 1 to {}",
            n_layer.saturating_sub(1)
        )));
    }
    let mut cuts = if cuts.is_empty() {
        // The first and the last cut are among them, so every other lies between two.
        (0..CUTS)
            .map(|i| 1 + n_layer.saturating_sub(2) * i / (CUTS - 1))
            .collect()
    } else {
        cuts.to_vec()
    };
    cuts.sort_unstable();
    cuts.dedup();
    Ok(cuts)
}

/// Encodes and decodes `rows`, each in a frame of its own.
fn travel(
    rows: &[f32],
    width: usize,
    tcq: Tcq,
    scratch: &mut Scratch,
) -> Result<Vec<f32>, RunError> {
    let pair_tag = PairTag([0; 4]);
    let (mut frame, mut one, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for (position, row) in rows.chunks_exact(width).enumerate() {
        let origin = Origin {
            pair_tag,
            first_position: position as u32,
            width,
        };
        wire::encode(&Codec::Tcq(tcq), &origin, row, scratch, &mut frame)?;
        let expect = Expect {
            pair_tag,
            width,
            max_rows: 1,
        };
        wire::decode(&frame, &expect, scratch, &mut one)?;
        out.extend_from_slice(&one);
    }
    Ok(out)
}

/// Runs the layers behind `cut` over a whole window.
fn behind(parts: &[Arc<CpuExecutor>], cut: usize, rows: &mut [f32]) -> Result<(), RunError> {
    for exec in parts {
        let (part, hp) = (exec.part(), exec.hparams());
        for (l, weights) in part.layers.clone().zip(&part.blocks) {
            if l < cut {
                continue;
            }
            let n = rows.len() / hp.n_embd;
            let mut cache = exec.layer_cache(n).ok_or(RunError::Request(format!(
                "there is no memory for keys and values of {n} positions; lower -c"
            )))?;
            exec.forward_layer(l, weights, &mut cache, rows)?;
        }
    }
    Ok(())
}

/// Measures on the first windows of `text` how far codec `tcq` moves the model's answers, at
/// every step of [`KL_STEPS`], and writes the mean divergences into `boundary`. `progress` hears of
/// each run and how many there are.
///
/// # Errors
/// When a cut is none, the text is too short, or a part refuses.
pub fn steps(
    parts: &[Arc<CpuExecutor>],
    tokenizer: &Tokenizer,
    text: &str,
    options: &StepOptions,
    boundary: &mut Boundary,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), RunError> {
    let (Some(front), Some(last)) = (parts.first(), parts.last()) else {
        return Ok(());
    };
    let (width, n_layer) = (boundary.width, front.hparams().n_layer);
    let cuts = chosen(&options.cuts, n_layer)?;
    let windows = windows(tokenizer, text, options.ctx, Some(options.windows))?;
    let runs = windows.len() * cuts.len() * KL_STEPS.len();
    let mut scores: Vec<Scores> = Vec::new();
    scores.resize_with(cuts.len() * KL_STEPS.len(), Scores::default);
    let mut done = 0;
    for window in &windows {
        let mut kept = Keeper {
            cuts: &cuts,
            rows: vec![Vec::new(); cuts.len()],
        };
        let mut rows = Vec::new();
        front.embed(window, &mut rows)?;
        for part in parts {
            let mut cache = part.new_cache(window.len())?;
            part.forward_observed(&mut cache, &mut rows, &mut kept)?;
        }
        let scored = window.len() / 2..window.len() - 1;
        let targets = &window[scored.start + 1..=scored.end];
        let part = scored.start * width..scored.end * width;
        let (mut plain, mut coded) = (Vec::new(), Vec::new());
        last.logits(&rows[part.clone()], &mut plain)?;
        for (at, (&cut, rows)) in cuts.iter().zip(&kept.rows).enumerate() {
            let channels = boundary.at(cut).and_then(|c| c.channels(width));
            let mut scratch = Scratch::calibrated(channels);
            for (s, &step) in KL_STEPS.iter().enumerate() {
                let mut rows = travel(rows, width, Tcq { step }, &mut scratch)?;
                behind(parts, cut, &mut rows)?;
                last.logits(&rows[part.clone()], &mut coded)?;
                let total = &mut scores[at * KL_STEPS.len() + s];
                score(&plain, Some(&coded), targets, total);
                done += 1;
                progress(done, runs);
            }
        }
    }
    let measured: Vec<f64> = scores.iter().map(|s| s.kl().mean).collect();
    boundary.kl = (1..n_layer)
        .flat_map(|cut| (0..KL_STEPS.len()).map(move |s| (cut, s)))
        .map(|(cut, s)| between(&cuts, &measured[s..], cut) as f32)
        .collect();
    Ok(())
}

/// The measured value at `cut`, every second of `values` being one of `cuts`: between two of them
/// their weighted geometric mean, outside 0, which stands for not measured.
fn between(cuts: &[usize], values: &[f64], cut: usize) -> f64 {
    let value = |i: usize| values[i * KL_STEPS.len()];
    let after = cuts.partition_point(|c| *c < cut);
    if cuts.get(after) == Some(&cut) {
        return value(after);
    }
    if after == 0 || after == cuts.len() {
        return 0.0;
    }
    let (a, b) = (cuts[after - 1], cuts[after]);
    let share = (cut - a) as f64 / (b - a) as f64;
    let ln = |i: usize| libm::log(value(i));
    libm::exp(ln(after - 1) * (1.0 - share) + ln(after) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_spread_and_checked() {
        assert_eq!(chosen(&[], 30).unwrap(), [1, 8, 15, 22, 29]);
        assert_eq!(chosen(&[], 3).unwrap(), [1, 2]);
        assert_eq!(chosen(&[7, 2, 7], 30).unwrap(), [2, 7]);
        for bad in [0, 30] {
            assert!(chosen(&[bad], 30).is_err());
        }
    }

    #[test]
    fn values_between_cuts_are_interpolated() {
        let values = [1.0, 9.0, 4.0, 9.0];
        let at = |cut| between(&[2, 4], &values, cut);
        assert_eq!((at(1), at(2), at(4), at(9)), (0.0, 1.0, 4.0, 0.0));
        assert!((at(3) - 2.0).abs() < 1e-12);
    }
}
