//! Channels in the order of their size: the largest in 8 bits, the others in groups of 4 bits.

use half::f16;

use super::super::DecodeError;
use super::super::bits;
use super::super::cursor::Reader;

/// Values that share a scale.
const GROUP: usize = 128;
/// One channel in so many is an outlier: 128 of 4096, as the paper has it.
const OUTLIERS: usize = 32;
/// Share of a group's range that its codes cover; the paper's for activations.
const CLIP: f32 = 0.9;

/// The order of channels, by calibration.
#[derive(Clone, Debug)]
pub(super) struct Atom {
    /// Outliers last.
    order: Vec<usize>,
    outliers: usize,
}

impl Atom {
    pub(super) fn fit(rows: &[f32], width: usize) -> Self {
        let mut square = vec![0f64; width];
        for row in rows.chunks_exact(width) {
            for (s, x) in square.iter_mut().zip(row) {
                *s += f64::from(*x) * f64::from(*x);
            }
        }
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| square[*a].total_cmp(&square[*b]));
        Self {
            order,
            outliers: width.div_ceil(OUTLIERS),
        }
    }

    fn parts(&self) -> (&[usize], &[usize]) {
        self.order.split_at(self.order.len() - self.outliers)
    }

    pub(super) fn write(&self, row: &[f32], out: &mut Vec<u8>) {
        let (normal, outliers) = self.parts();
        for group in normal.chunks(GROUP) {
            group_to(row, group, 4, CLIP, out);
        }
        group_to(row, outliers, 8, 1.0, out);
    }

    pub(super) fn read(&self, r: &mut Reader<'_>, row: &mut [f32]) -> Result<(), DecodeError> {
        let (normal, outliers) = self.parts();
        for group in normal.chunks(GROUP) {
            group_from(r, group, 4, row)?;
        }
        group_from(r, outliers, 8, row)
    }
}

/// A scale in f16 and symmetric codes.
fn group_to(row: &[f32], channels: &[usize], bits: u8, clip: f32, out: &mut Vec<u8>) {
    let top = f32::from((1i16 << (bits - 1)) - 1);
    let most = channels.iter().fold(0f32, |m, c| m.max(row[*c].abs()));
    let scale = f16::from_f32((clip * most / top).min(f16::MAX.to_f32()));
    out.extend_from_slice(&scale.to_le_bytes());
    let scale = scale.to_f32();
    let per_step = if scale > 0.0 { scale.recip() } else { 0.0 };
    let codes: Vec<u8> = channels
        .iter()
        .map(|c| ((row[*c] * per_step).round_ties_even().clamp(-top, top) + top) as u8)
        .collect();
    bits::pack(&codes, bits, out);
}

fn group_from(
    r: &mut Reader<'_>,
    channels: &[usize],
    bits: u8,
    row: &mut [f32],
) -> Result<(), DecodeError> {
    let top = f32::from((1i16 << (bits - 1)) - 1);
    let scale = f16::from_le_bytes(r.array("scale of a group")?).to_f32();
    if !scale.is_finite() {
        let what = "scale of a group";
        return Err(DecodeError::Malformed { what });
    }
    let packed = r.take(bits::packed_len(channels.len(), bits), "codes")?;
    let mut codes = Vec::new();
    if !bits::unpack(packed, channels.len(), bits, &mut codes) {
        return Err(DecodeError::Malformed { what: "codes" });
    }
    for (c, code) in channels.iter().zip(codes) {
        row[*c] = scale * (f32::from(code) - top);
    }
    Ok(())
}
