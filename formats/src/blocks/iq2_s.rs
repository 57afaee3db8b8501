//! IQ2_S: 16 sub-blocks of 16 weights `x ≈ d·(s + 1/2)/4 · ±grid`, codebook entries of 8
//! magnitudes, a sign bit for every weight.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::assert_layout;
use super::grids::IQ2_S_GRID;
use super::groups::{Grouped, signed};

/// 82 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2S {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Low eight bits of the codebook entries, one for every eight weights.
    pub qs: [u8; 32],
    /// Sign bits of the weights, set where negative.
    pub signs: [u8; 32],
    /// Upper two bits of the entries, four to a byte.
    pub qh: [u8; 8],
    /// Scales of four bits, low nibble first.
    pub scales: [u8; 8],
}

assert_layout!(BlockIq2S, BlockType::IQ2_S);

impl BlockIq2S {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Codebook entry of weights `8e..8e + 8`.
    #[inline]
    pub fn entry(&self, e: usize) -> usize {
        let high = self.qh[e / 4] >> (2 * (e % 4)) & 3;
        usize::from(self.qs[e]) | usize::from(high) << 8
    }
}

impl Grouped<16> for BlockIq2S {
    const TYPE: BlockType = BlockType::IQ2_S;

    #[inline]
    fn scale(&self, g: usize) -> f32 {
        let s = self.scales[g / 2] >> (4 * (g % 2)) & 15;
        self.d() * (0.5 + f32::from(s)) * 0.25
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 16] {
        let mut out = [0; 16];
        for (l, eight) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let entry = &IQ2_S_GRID[self.entry(2 * g + l)];
            let signs = self.signs[2 * g + l];
            *eight = std::array::from_fn(|j| signed(entry[j], signs, j));
        }
        out
    }
}
