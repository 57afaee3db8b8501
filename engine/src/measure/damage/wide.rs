//! More of the text: how figures of a few tokens stand to those of many.
//!
//! One figure after the other is measured on a few tokens, the same for all, so that they can be
//! compared. How large they are together hangs on the text: windows of one text differ by a factor
//! of two, and so do texts. A few codecs, which need no matrix to be encoded, are therefore measured
//! on many windows as well; by what comes of them all figures of codecs are taken there. And the matrices
//! of the front, and all others, are changed together there: so figures of types are taken there, and it
//! shows how they add up. A window's divergence goes with its
//! surprise (nats per token of the model as it is): SmolLM2-135M with 25 layers in four bits
//! diverges by 0.0280 to 0.0297 of it on texts where it comes to 0.051 to 0.107 nats
//! (docs/planning.md). The mean over windows is that of logarithms of the shares, since what is
//! to be told is another text's figure within a factor.

use std::sync::Arc;

use formats::measured::CodecPoint;
use serde::{Deserialize, Serialize};

use super::codecs::{self, CODECS};
use super::types::{Group, Job};
use super::{Count, figure, finite, mean_ratio};
use crate::exec::cpu::CpuExecutor;
use crate::measure::journal::Journal;
use crate::measure::sensitivity::{Undisturbed, pick_pieces};
use crate::role::RunError;

/// The most windows.
const MOST_WINDOWS: usize = 8;
/// Passes of the model over all of them, about: as it is, of the probes and of both groups, for which
/// matrices are encoded.
pub(super) const PASSES: f64 = 5.0;

/// Windows, and the model's surprise on them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Extent {
    pub(super) windows: usize,
    /// Nats per token, mean of all windows.
    pub(super) surprise: f64,
}

impl Extent {
    /// Whether it is of `windows` windows, and a number.
    pub(super) fn is_sound(&self, windows: usize) -> bool {
        self.windows == windows && self.surprise.is_finite()
    }
}

/// How many of `all` windows there is time for when a pass over `tokens` takes `pass` seconds, or as
/// many as were `chosen` before; and how long each will take.
pub(super) fn windows_in(
    seconds: f64,
    (pass, tokens): (f64, usize),
    journal: &Journal,
    all: &[Vec<u32>],
) -> (usize, f64) {
    // A run that goes on keeps to the windows that the first has chosen.
    windows_or(seconds, (pass, tokens), journal.get(WINDOWS), all)
}

fn windows_or(
    seconds: f64,
    (pass, tokens): (f64, usize),
    chosen: Option<usize>,
    all: &[Vec<u32>],
) -> (usize, f64) {
    let len = all.first().map_or(1, Vec::len);
    let each = PASSES * pass * len as f64 / tokens.max(1) as f64;
    let fit = (seconds / each.max(1e-9)) as usize;
    let n = chosen.unwrap_or(fit).clamp(1, MOST_WINDOWS);
    (n.min(all.len().max(1)), each)
}

/// Where a journal has how many windows probes are measured on, and what was found of them.
const WINDOWS: &str = "windows";
const EXTENT: &str = "wide";

/// What was measured over more of the text.
pub(super) struct Found {
    /// Cuts and codecs, and what they cost.
    codecs: Vec<((usize, usize), Option<f64>)>,
    /// What the matrices of groups cost together.
    pub(super) groups: Vec<Option<f64>>,
}

impl Found {
    /// Nothing yet of these cuts and codecs, and so many groups.
    pub(super) fn new(probes: Vec<(usize, usize)>, groups: usize) -> Self {
        Self {
            codecs: probes.into_iter().map(|p| (p, None)).collect(),
            groups: vec![None; groups],
        }
    }

    /// Cuts, codecs and what they cost, of those that were measured.
    pub(super) fn probes(&self) -> Vec<(usize, usize, f64)> {
        let all = self.codecs.iter();
        all.filter_map(|((cut, spec), kl)| Some((*cut, *spec, (*kl)?)))
            .collect()
    }
}

/// The model over more of the text, which is run when something is first asked of it.
pub(super) struct Wider<'a> {
    pub(super) parts: &'a [Arc<CpuExecutor>],
    pub(super) all: Vec<Vec<u32>>,
    pub(super) windows: usize,
    pub(super) found: Found,
}

impl<'w> Wider<'w> {
    /// Measures what is missing, as far as there are seconds `left` for what a figure of a codec and one of
    /// a group take. What `journal` has is not measured again.
    pub(super) fn ask(
        &mut self,
        journal: &mut Journal,
        (groups, jobs): (&[Group], &[Job]),
        left: &dyn Fn() -> f64,
        [codec_s, group_s]: [f64; 2],
        count: &mut Count<'_>,
    ) -> Result<(), RunError> {
        let mut model = None;
        for i in 0..self.found.codecs.len() {
            let ((cut, spec), None) = self.found.codecs[i] else {
                continue;
            };
            let key = format!("probe/{cut}/{}", CODECS[spec]);
            let measure = |wide: &mut Wide<'_>| wide.codec(cut, spec).map(Some);
            let late = left() < codec_s;
            self.found.codecs[i].1 = self.figure(&mut model, journal, &key, late, measure)?;
            if self.found.codecs[i].1.is_some() {
                count.one();
            }
        }
        for (i, group) in groups.iter().enumerate() {
            let Some(None) = self.found.groups.get(i) else {
                continue;
            };
            let key = format!("probe/{}", group.key());
            let measure = |wide: &mut Wide<'_>| wide.group(group, jobs, &|| left() < 0.0);
            let late = left() < group_s;
            self.found.groups[i] = self.figure(&mut model, journal, &key, late, measure)?;
            if self.found.groups[i].is_some() {
                count.one();
            }
        }
        Ok(())
    }

    /// Nats per token of what `ask` has found something on.
    pub(super) fn surprise(&self, journal: &Journal) -> Option<f64> {
        let any = self.found.codecs.iter().any(|(_, kl)| kl.is_some())
            || self.found.groups.iter().any(Option::is_some);
        let extent: Option<Extent> = journal.get(EXTENT);
        let extent = extent.filter(|e| any && e.is_sound(self.windows));
        extent.map(|e| e.surprise)
    }

    /// The figure `key` that `journal` has over so many windows, else what `measure` says of `model`, which
    /// is run first if nobody has; `None` when it is `late` for that.
    fn figure(
        &self,
        model: &mut Option<Wide<'w>>,
        journal: &mut Journal,
        key: &str,
        late: bool,
        measure: impl FnOnce(&mut Wide<'w>) -> Result<Option<f64>, RunError>,
    ) -> Result<Option<f64>, RunError> {
        let key = format!("{key}/{}", self.windows);
        let held: Option<f64> = journal.get(&key);
        if let Some(kl) = held.filter(|kl| (0.0..1e15).contains(kl)) {
            return Ok(Some(kl));
        }
        if late {
            return Ok(None);
        }
        let wide = if let Some(wide) = model.take() {
            model.insert(wide)
        } else {
            let wide = Wide::run(self.parts, self.all.clone(), self.windows)?;
            journal.put(WINDOWS, &self.windows)?;
            journal.put(EXTENT, &wide.extent())?;
            model.insert(wide)
        };
        let Some(kl) = measure(wide)? else {
            return Ok(None);
        };
        let kl = finite(kl, &key)?;
        journal.put(&key, &kl)?;
        Ok(Some(kl))
    }
}

/// The model over many windows.
pub(super) struct Wide<'a> {
    model: Undisturbed<'a>,
    /// Nats per token of each window.
    surprise: Vec<f64>,
}

impl<'a> Wide<'a> {
    /// Runs `n` windows from all over the text; the second half of each is scored.
    pub(super) fn run(
        parts: &'a [Arc<CpuExecutor>],
        all: Vec<Vec<u32>>,
        n: usize,
    ) -> Result<Self, RunError> {
        let len = all.first().map_or(1, Vec::len);
        let windows = pick_pieces(all, n * len, len);
        let model = Undisturbed::run(parts, &windows, len / 2)?;
        let surprise = model.surprise(&windows);
        Ok(Self { model, surprise })
    }

    pub(super) fn extent(&self) -> Extent {
        let n = self.surprise.len();
        Extent {
            windows: n,
            surprise: figure(self.surprise.iter().sum::<f64>() / n.max(1) as f64),
        }
    }

    /// What the codec `spec` costs at the cut after `cut` layers, in windows of usual surprise.
    pub(super) fn codec(&mut self, cut: usize, spec: usize) -> Result<f64, RunError> {
        let rows = codecs::coded(&self.model, cut, CODECS[spec])?;
        self.behind(cut, rows, CODECS[spec])
    }

    /// What the matrices of `group` cost together, in windows of usual surprise; `None` when it gets
    /// `late` on the way.
    pub(super) fn group(
        &mut self,
        group: &Group,
        jobs: &[Job],
        late: &dyn Fn() -> bool,
    ) -> Result<Option<f64>, RunError> {
        let Some(rows) = group.rows(&mut self.model, jobs, late)? else {
            return Ok(None);
        };
        let kl = self.behind(group.layers.end, rows, &group.key())?;
        Ok(Some(kl))
    }

    /// The divergence of `rows` in front of layer `from`, in windows of usual surprise.
    fn behind(&mut self, from: usize, rows: Vec<f32>, what: &str) -> Result<f64, RunError> {
        let kls = self.model.behind_by_window(from, rows)?;
        let all = kls.into_iter().map(|kl| finite(kl, what));
        let kls = all.collect::<Result<Vec<f64>, _>>()?;
        Ok(figure(usual(&kls, &self.surprise)))
    }
}

/// The geometric mean of the shares of `kls` in what each window's surprise is, of the mean
/// surprise; 0 when there is none.
fn usual(kls: &[f64], surprise: &[f64]) -> f64 {
    let logs: Vec<f64> = kls
        .iter()
        .zip(surprise)
        .filter(|(kl, nats)| **kl > 0.0 && **nats > 0.0)
        .map(|(kl, nats)| (kl / nats).ln())
        .collect();
    if logs.is_empty() {
        return 0.0;
    }
    let mean = surprise.iter().sum::<f64>() / surprise.len() as f64;
    (logs.iter().sum::<f64>() / logs.len() as f64).exp() * mean
}

/// Cuts and codecs that are measured on many windows, in a model of `n_layer` layers: of all
/// families that calibration does not call odd, at four depths.
pub(super) fn probes(n_layer: usize) -> Vec<(usize, usize)> {
    let at = |fifth: usize, spec: &str| {
        let cut = (n_layer * fifth / 5).max(1);
        let spec = CODECS.iter().position(|c| *c == spec)?;
        (cut < n_layer).then_some((cut, spec))
    };
    let (tabq, tcq) = ("ts-tabq:tau=5s,delta=0,bits=5", "tcq:step=0.58");
    let mut out = Vec::new();
    let all = [at(2, tabq), at(4, tcq), at(1, tcq), at(3, tabq)];
    for probe in all.into_iter().flatten() {
        if !out.contains(&probe) {
            out.push(probe);
        }
    }
    out
}

/// By what figures of a few tokens are taken to many windows: the geometric mean over `probes`, of
/// which each has its cut, its codec and its figure there; 1 where nothing is known.
pub(super) fn level(probes: &[(usize, usize, f64)], points: &[CodecPoint]) -> f64 {
    mean_ratio(probes.iter().filter_map(|(cut, spec, wide)| {
        let own = |p: &&CodecPoint| !p.fitted && p.cut as usize == *cut && p.codec == CODECS[*spec];
        Some((points.iter().find(own)?.kl, *wide))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_another_kind_does_not_decide() {
        // Shares of 0.01, 0.02 and 0.04.
        let kl = usual(&[0.01, 0.04, 0.16], &[1.0, 2.0, 4.0]);
        assert!((kl - 0.02 * 7.0 / 3.0).abs() < 1e-12, "{kl}");
        assert!((usual(&[0.0, 0.1], &[3.0, 1.0]) - 0.2).abs() < 1e-12);
        assert_eq!(usual(&[0.0], &[1.0]), 0.0);
        assert_eq!(usual(&[], &[]), 0.0);
    }

    #[test]
    fn windows_are_as_many_as_there_is_time_for() {
        let all = vec![vec![0; 512]; 20];
        let of = |s, n| windows_or(s, (1.0, 512), None, &all[..n]);
        assert_eq!(of(90.0, 20), (8, 5.0));
        assert_eq!(of(24.0, 20), (4, 5.0));
        assert_eq!((of(0.0, 20).0, of(90.0, 2).0, of(90.0, 0).0), (1, 2, 1));
        // A second run, of whatever time, keeps to what the first has chosen.
        let again = |n| windows_or(27.0, (1.0, 512), Some(n), &all).0;
        assert_eq!((again(6), again(0), again(99)), (6, 1, 8));
    }

    #[test]
    fn all_figures_follow_the_probes() {
        let all = probes(30);
        assert_eq!(all.iter().map(|p| p.0).collect::<Vec<_>>(), [12, 24, 6, 18]);
        assert_eq!(probes(2), [(1, 2), (1, 5)]);
        assert!(probes(1).is_empty());
        let point = |cut, spec: usize, kl| CodecPoint {
            cut,
            codec: CODECS[spec].into(),
            bytes_per_token: 9.0,
            prompt_bytes_per_token: None,
            kl,
            fitted: false,
        };
        let points = [point(1, 0, 0.3), point(12, 2, 0.1), point(6, 5, 0.2)];
        // Twice and half as much; one that nobody has measured on few.
        let found = level(&[(12, 2, 0.2), (6, 5, 0.1), (24, 5, 9.0)], &points);
        assert!((found - 1.0).abs() < 1e-12);
        assert!((level(&[(12, 2, 0.2)], &points) - 2.0).abs() < 1e-12);
        assert_eq!(level(&[(24, 5, 9.0)], &points), 1.0);
    }
}
