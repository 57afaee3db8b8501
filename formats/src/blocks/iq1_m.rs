//! IQ1_M: 16 sub-blocks of 16 weights `x ≈ d·(2s + 1)·(grid ± 1/8)`, codebook entries of 8
//! weights in −1, 0, 1, each with a shift of its own.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::assert_layout;
use super::grids::IQ1_GRID;
use super::groups::Grouped;

/// 56 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq1M {
    /// Low eight bits of the codebook entries, two to a sub-block.
    pub qs: [u8; 32],
    /// A nibble for each entry: three upper bits, and the sign of the shift (set: −1/8).
    pub qh: [u8; 16],
    /// Four little-endian words: four scales of three bits each, and above them a quarter of the
    /// half float that is the scales' factor.
    pub scales: [[u8; 2]; 4],
}

assert_layout!(BlockIq1M, BlockType::IQ1_M);

impl BlockIq1M {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        let quarters = self.scales.map(|w| u16::from_le_bytes(w) >> 12);
        let bits = (0..4).fold(0, |bits, i| bits | quarters[i] << (4 * i));
        f16::from_bits(bits).to_f32()
    }
}

impl Grouped<16> for BlockIq1M {
    const TYPE: BlockType = BlockType::IQ1_M;

    /// An eighth of GGML's, whose codes are eighths.
    #[inline]
    fn scale(&self, g: usize) -> f32 {
        let s = u16::from_le_bytes(self.scales[g / 4]) >> (3 * (g % 4)) & 7;
        self.d() * f32::from(2 * s + 1) * 0.125
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 16] {
        let mut out = [0; 16];
        for (l, eight) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let nibble = self.qh[g] >> (4 * l) & 15;
            let entry = usize::from(self.qs[2 * g + l]) | usize::from(nibble & 7) << 8;
            let shift = if nibble & 8 == 0 { 1 } else { -1 };
            *eight = IQ1_GRID[entry].map(|v| 8 * v + shift);
        }
        out
    }
}
