//! Which codecs there are at a cut, what they take and what they cost.

use formats::measured::{CodecPoint, LayerSensitivity};
use formats::wire::{Codec, CutStatistics, KL_STEPS};

/// A codec at one cut.
#[derive(Clone, Debug, PartialEq)]
pub struct CodecChoice {
    /// As `--codec` takes it.
    pub spec: String,
    /// Bytes of a complete frame of one row, mean.
    pub bytes_per_token: f64,
    /// Bytes a row in frames of a prompt, mean.
    pub prompt_bytes_per_token: f64,
    /// Divergence it adds, nats per token.
    pub kl: f64,
}

/// Bytes of a frame of one row that are no codes (`docs/wire-format.md`).
const FRAME_BYTES: f64 = 16.0;

/// Codecs that need no calibration: SPEC, bytes per value beside [`FRAME_BYTES`], nats. Measured
/// on SmolLM2-135M-Instruct at several cuts (`docs/wire-format.md`, the table of `ts-tabq`); those
/// of six and eight bits are scaled from five by a factor of four in KL a bit.
const PLAIN: [(&str, f64, f64); 6] = [
    ("f16", 2.0, 0.0),
    ("int8", 1.0, 0.0012),
    ("ts-tabq:tau=5s,delta=0,bits=8", 1.07, 0.0001),
    ("ts-tabq:tau=5s,delta=0,bits=6", 0.82, 0.0012),
    ("ts-tabq:tau=5s,delta=0,bits=5", 0.69, 0.005),
    ("ts-tabq:tau=4s,delta=0,bits=4", 0.60, 0.016),
];

/// Steps of `tcq` that are offered on a calibrated pair.
const STEPS: [f32; 7] = [0.2, 0.3, 0.4, 0.58, 0.8, 1.0, 1.4];

/// The codecs at the cut after `cut` layers, for rows of `width` values. `calibrated` is what the
/// importance matrix says of the cut: only then can a pair use `tcq`. What `measured` knows of
/// this cut, or of the nearest that it knows, stands in place of all else.
pub fn at(
    cut: u32,
    width: usize,
    calibrated: Option<&CutStatistics>,
    measured: Option<&LayerSensitivity>,
) -> Vec<CodecChoice> {
    let needs_calibration = |spec: &str| spec.parse::<Codec>().is_ok_and(|c| c.needs_calibration());
    let choice = |spec: String, per_value: f64, kl: f64| {
        let codes = per_value * width as f64;
        CodecChoice {
            spec,
            bytes_per_token: codes + FRAME_BYTES,
            prompt_bytes_per_token: codes + 4.0,
            kl,
        }
    };
    if let Some(measured) = measured {
        let usable = |spec: &str| {
            spec.parse::<Codec>().is_ok() && (calibrated.is_some() || !needs_calibration(spec))
        };
        let points: Vec<&CodecPoint> = (measured.codecs.iter())
            .filter(|c| usable(&c.codec))
            .collect();
        // The nearest cut that was measured, most often this one.
        let cuts = points.iter().map(|c| c.cut);
        let nearest = cuts.min_by_key(|c| (c.abs_diff(cut), *c));
        let mut found: Vec<CodecChoice> = (points.iter())
            .filter(|c| Some(c.cut) == nearest)
            .map(|c| CodecChoice {
                spec: c.codec.clone(),
                bytes_per_token: c.bytes_per_token,
                prompt_bytes_per_token: c.prompt_bytes_per_token.unwrap_or(c.bytes_per_token),
                kl: c.kl,
            })
            .collect();
        if !found.is_empty() {
            // Calibration does not measure it: it costs next to nothing.
            if found.iter().all(|c| c.spec != "f16") {
                found.push(choice("f16".to_owned(), 2.0, 0.0));
            }
            return found;
        }
    }
    let plain = PLAIN
        .iter()
        .map(|(s, bytes, kl)| choice((*s).to_owned(), *bytes, *kl));
    let curve = calibrated.map(tcq_curve);
    let steps = STEPS.iter().filter_map(|step| {
        let (scale, power) = curve?;
        let s = f64::from(*step);
        // Ideal code lengths fall by 0.94 bits an octave of the step (docs/wire-format.md).
        let bits = (2.45 - 0.94 * s.log2()).max(0.1);
        Some(choice(
            format!("tcq:step={step}"),
            bits / 8.0,
            scale * s.powf(power),
        ))
    });
    plain.chain(steps).collect()
}

/// Nats of `tcq` as `scale · step^power`: through the two steps that calibration measured, else
/// as measured on SmolLM2-135M-Instruct cut at 10 (`docs/wire-format.md`).
fn tcq_curve(cut: &CutStatistics) -> (f64, f64) {
    let prior = (0.0185, 2.15);
    let [Some(a), Some(b)] = [cut.kl.first(), cut.kl.get(1)] else {
        return prior;
    };
    let (a, b) = (f64::from(*a), f64::from(*b));
    if !(a > 0.0 && b > 0.0 && a.is_finite() && b.is_finite()) {
        return prior;
    }
    let [s0, s1] = KL_STEPS.map(f64::from);
    let power = ((b / a).ln() / (s1 / s0).ln()).max(1.0);
    (b / s1.powf(power), power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcq_only_where_a_pair_can_use_it() {
        let has_tcq = |c: &[CodecChoice]| c.iter().any(|c| c.spec.starts_with("tcq"));
        let plain = at(3, 576, None, None);
        assert!(!has_tcq(&plain));
        assert!(plain.iter().all(|c| c.spec.parse::<Codec>().is_ok()));
        let cut = CutStatistics {
            mean: vec![0.0; 576],
            sigma: vec![1.0; 576],
            kl: vec![0.002, 0.02],
        };
        let all = at(3, 576, Some(&cut), None);
        let one = all.iter().find(|c| c.spec == "tcq:step=1").unwrap();
        assert!((one.kl - 0.02).abs() < 1e-6);
        let finer = all.iter().find(|c| c.spec == "tcq:step=0.4").unwrap();
        assert!((finer.kl - 0.002).abs() < 1e-6);
        assert!(finer.bytes_per_token > one.bytes_per_token);
        // 176.6 bytes were measured at step 1.
        assert!((one.bytes_per_token - 176.6).abs() < 20.0, "{one:?}");
    }

    #[test]
    fn what_was_measured_at_a_cut_replaces_what_is_stated() {
        let point = |codec: &str| CodecPoint {
            cut: 3,
            codec: codec.into(),
            bytes_per_token: 400.0,
            prompt_bytes_per_token: Some(380.0),
            kl: 0.1,
            fitted: false,
        };
        let measured = LayerSensitivity {
            codecs: vec![
                point("int8"),
                point("tcq:step=0.4"),
                point("from-the-future"),
            ],
            ..super::super::harm::tests::nothing_measured(6)
        };
        let found = at(3, 576, None, Some(&measured));
        // And f16, which nobody need measure.
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].spec.as_str(), found[0].kl), ("int8", 0.1));
        assert_eq!((found[1].spec.as_str(), found[1].kl), ("f16", 0.0));
        assert_eq!(at(2, 576, None, Some(&measured)), found);
        let unusable = LayerSensitivity {
            codecs: vec![point("tcq:step=0.4")],
            ..measured
        };
        assert_eq!(at(3, 576, None, Some(&unusable)).len(), PLAIN.len());
    }
}
