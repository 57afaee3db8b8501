//! Statistics of the rows at a pair's cut, which both halves carry.

use std::sync::Arc;

use super::{Channels, Tcq};

/// The steps of codec `tcq` at which calibration measures divergence.
pub const KL_STEPS: [f32; 2] = [0.4, 1.0];

/// What calibration knows of the rows at the cut.
#[derive(Clone, Debug, PartialEq)]
pub struct CutStatistics {
    /// Mean of each channel.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel.
    pub sigma: Vec<f32>,
    /// Mean KL divergence, in nats, with codec `tcq` at the steps
    /// [`KL_STEPS`]; empty when it was not measured.
    pub kl: Vec<f32>,
}

impl CutStatistics {
    /// The channels as a codec wants them, for rows of `width`; `None` when the numbers are not
    /// those of such rows.
    pub fn channels(&self, width: usize) -> Option<Arc<Channels>> {
        let channels = Channels::new(&self.mean, &self.sigma)?;
        (channels.width() == width).then(|| Arc::new(channels))
    }

    /// The largest step of codec `tcq` that was predicted to keep the mean KL below `max_kl`
    /// nats: a power law through each two neighbours of the measured steps, and no more than twice
    /// the largest of them. `None` when nothing was measured, or no step is small enough.
    pub fn step_for(&self, max_kl: f32) -> Option<Tcq> {
        let good = |k: &f32| *k > 0.0 && k.is_finite();
        let fit = self.kl.len() == KL_STEPS.len() && self.kl.iter().all(good);
        if !fit {
            return None;
        }
        let points: Vec<(f64, f64)> = KL_STEPS
            .iter()
            .zip(&self.kl)
            .map(|(s, k)| (ln(*s), ln(*k)))
            .collect();
        let wanted = ln(max_kl);
        // The first stretch that ends above the bound; beyond the last it goes on.
        let stretch = points
            .windows(2)
            .find(|p| p[1].1 >= wanted)
            .or(points.windows(2).last())?;
        let [(s0, k0), (s1, k1)] = [stretch[0], stretch[1]];
        // Noise can flatten a measured curve; no quantiser's error grows slower than its step.
        let slope = ((k1 - k0) / (s1 - s0)).max(1.0);
        let step = (s0 + (wanted - k0) / slope).exp() as f32;
        // A curve says little about steps far beyond the largest measured one.
        let largest = 2.0 * KL_STEPS.iter().fold(0.0, |a, b| b.max(a));
        (step >= Tcq::SMALLEST).then(|| Tcq {
            step: step.min(largest).min(Tcq::LARGEST),
        })
    }
}

fn ln(x: f32) -> f64 {
    f64::from(x).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_measured_curve() {
        let mut cut = CutStatistics {
            mean: vec![0.0; 4],
            sigma: vec![1.0; 4],
            kl: KL_STEPS.iter().map(|s| 0.016 * s * s).collect(),
        };
        for kl in [0.0001, 0.003, 0.02, 0.06] {
            let Tcq { step } = cut.step_for(kl).unwrap();
            assert!(
                (0.016 * step * step / kl - 1.0).abs() < 1e-3,
                "{kl}: {step}"
            );
        }
        assert_eq!(cut.step_for(1e-9), None);
        assert_eq!(cut.step_for(1e9).unwrap().step, 2.0);
        cut.kl[1] = 0.0;
        assert_eq!(cut.step_for(0.003), None);
        cut.kl.clear();
        assert_eq!(cut.step_for(0.003), None);
        assert!(cut.channels(4).is_some() && cut.channels(5).is_none());
    }
}
