//! One scale a row over shifted and scaled channels.

use super::super::DecodeError;
use super::super::bits;
use super::super::cursor::Reader;

/// Powers of a channel's largest value that smoothing may divide by.
const POWERS: [f32; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];
/// Shares of a row's range that clipping may leave.
const CLIPS: [f32; 12] = [
    1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2,
];
/// Rows that a choice among these is judged by.
const JUDGES: usize = 256;

/// x = shift + scale · (low + step · code), low and step by row.
#[derive(Clone, Debug)]
pub(super) struct Uniform {
    bits: u8,
    shift: Vec<f32>,
    scale: Vec<f32>,
    /// Share of the row's range that codes cover.
    clip: f32,
    /// Whether codes lie evenly about zero; else between the row's smallest and largest value.
    symmetric: bool,
}

/// Mean and largest magnitude about it of each channel.
fn channels(rows: &[f32], width: usize, about_mean: bool) -> (Vec<f32>, Vec<f32>) {
    let mut mean = vec![0f64; width];
    if about_mean {
        for row in rows.chunks_exact(width) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(m, x)| *m += f64::from(*x));
        }
        let n = (rows.len() / width).max(1) as f64;
        for m in &mut mean {
            *m /= n;
        }
    }
    let mean: Vec<f32> = mean.into_iter().map(|m| m as f32).collect();
    let mut most = vec![0f32; width];
    for row in rows.chunks_exact(width) {
        for ((m, x), mean) in most.iter_mut().zip(row).zip(&mean) {
            *m = m.max((x - mean).abs());
        }
    }
    (mean, most)
}

impl Uniform {
    /// Nothing learned.
    pub(super) fn plain(bits: u8, width: usize) -> Self {
        Self {
            bits,
            shift: vec![0.0; width],
            scale: vec![1.0; width],
            clip: 1.0,
            symmetric: true,
        }
    }

    /// Channels divided by the power of their largest value that errs least.
    pub(super) fn smooth(bits: u8, rows: &[f32], width: usize) -> Self {
        let (_, most) = channels(rows, width, false);
        let plain = Self::plain(bits, width);
        plain.best(rows, POWERS.iter().map(|p| plain.powered(&most, *p)))
    }

    /// Shift and scale by channel, and how much of a row's range is worth its codes.
    pub(super) fn learn(bits: u8, rows: &[f32], width: usize) -> Self {
        let (mean, most) = channels(rows, width, true);
        let start = Self {
            shift: mean,
            symmetric: false,
            ..Self::plain(bits, width)
        };
        let all = POWERS.iter().flat_map(|p| {
            let powered = start.powered(&most, *p);
            CLIPS.iter().map(move |clip| Self {
                clip: *clip,
                ..powered.clone()
            })
        });
        start.best(rows, all)
    }

    fn powered(&self, most: &[f32], power: f32) -> Self {
        // A channel that never moved keeps its size.
        let scale = |m: &f32| {
            let s = m.powf(power);
            if s.is_normal() { s } else { 1.0 }
        };
        Self {
            scale: most.iter().map(scale).collect(),
            ..self.clone()
        }
    }

    /// The one of `all` with the least squared error over some of `rows`, each row by its own
    /// power: a few rows with spikes of 22 000 would else be all that counts.
    fn best(&self, rows: &[f32], all: impl Iterator<Item = Self>) -> Self {
        let width = self.scale.len();
        let every = (rows.len() / width).div_ceil(JUDGES).max(1);
        let (mut best, mut least) = (self.clone(), f64::INFINITY);
        let (mut codes, mut back) = (Vec::new(), vec![0f32; width]);
        for one in all {
            let mut error = 0.0;
            for row in rows.chunks_exact(width).step_by(every) {
                let (low, step) = one.range(row);
                one.codes(row, low, step, &mut codes);
                one.values(&codes, low, step, &mut back);
                let (mut e, mut power) = (0.0, f64::MIN_POSITIVE);
                for (a, b) in row.iter().zip(&back) {
                    e += f64::from(a - b).powi(2);
                    power += f64::from(*a).powi(2);
                }
                error += e / power;
            }
            if error < least {
                (best, least) = (one, error);
            }
        }
        best
    }

    fn top(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Smallest value and step of a row.
    fn range(&self, row: &[f32]) -> (f32, f32) {
        let each = row.iter().zip(&self.shift).zip(&self.scale);
        let each = each.map(|((x, shift), scale)| ((x - shift) / scale).clamp(f32::MIN, f32::MAX));
        let (low, high) = each.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), z| {
            (a.min(z), b.max(z))
        });
        if self.symmetric {
            // One code less below than above: zero has one.
            let steps = (self.top() - 1.0) / 2.0;
            let step = self.clip * low.abs().max(high.abs()) / steps;
            return (-step * steps, step);
        }
        let (low, high) = (self.clip * low, self.clip * high);
        let step = (high / self.top() - low / self.top()).max(0.0);
        (low, step)
    }

    fn codes(&self, row: &[f32], low: f32, step: f32, codes: &mut Vec<u8>) {
        let per_step = if step > 0.0 { step.recip() } else { 0.0 };
        let (top, per_step) = (self.top(), per_step.min(f32::MAX));
        codes.clear();
        let each = row.iter().zip(&self.shift).zip(&self.scale);
        codes.extend(each.map(|((x, shift), scale)| {
            let z = (x - shift) / scale;
            ((z - low) * per_step).round_ties_even().clamp(0.0, top) as u8
        }));
    }

    fn values(&self, codes: &[u8], low: f32, step: f32, row: &mut [f32]) {
        let each = row.iter_mut().zip(codes).zip(&self.shift).zip(&self.scale);
        for (((x, code), shift), scale) in each {
            let value = shift + scale * (low + step * f32::from(*code));
            *x = value.clamp(f32::MIN, f32::MAX);
        }
    }

    pub(super) fn write(&self, row: &[f32], out: &mut Vec<u8>) {
        let (low, step) = self.range(row);
        let mut codes = Vec::new();
        self.codes(row, low, step, &mut codes);
        if self.symmetric {
            out.extend_from_slice(&step.to_le_bytes());
        } else {
            out.extend_from_slice(&low.to_le_bytes());
            out.extend_from_slice(&step.to_le_bytes());
        }
        bits::pack(&codes, self.bits, out);
    }

    pub(super) fn read(&self, r: &mut Reader<'_>, row: &mut [f32]) -> Result<(), DecodeError> {
        let what = "range of a row";
        let (low, step) = if self.symmetric {
            let step = f32::from_le_bytes(r.array(what)?);
            (-step * ((self.top() - 1.0) / 2.0), step)
        } else {
            let low = f32::from_le_bytes(r.array(what)?);
            (low, f32::from_le_bytes(r.array(what)?))
        };
        if !(low.is_finite() && step.is_finite()) {
            return Err(DecodeError::Malformed { what });
        }
        let packed = r.take(bits::packed_len(row.len(), self.bits), "codes")?;
        let mut codes = Vec::new();
        if !bits::unpack(packed, row.len(), self.bits, &mut codes) {
            return Err(DecodeError::Malformed { what: "codes" });
        }
        self.values(&codes, low, step, row);
        Ok(())
    }
}
