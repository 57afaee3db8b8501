//! The order in which figures are measured, and what those that are missing are expected to be.
//!
//! A figure is a cell of a table: a layer, a kind of matrix and a type, or a cut and a codec. Cells
//! are taken so that whenever the time is over, layers, kinds and types have all had their turn.
//! The logarithm of a missing one is the best linear estimate from those that are there (kriging,
//! or the mean of a Gaussian process; Rasmussen and Williams 2006, chapter 2): figures of the same
//! kind, the same type and of near layers are alike, each as far as stated here.

use std::collections::HashMap;

use formats::blocks::BlockType;
use formats::imatrix::KINDS;
use formats::measured::{CodecPoint, TypeDamage};

use super::CODECS;
use super::codecs::{Coding, family};
use super::types::Job;

/// The least figure whose logarithm says something.
const LEAST: f64 = 1e-9;
/// The most figures that are looked at for one estimate.
const MOST: usize = 800;
/// Layers after which figures have little to do with each other any more.
const REACH: f64 = 4.0;
/// Layers at the front of which all kinds are measured first.
const EARLY: usize = 3;
/// Variance of a figure that nothing explains.
const OWN: f64 = 0.02;

/// Variances of logarithms: how much figures differ by what they are about.
#[derive(Clone, Copy, Debug)]
struct Spread {
    kind: f64,
    variant: f64,
    place: f64,
    /// Of a kind at a place, beyond what either says.
    kind_at_place: f64,
    /// Of a kind in a type, likewise.
    kind_in_variant: f64,
}

const OF_TYPES: Spread = Spread {
    kind: 0.7,
    variant: 0.1,
    place: 0.3,
    kind_at_place: 0.3,
    kind_in_variant: 0.03,
};
/// Of codecs the family is the kind.
const OF_CODECS: Spread = Spread {
    kind: 0.5,
    variant: 0.05,
    place: 0.05,
    kind_at_place: 0.5,
    kind_in_variant: 0.0,
};

/// What a figure is about.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    /// Layer or cut.
    place: usize,
    kind: usize,
    /// Type or codec.
    variant: usize,
    /// The logarithm that is expected beforehand, but for a common summand.
    trend: f64,
}

impl Spread {
    fn covariance(&self, a: &Cell, b: &Cell) -> f64 {
        let near = (-(a.place.abs_diff(b.place) as f64) / REACH).exp();
        let same = |a: usize, b: usize| if a == b { 1.0 } else { 0.0 };
        let (kind, variant) = (same(a.kind, b.kind), same(a.variant, b.variant));
        kind * self.kind
            + variant * self.variant
            + near * self.place
            + kind * near * self.kind_at_place
            + kind * variant * self.kind_in_variant
    }

    /// Estimates of `missing` from what is `known`; empty when nothing is.
    ///
    /// A figure of nothing has no logarithm and is no observation of a small one: a type may leave a
    /// matrix as it was, and says nothing of its neighbours then. Where something was changed and
    /// nothing came of it, nothing is expected of other variants either.
    fn estimates(&self, known: &[(Cell, f64)], missing: &[Cell]) -> Vec<f64> {
        if !known.iter().any(|(cell, _)| cell.trend.is_finite()) {
            return Vec::new();
        }
        let (told, nothing): (Vec<_>, Vec<_>) = known
            .iter()
            .filter(|(cell, _)| cell.trend.is_finite())
            .partition(|(_, v)| *v > LEAST);
        let same = |a: &Cell, b: &Cell| a.place == b.place && a.kind == b.kind;
        let matters = |cell: &Cell| {
            cell.trend.is_finite()
                && (told.iter().any(|(k, _)| same(k, cell))
                    || !nothing.iter().any(|(k, _)| same(k, cell)))
        };
        if told.is_empty() {
            return vec![0.0; missing.len()];
        }
        let logs: Vec<f64> = told.iter().map(|(cell, v)| v.ln() - cell.trend).collect();
        let mean = logs.iter().sum::<f64>() / logs.len() as f64;
        let n = told.len();
        let mut matrix = vec![vec![0.0; n]; n];
        for (i, (a, _)) in told.iter().enumerate() {
            for (j, (b, _)) in told[..=i].iter().enumerate() {
                matrix[i][j] = self.covariance(a, b);
            }
            matrix[i][i] += OWN;
        }
        let weights = solve(matrix, logs.iter().map(|l| l - mean).collect());
        let estimate = |cell: &Cell| {
            if !matters(cell) {
                return 0.0;
            }
            let explained: f64 = told
                .iter()
                .zip(&weights)
                .map(|((other, _), w)| w * self.covariance(cell, other))
                .sum();
            let v = (mean + cell.trend + explained).exp();
            if v > LEAST { v } else { 0.0 }
        };
        missing.iter().map(estimate).collect()
    }
}

/// Solves `matrix · x = right` by Cholesky's method; `matrix` is positive definite, its lower half
/// is given.
fn solve(mut matrix: Vec<Vec<f64>>, right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    let mut x = right;
    for i in 0..n {
        let (done, rest) = matrix.split_at_mut(i);
        let row = &mut rest[0];
        for (j, other) in done.iter().enumerate() {
            let dot: f64 = row[..j].iter().zip(&other[..j]).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - dot) / other[j];
        }
        let dot: f64 = row[..i].iter().map(|v| v * v).sum();
        // Own variances keep it well above zero.
        row[i] = (row[i] - dot).max(OWN / 2.0).sqrt();
        let dot: f64 = row[..i].iter().zip(&x).map(|(a, b)| a * b).sum();
        x[i] = (x[i] - dot) / row[i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|j| matrix[j][i] * x[j]).sum();
        x[i] = (x[i] - dot) / matrix[i][i];
    }
    x
}

/// The numbers below `n`: the first, the last, then always the middle of the largest gap.
pub(super) fn spread(n: usize) -> Vec<usize> {
    let mut taken: Vec<usize> = Vec::new();
    let mut out = Vec::new();
    for end in [Some(0), n.checked_sub(1)].into_iter().flatten() {
        if end < n && !taken.contains(&end) {
            taken.push(end);
            out.push(end);
        }
    }
    taken.sort_unstable();
    while out.len() < n {
        let gaps = taken.windows(2).enumerate();
        // The first of the largest gaps.
        let widest = gaps.max_by_key(|(i, g)| (g[1] - g[0], std::cmp::Reverse(*i)));
        let Some((at, middle)) = widest.map(|(i, g)| (i + 1, usize::midpoint(g[0], g[1]))) else {
            break;
        };
        taken.insert(at, middle);
        out.push(middle);
    }
    out
}

/// All types of `allowed[layer][kind]`: one of each kind in the last layer and the first ones, all of the
/// last and the first, then in the first round one matrix of each layer in one type, always another kind and another type, until
/// all have had their turn.
pub(super) fn order(allowed: &[Vec<Vec<BlockType>>]) -> Vec<Job> {
    let kinds = KINDS.len();
    let most = allowed.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let layers = spread(allowed.len());
    let mut out: Vec<Job> = Vec::new();
    // The last layer is like no other, nor are the first, of which small edges are made.
    let mut ends: Vec<usize> = layers.iter().take(2).copied().collect();
    ends.extend((1..EARLY.min(allowed.len())).filter(|l| !layers[..2].contains(l)));
    for layer in ends {
        for (kind, types) in allowed[layer].iter().enumerate() {
            if let Some(&ty) = types.get((kind + layer) % types.len().max(1)) {
                out.push(Job { layer, kind, ty });
            }
        }
    }
    // Behind the last layer there is none to be run: all of its types cost little. And what the first costs is
    // most of what a small edge does.
    let last = allowed.len().saturating_sub(1);
    for layer in [last, 0] {
        for (kind, types) in allowed.get(layer).into_iter().flatten().enumerate() {
            for &ty in types {
                let job = Job { layer, kind, ty };
                if !out.contains(&job) {
                    out.push(job);
                }
            }
        }
    }
    let ends = out.clone();
    for turn in 0..kinds * most {
        for (at, &layer) in layers.iter().enumerate() {
            let kind = (turn + at) % kinds;
            let Some(types) = allowed[layer].get(kind) else {
                continue;
            };
            let round = turn / kinds;
            if round < types.len() {
                let ty = types[(round + at / kinds + kind) % types.len()];
                let job = Job { layer, kind, ty };
                if !ends.contains(&job) {
                    out.push(job);
                }
            }
        }
    }
    out
}

/// The logarithm of the squared error that is expected of a type: each bit halves errors.
pub(super) fn by_bits(ty: BlockType) -> f64 {
    -2.0 * std::f64::consts::LN_2 * ty.bits_per_weight()
}

/// The known figures that matter most for cells of `kind`.
fn relevant(known: &[(Cell, f64)], kind: usize) -> Vec<(Cell, f64)> {
    if known.len() <= MOST {
        return known.to_vec();
    }
    let mut own: Vec<_> = known.iter().filter(|(c, _)| c.kind == kind).collect();
    if own.is_empty() {
        own = known.iter().collect();
    }
    let step = own.len().div_ceil(MOST).max(1);
    own.into_iter().step_by(step).copied().collect()
}

/// Adds to `damages` what is missing of `jobs`, and puts them in order. `errors` are the logarithms
/// of the squared errors of the jobs, with which divergences go.
pub(super) fn types(jobs: &[Job], errors: &[f64], damages: &mut Vec<TypeDamage>) {
    let kind_of = |d: &TypeDamage| KINDS.iter().position(|k| *k == d.kind);
    let type_of = |d: &TypeDamage| d.block_type.parse::<BlockType>().map(BlockType::id).ok();
    let key = |j: &Job| (j.layer, j.kind, j.ty.id());
    let measured: HashMap<(usize, usize, u32), f64> = damages
        .iter()
        .filter_map(|d| Some(((d.layer as usize, kind_of(d)?, type_of(d)?), d.kl)))
        .collect();
    let cells: Vec<(Job, Cell)> = jobs
        .iter()
        .zip(errors)
        .map(|(job, error)| {
            let cell = Cell {
                place: job.layer,
                kind: job.kind,
                variant: job.ty.id() as usize,
                trend: *error,
            };
            (*job, cell)
        })
        .collect();
    let known: Vec<(Cell, f64)> = cells
        .iter()
        .filter_map(|(job, cell)| Some((*cell, *measured.get(&key(job))?)))
        .collect();
    for (kind, name) in KINDS.iter().enumerate() {
        let missing: Vec<&(Job, Cell)> = cells
            .iter()
            .filter(|(job, _)| job.kind == kind && !measured.contains_key(&key(job)))
            .collect();
        if missing.is_empty() {
            continue;
        }
        let of: Vec<Cell> = missing.iter().map(|m| m.1).collect();
        let found = OF_TYPES.estimates(&relevant(&known, kind), &of);
        for ((job, _), kl) in missing.into_iter().zip(found) {
            damages.push(TypeDamage {
                layer: job.layer as u32,
                kind: (*name).to_owned(),
                block_type: job.ty.to_string(),
                kl,
                fitted: true,
            });
        }
    }
    damages.sort_by_key(|d| (d.layer, kind_of(d), type_of(d)));
}

/// Adds to `points` those of `codings` that were not measured, and puts them in order. Divergences
/// go with the errors of the rows; bytes need no estimate. Codecs that were measured nowhere stay
/// out.
pub(super) fn codecs(codings: &[Coding], points: &mut Vec<CodecPoint>) {
    let place_of = |spec: &str| CODECS.iter().position(|c| *c == spec);
    let measured: HashMap<(usize, usize), f64> = points
        .iter()
        .filter_map(|p| Some(((p.cut as usize, place_of(&p.codec)?), p.kl)))
        .collect();
    let cell = |c: &Coding| Cell {
        place: c.cut,
        kind: family(c.spec),
        variant: c.spec,
        trend: c.error,
    };
    let known: Vec<(Cell, f64)> = codings
        .iter()
        .filter_map(|c| Some((cell(c), *measured.get(&(c.cut, c.spec))?)))
        .collect();
    let missing: Vec<&Coding> = codings
        .iter()
        .filter(|c| !measured.contains_key(&(c.cut, c.spec)))
        .filter(|c| known.iter().any(|(k, _)| k.variant == c.spec))
        .collect();
    let cells: Vec<Cell> = missing.iter().map(|c| cell(c)).collect();
    let kls = OF_CODECS.estimates(&relevant(&known, usize::MAX), &cells);
    for (coding, kl) in missing.into_iter().zip(kls) {
        points.push(CodecPoint {
            cut: coding.cut as u32,
            codec: CODECS[coding.spec].to_owned(),
            bytes_per_token: coding.bytes[0],
            prompt_bytes_per_token: Some(coding.bytes[1]),
            kl,
            fitted: true,
        });
    }
    points.sort_by_key(|p| (p.cut, place_of(&p.codec)));
}

#[cfg(test)]
mod tests {
    use super::super::codecs::cuts;
    use super::*;

    fn bits_of(jobs: &[Job]) -> Vec<f64> {
        jobs.iter().map(|j| by_bits(j.ty)).collect()
    }

    #[test]
    fn gaps_are_halved() {
        assert_eq!(spread(9), [0, 8, 4, 2, 6, 1, 3, 5, 7]);
        assert_eq!(spread(2), [0, 1]);
        assert_eq!(spread(1), [0]);
        assert!(spread(0).is_empty());
        let mut all = spread(37);
        all.sort_unstable();
        assert_eq!(all, (0..37).collect::<Vec<_>>());
    }

    #[test]
    fn all_have_their_turn_and_each_once() {
        use BlockType::{IQ4_NL, Q2_K, Q3_K};
        // Layers of the same types, one matrix has another number of them.
        let mut allowed = vec![vec![vec![Q2_K, Q3_K]; KINDS.len()]; 20];
        for layer in &mut allowed {
            layer[6].push(IQ4_NL);
        }
        let jobs = order(&allowed);
        assert_eq!(jobs.len(), 20 * 15);
        let set = |f: &dyn Fn(&Job) -> usize, n: usize| {
            let all: std::collections::BTreeSet<usize> = jobs[44..44 + n].iter().map(f).collect();
            all.len()
        };
        assert!(jobs[..28].iter().all(|j| j.layer < 3 || j.layer == 19));
        // All types of the last layer and the first.
        assert!(jobs[28..36].iter().all(|j| j.layer == 19));
        assert!(jobs[36..44].iter().all(|j| j.layer == 0));
        assert_eq!(order(&allowed[..1]).len(), 15);
        // Of the next twenty nearly each is of another layer, of which the last has nothing left, and all
        // kinds and types are among them.
        assert!(set(&|j| j.layer, 20) >= 17);
        assert_eq!(set(&|j| j.kind, 20), 7);
        assert!(set(&|j| j.ty.id() as usize, 20) >= 2);
        for (i, a) in jobs.iter().enumerate() {
            assert!(jobs[..i].iter().all(|b| a != b), "{a:?} twice");
        }
        let points = cuts(9);
        assert_eq!(points.len(), 8 * CODECS.len());
        assert!(points[..CODECS.len()].iter().all(|p| p.0 == 4));
        let rest = &points[CODECS.len()..][..7];
        let cuts_of: std::collections::BTreeSet<usize> = rest.iter().map(|p| p.0).collect();
        assert_eq!(cuts_of.len(), 7);
        // The codec that others say least of comes first at every cut.
        assert!(rest.iter().all(|p| CODECS[p.1] == "int8"));
        assert!(cuts(1).is_empty());
    }

    #[test]
    fn linear_equations() {
        let x = solve(
            vec![
                vec![4.0, 0.0, 0.0],
                vec![2.0, 5.0, 0.0],
                vec![1.0, 3.0, 6.0],
            ],
            vec![11.0, 21.0, 25.0],
        );
        let want = [1.0, 2.0, 3.0];
        assert!(
            x.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12),
            "{x:?}"
        );
    }

    #[test]
    fn what_is_missing_lies_between() {
        let job = |layer, ty| Job { layer, kind: 2, ty };
        let jobs: Vec<Job> = (0..5).map(|l| job(l, BlockType::Q3_K)).collect();
        let damage = |layer, kl| TypeDamage {
            layer,
            kind: "attn_v".into(),
            block_type: "Q3_K".into(),
            kl,
            fitted: false,
        };
        let mut damages = vec![damage(4, 0.16), damage(0, 0.01)];
        types(&jobs, &bits_of(&jobs), &mut damages);
        let layers: Vec<u32> = damages.iter().map(|d| d.layer).collect();
        assert_eq!(layers, [0, 1, 2, 3, 4]);
        assert!((damages[2].kl - 0.04).abs() < 1e-12, "{damages:?}");
        let fitted: Vec<bool> = damages.iter().map(|d| d.fitted).collect();
        assert_eq!(fitted, [false, true, true, true, false]);
        assert!(damages.is_sorted_by(|a, b| a.kl < b.kl), "{damages:?}");
        // A type that was not measured anywhere: a bit more is a quarter.
        let jobs = [job(0, BlockType::Q3_K), job(0, BlockType::Q4_K)];
        let mut damages = vec![damage(0, 0.01)];
        types(&jobs, &bits_of(&jobs), &mut damages);
        let bits = BlockType::Q4_K.bits_per_weight() - BlockType::Q3_K.bits_per_weight();
        assert!((damages[1].kl / 0.01 - 0.25_f64.powf(bits)).abs() < 1e-6);
        // What was measured stays.
        assert!(!damages[0].fitted && damages[0].kl == 0.01);
        let mut nothing = Vec::new();
        types(&jobs, &bits_of(&jobs), &mut nothing);
        assert!(nothing.is_empty());
    }

    /// Codings of a model of `n_layer` layers whose errors are `error` of cut and codec.
    fn codings(n_layer: usize, error: impl Fn(usize, usize) -> f64) -> Vec<Coding> {
        let one = |cut: usize, spec: usize| Coding {
            cut,
            spec,
            bytes: [10.0 * cut as f64 + spec as f64, 7.0],
            error: error(cut, spec).ln(),
        };
        (1..n_layer)
            .flat_map(|cut| (0..CODECS.len()).map(move |spec| one(cut, spec)))
            .collect()
    }

    fn point(cut: usize, spec: usize, kl: f64) -> CodecPoint {
        CodecPoint {
            cut: cut as u32,
            codec: CODECS[spec].into(),
            bytes_per_token: 9.0,
            prompt_bytes_per_token: None,
            kl,
            fitted: false,
        }
    }

    #[test]
    fn cuts_between_and_beyond() {
        let even = |n| codings(n, |_, _| 0.01);
        let mut points = vec![point(2, 0, 0.5)];
        codecs(&even(4), &mut points);
        assert_eq!(points.iter().map(|p| p.cut).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(points[0].fitted && !points[1].fitted);
        assert!((points[2].kl - 0.5).abs() < 1e-12);
        // Bytes are those of the cut, and what was measured stays.
        let bytes: Vec<f64> = points.iter().map(|p| p.bytes_per_token).collect();
        assert_eq!(bytes, [10.0, 9.0, 30.0]);
        // A cut where everything costs more, known by one codec: the others do so too, those of its
        // family most.
        let mut points = vec![
            point(2, 1, 0.01),
            point(2, 2, 0.01),
            point(2, 4, 0.01),
            point(9, 1, 0.04),
        ];
        codecs(&even(10), &mut points);
        let of = |cut: u32, spec: usize| {
            let mut found = points.iter();
            found
                .find(|p| p.cut == cut && p.codec == CODECS[spec])
                .unwrap()
        };
        assert!(of(9, 2).fitted && of(9, 2).kl > 1.5 * of(2, 2).kl);
        assert!(of(9, 4).kl > 1.01 * of(2, 4).kl && of(9, 4).kl < of(9, 2).kl);
        assert_eq!(points.len(), 27);
    }

    #[test]
    fn what_a_codec_costs_goes_with_the_error_of_the_rows() {
        // The cost is three times the error, whatever codec and cut; a tenth is measured.
        let error = |cut: usize, spec: usize| 1e-4 * (1 + spec * spec + cut % 7) as f64;
        let codings = codings(30, error);
        let mut points: Vec<CodecPoint> = cuts(30)[..24]
            .iter()
            .map(|(cut, spec)| point(*cut, *spec, 3.0 * error(*cut, *spec)))
            .collect();
        codecs(&codings, &mut points);
        assert_eq!(points.len(), codings.len());
        for (p, c) in points.iter().zip(&codings) {
            let off = (p.kl / (3.0 * error(c.cut, c.spec))).ln().abs();
            assert!(off < 1e-6, "{p:?} {off}");
        }
    }

    #[test]
    fn figures_of_nothing_pull_nothing_down() {
        let job = |layer, kind, ty| Job { layer, kind, ty };
        let (q2, q3) = (BlockType::Q2_K, BlockType::Q3_K);
        let jobs = [
            job(0, 1, q2),
            job(0, 1, q3),
            job(1, 1, q2),
            job(1, 1, q3),
            job(2, 1, q2),
            job(2, 1, q3),
            job(3, 1, q2),
        ];
        let damage = |layer, ty: BlockType, kl| TypeDamage {
            layer,
            kind: KINDS[1].into(),
            block_type: ty.to_string(),
            kl,
            fitted: false,
        };
        // Q3_K leaves the matrix of layer 0 as it was, and layer 2 does not matter at all. Q2_K
        // would change nothing in layer 3.
        let none = f64::NEG_INFINITY;
        let errors = [-2.0, none, -2.0, -4.0, -2.0, -4.0, none];
        let mut damages = vec![damage(0, q3, 0.0), damage(1, q3, 0.01), damage(2, q2, 0.0)];
        types(&jobs, &errors, &mut damages);
        let kl = |layer, ty: BlockType| {
            let mut all = damages.iter();
            let ty = ty.to_string();
            all.find(|d| d.layer == layer && d.block_type == ty)
                .unwrap()
                .kl
        };
        let want = 0.01 * 2_f64.exp();
        assert!((kl(1, q2) - want).abs() < 1e-9, "{damages:?}");
        assert!((kl(0, q2) - want).abs() < 1e-9, "{damages:?}");
        assert_eq!((kl(2, q3), kl(3, q2)), (0.0, 0.0));
        // All that was measured is nothing: so is the rest.
        let mut damages = vec![damage(0, q2, 0.0)];
        types(&jobs, &errors, &mut damages);
        assert!(damages.len() == jobs.len() && damages.iter().all(|d| d.kl == 0.0));
    }

    #[test]
    fn a_table_is_completed_from_a_seventh_of_it() {
        // ln kl = kind + type + a smooth curve over the layers, as models have it.
        let types = [BlockType::Q2_K, BlockType::Q3_K, BlockType::Q4_K];
        let allowed = vec![vec![types.to_vec(); KINDS.len()]; 24];
        let value = |j: &Job| {
            let wave = (j.layer as f64 / 5.0).sin();
            (-2.0 - 0.4 * j.kind as f64 - 1.3 * j.ty.bits_per_weight() + 0.8 * wave).exp()
        };
        let jobs = order(&allowed);
        let damage = |j: &Job| TypeDamage {
            layer: j.layer as u32,
            kind: KINDS[j.kind].into(),
            block_type: j.ty.to_string(),
            kl: value(j),
            fitted: false,
        };
        // Besides the other types of the last layer and the first, which say little of the rest.
        let ends = 2 * 2 * KINDS.len();
        let some = jobs.len() / 7 + ends;
        let mut damages: Vec<_> = jobs[..some].iter().map(damage).collect();
        super::types(&jobs, &bits_of(&jobs), &mut damages);
        assert_eq!(damages.len(), jobs.len());
        let all: f64 = jobs.iter().map(value).sum();
        let sum: f64 = damages.iter().map(|d| d.kl).sum();
        assert!((sum / all).ln().abs() < 0.1, "{sum} {all}");
        for d in damages.iter().filter(|d| d.fitted) {
            let own = jobs.iter().find(|j| {
                j.layer as u32 == d.layer
                    && KINDS[j.kind] == d.kind
                    && j.ty.to_string() == d.block_type
            });
            let off = (d.kl / value(own.unwrap())).ln().abs();
            assert!(off < 0.7, "{d:?} {off}");
        }
    }
}
