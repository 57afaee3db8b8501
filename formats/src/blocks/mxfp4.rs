//! MXFP4: 32 weights `x ≈ 2ᵉ·level[q]`, levels of a 4-bit float, the scale a power of two.

use bytemuck::{Pod, Zeroable};

use super::codec::{Block, assert_layout, encode_each};
use super::groups::{self, Grouped};
use super::pack::{nibble, pack_nibbles};
use super::{BlockType, Effort};

/// The levels of E2M1, doubled so that they are whole numbers.
pub const MXFP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 17 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockMxfp4 {
    /// The step is 2 to the power of `e − 128` (doubled levels, so one below E8M0's bias).
    pub e: u8,
    /// Indices into [`MXFP4_LEVELS`]: weight `j` low in byte `j`, weight `j + 16` high.
    pub qs: [u8; 16],
}

assert_layout!(BlockMxfp4, BlockType::MXFP4);

/// `2^(e − 128)`.
#[inline]
fn power(e: u8) -> f32 {
    // Below the normal numbers the one bit moves through the fraction.
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

/// The index of the level nearest to `v`.
fn nearest(v: f32) -> u8 {
    // Where one level gives way to the next.
    const BORDERS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let size = v.abs();
    let index = BORDERS.iter().filter(|b| size > **b).count() as u8;
    if v < 0.0 && index > 0 {
        index | 8
    } else {
        index
    }
}

impl Grouped<32> for BlockMxfp4 {
    const TYPE: BlockType = BlockType::MXFP4;

    #[inline]
    fn scale(&self, _: usize) -> f32 {
        power(self.e)
    }

    #[inline]
    fn codes(&self, _: usize) -> [i8; 32] {
        std::array::from_fn(|j| MXFP4_LEVELS[usize::from(nibble(&self.qs, j))])
    }
}

impl Block<32> for BlockMxfp4 {
    const TYPE: BlockType = BlockType::MXFP4;

    fn decode(&self, out: &mut [f32; 32]) {
        groups::decode(self, out);
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        let octaves = match effort {
            Effort::Normal => 4,
            // Where a small weight is thousands of times more important than the largest.
            Effort::High => 14,
        };
        encode_each(row, importance, out, |x, w| Self::fitted(x, w, octaves));
    }
}

impl BlockMxfp4 {
    /// The best of so many exponents, of which the highest puts the largest value into the last
    /// octave of the levels: with a higher one no weight has a level that it had not before, and
    /// with a lower one, cutting off the largest may gain more than it loses.
    fn fitted(x: &[f32; 32], w: &[f32; 32], octaves: i32) -> Self {
        let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let octave = (largest.to_bits() >> 23) as i32 - 127;
        let mut best = (Self::zeroed(), f32::INFINITY);
        for e in (octave + 1 - octaves..=octave).map(|e| (e + 126).clamp(2, 250) as u8) {
            let (step, inv) = (power(e), 1.0 / power(e));
            let levels = x.map(|v| nearest(v * inv));
            let error = (0..32).fold(0.0, |sum, i| {
                let miss = x[i] - step * f32::from(MXFP4_LEVELS[usize::from(levels[i])]);
                sum + w[i] * miss * miss
            });
            if error < best.1 {
                let qs = pack_nibbles(&levels);
                best = (Self { e, qs }, error);
            }
        }
        best.0
    }
}
