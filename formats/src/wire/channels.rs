//! What calibration knows of the rows at one cut, on the grid that frames speak of.
//!
//! Scales are indices of a logarithmic grid, sixteen a factor of two. Which index a number has and
//! which number an index stands for take comparisons and shifts of exponents only, so that both
//! halves read the same probabilities out of the same pair on any machine.

/// Indices of the grid in a factor of two.
pub(super) const GRID: i32 = 16;
/// No index is further from 0: 2^±60.
const FAR: i32 = 60 * GRID;

/// 2^(i / 16), rounded to f32.
const STEPS: [f32; 16] = [
    1.0,
    1.044_273_8,
    1.090_507_7,
    1.138_788_6,
    1.189_207_1,
    1.241_857_8,
    1.296_839_6,
    1.354_255_6,
    std::f32::consts::SQRT_2,
    1.476_826_1,
    1.542_210_8,
    1.610_490_3,
    1.681_792_8,
    1.756_252_2,
    1.834_008_1,
    1.915_206_6,
];

/// 2^((i + ½) / 16): where one index ends and the next begins.
const BORDERS: [f32; 16] = [
    1.021_897_1,
    1.067_140_4,
    1.114_386_7,
    1.163_724_9,
    1.215_247_4,
    1.269_051,
    1.325_236_6,
    1.383_91,
    1.445_180_8,
    1.509_164_4,
    1.575_980_8,
    1.645_755_5,
    1.718_619_3,
    1.794_709_1,
    1.874_167_6,
    1.957_144_1,
];

/// The index nearest to `x` on the grid. What is not above zero has the lowest one.
pub(super) fn index_of(x: f32) -> i32 {
    if x.is_nan() || x < f32::MIN_POSITIVE {
        return -FAR;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | (127 << 23));
    let above = BORDERS.iter().filter(|b| mantissa >= **b).count() as i32;
    (exponent * GRID + above).clamp(-FAR, FAR)
}

/// The number that an index within 2^±120 stands for.
pub(super) fn number_of(index: i32) -> f32 {
    let index = index.clamp(-2 * FAR, 2 * FAR);
    let exponent = index.div_euclid(GRID) + 127;
    STEPS[index.rem_euclid(GRID) as usize] * f32::from_bits((exponent as u32) << 23)
}

/// Mean and spread of each channel of the rows at one cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    pub(super) mean: Vec<f32>,
    /// 1 / σ, of the σ on the grid.
    pub(super) inverse: Vec<f32>,
    /// Index of σ.
    pub(super) spread: Vec<i32>,
    /// The middle one of the spreads: what steps are relative to.
    pub(super) middle: i32,
}

impl Channels {
    /// Channels with these means and standard deviations, one of each per channel. `None` when
    /// there are none, not as many of both, or any that is not finite or negative.
    pub fn new(mean: &[f32], sigma: &[f32]) -> Option<Self> {
        let fit = mean.len() == sigma.len()
            && !mean.is_empty()
            && mean.iter().all(|m| m.abs() < super::ts::HUGE)
            && sigma.iter().all(|s| (0.0..super::ts::HUGE).contains(s));
        if !fit {
            return None;
        }
        let spread: Vec<i32> = sigma.iter().map(|s| index_of(*s)).collect();
        let mut sorted = spread.clone();
        sorted.sort_unstable();
        let middle = sorted[sorted.len() / 2];
        // A channel that never moved in calibration may still move.
        let spread: Vec<i32> = spread.iter().map(|s| (*s).max(middle - 8 * GRID)).collect();
        Some(Self {
            mean: mean.to_vec(),
            inverse: spread.iter().map(|s| number_of(-s)).collect(),
            spread,
            middle,
        })
    }

    /// Channels in a row.
    pub fn width(&self) -> usize {
        self.mean.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_there_and_back() {
        for i in -900..=900 {
            assert_eq!(index_of(number_of(i)), i);
            let (a, b) = (number_of(i), number_of(i + 1));
            assert!(a < b && b < 1.045 * a, "{i}: {a} {b}");
        }
        assert_eq!(number_of(-GRID), 0.5);
        for odd in [0.0, -1.0, f32::NAN, 1e-40] {
            assert_eq!(index_of(odd), -FAR);
        }
        assert_eq!(index_of(f32::INFINITY), FAR);
    }

    #[test]
    fn channels_are_checked() {
        assert!(Channels::new(&[0.0], &[1.0, 2.0]).is_none());
        assert!(Channels::new(&[], &[]).is_none());
        assert!(Channels::new(&[f32::NAN], &[1.0]).is_none());
        assert!(Channels::new(&[0.0], &[-1.0]).is_none());
        assert!(Channels::new(&[0.0], &[f32::INFINITY]).is_none());
        let c = Channels::new(&[1.0, 2.0, 3.0], &[0.0, 4.0, 2.0]).unwrap();
        assert_eq!((c.width(), c.middle), (3, GRID));
    }
}
