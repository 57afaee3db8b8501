//! IQ3_S: 8 sub-blocks of 32 weights `x ≈ d·(2s + 1) · ±grid`, codebook entries of 4 magnitudes
//! among the odd numbers to 15, a sign bit for every weight.
//!
//! The search behind the encoder is in `iq3_s_search`.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout, encode_each};
use super::grids::IQ3_S_GRID;
use super::groups::{self, Grouped, signed};
use super::iq3_s_search;
use super::{BlockType, Effort, QK_K};

/// 110 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq3S {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Low eight bits of the codebook entries, one for every four weights.
    pub qs: [u8; 64],
    /// Ninth bits of the entries, a byte for each sub-block.
    pub qh: [u8; 8],
    /// Sign bits of the weights, set where negative.
    pub signs: [u8; 32],
    /// Scales of four bits, low nibble first.
    pub scales: [u8; 4],
}

assert_layout!(BlockIq3S, BlockType::IQ3_S);

impl BlockIq3S {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Codebook entry of weights `4e..4e + 4`.
    #[inline]
    pub fn entry(&self, e: usize) -> usize {
        usize::from(self.qs[e]) | usize::from(self.qh[e / 8] >> (e % 8) & 1) << 8
    }
}

impl Grouped<32> for BlockIq3S {
    const TYPE: BlockType = BlockType::IQ3_S;

    #[inline]
    fn scale(&self, g: usize) -> f32 {
        let s = self.scales[g / 2] >> (4 * (g % 2)) & 15;
        self.d() * f32::from(2 * s + 1)
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        let mut out = [0; 32];
        for (e, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let entry = &IQ3_S_GRID[self.entry(8 * g + e)];
            let signs = self.signs[4 * g + e / 2] >> (4 * (e % 2));
            *four = std::array::from_fn(|j| signed(entry[j], signs, j));
        }
        out
    }
}

impl Block<QK_K> for BlockIq3S {
    const TYPE: BlockType = BlockType::IQ3_S;

    fn decode(&self, out: &mut [f32; QK_K]) {
        groups::decode(self, out);
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        encode_each(row, importance, out, |x, w| Self::fitted(x, w, effort));
    }
}

impl BlockIq3S {
    fn fitted(x: &[f32; QK_K], w: &[f32; QK_K], effort: Effort) -> Self {
        let fit = iq3_s_search::fit(&x.map(f32::abs), w, effort);
        let mut out = Self {
            d: fit.d.to_le_bytes(),
            ..Self::zeroed()
        };
        for (i, v) in x.iter().enumerate() {
            out.signs[i / 8] |= u8::from(*v < 0.0) << (i % 8);
        }
        for (e, &entry) in fit.entries.iter().enumerate() {
            out.qs[e] = entry as u8;
            out.qh[e / 8] |= ((entry >> 8) as u8) << (e % 8);
        }
        for (b, &s) in fit.scales.iter().enumerate() {
            out.scales[b / 2] |= s << (4 * (b % 2));
        }
        out
    }
}
