//! The order in which layers and cuts are measured, and what lies between those that were.

use formats::imatrix::KINDS;
use formats::measured::{CodecPoint, TypeDamage};

use super::types::Job;

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

/// The value at `x` of the measured `points` (ascending): on a logarithmic scale between two of
/// them, at the ends the nearest. Where one of two is 0, the arithmetic mean. `None` without points.
fn between(points: &[(usize, f64)], x: usize) -> Option<f64> {
    let after = points.partition_point(|p| p.0 < x);
    let (Some(a), Some(b)) = (
        after.checked_sub(1).and_then(|i| points.get(i)),
        points.get(after),
    ) else {
        return points.get(after).or(points.last()).map(|p| p.1);
    };
    let share = (x - a.0) as f64 / (b.0 - a.0).max(1) as f64;
    if a.1 <= 0.0 || b.1 <= 0.0 {
        return Some(a.1 * (1.0 - share) + b.1 * share);
    }
    Some((a.1.ln() * (1.0 - share) + b.1.ln() * share).exp())
}

/// Adds to `damages` what is missing of `jobs`, and puts them in order.
pub(super) fn types(jobs: &[Job], damages: &mut Vec<TypeDamage>) {
    let measured = std::mem::take(damages);
    let of =
        |job: &Job, d: &TypeDamage| d.kind == KINDS[job.kind] && d.block_type == job.ty.to_string();
    for job in jobs {
        let mut points: Vec<(usize, f64)> = measured
            .iter()
            .filter(|d| of(job, d))
            .map(|d| (d.layer as usize, d.kl))
            .collect();
        points.sort_unstable_by_key(|p| p.0);
        let own = points.iter().find(|p| p.0 == job.layer);
        let Some(kl) = own.map(|p| p.1).or_else(|| between(&points, job.layer)) else {
            continue;
        };
        damages.push(TypeDamage {
            layer: job.layer as u32,
            kind: KINDS[job.kind].to_owned(),
            block_type: job.ty.to_string(),
            kl,
            fitted: own.is_none(),
        });
    }
    let kind = |d: &TypeDamage| KINDS.iter().position(|k| *k == d.kind);
    damages.sort_by_key(|d| (d.layer, kind(d)));
}

/// Adds to `points` the cuts of a model of `n_layer` layers that are missing, and puts them in
/// order.
pub(super) fn codecs(n_layer: usize, points: &mut Vec<CodecPoint>) {
    let measured = std::mem::take(points);
    for cut in 1..n_layer {
        for spec in super::CODECS {
            let mut own: Vec<&CodecPoint> = measured.iter().filter(|p| p.codec == spec).collect();
            own.sort_unstable_by_key(|p| p.cut);
            if let Some(p) = own.iter().find(|p| p.cut as usize == cut) {
                points.push((*p).clone());
                continue;
            }
            let at = |value: &dyn Fn(&CodecPoint) -> f64| {
                let known: Vec<_> = own.iter().map(|p| (p.cut as usize, value(p))).collect();
                between(&known, cut)
            };
            let bytes = at(&|p| p.bytes_per_token);
            let (Some(kl), Some(bytes_per_token)) = (at(&|p| p.kl), bytes) else {
                continue;
            };
            points.push(CodecPoint {
                cut: cut as u32,
                codec: spec.to_owned(),
                bytes_per_token,
                prompt_bytes_per_token: at(&|p| {
                    p.prompt_bytes_per_token.unwrap_or(p.bytes_per_token)
                }),
                kl,
                fitted: true,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::blocks::BlockType;

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
    fn what_is_missing_lies_between() {
        let jobs: Vec<Job> = (0..5)
            .map(|layer| Job {
                layer,
                kind: 2,
                ty: BlockType::Q3_K,
            })
            .collect();
        let damage = |layer, kl| TypeDamage {
            layer,
            kind: "attn_v".into(),
            block_type: "Q3_K".into(),
            kl,
            fitted: false,
        };
        let mut damages = vec![damage(4, 0.16), damage(0, 0.01)];
        types(&jobs, &mut damages);
        let layers: Vec<u32> = damages.iter().map(|d| d.layer).collect();
        assert_eq!(layers, [0, 1, 2, 3, 4]);
        assert!((damages[2].kl - 0.04).abs() < 1e-12, "{damages:?}");
        let fitted: Vec<bool> = damages.iter().map(|d| d.fitted).collect();
        assert_eq!(fitted, [false, true, true, true, false]);
        assert_eq!(between(&[(2, 0.0), (4, 1.0)], 3), Some(0.5));
        assert_eq!(between(&[(2, 3.0)], 7), Some(3.0));
        assert_eq!(between(&[], 7), None);
        let point = CodecPoint {
            cut: 2,
            codec: "int8".into(),
            bytes_per_token: 9.0,
            prompt_bytes_per_token: None,
            kl: 0.5,
            fitted: false,
        };
        let mut points = vec![point];
        codecs(4, &mut points);
        assert_eq!(points.iter().map(|p| p.cut).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(points[0].fitted && !points[1].fitted && points[2].kl == 0.5);
    }
}
