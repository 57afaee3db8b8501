//! IQ1_S: 8 sub-blocks of 32 weights `x ≈ d·(2s + 1)·(grid ± 1/8)`, codebook entries of 8
//! weights in −1, 0, 1.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::assert_layout;
use super::grids::IQ1_GRID;
use super::groups::Grouped;

/// 50 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq1S {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Low eight bits of the codebook entries, four to a sub-block.
    pub qs: [u8; 32],
    /// A little-endian word for each sub-block: three upper bits for each of the four entries,
    /// three bits of scale, and the sign of the shift (set: −1/8).
    pub qh: [[u8; 2]; 8],
}

assert_layout!(BlockIq1S, BlockType::IQ1_S);

impl BlockIq1S {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Grouped<32> for BlockIq1S {
    const TYPE: BlockType = BlockType::IQ1_S;

    /// An eighth of GGML's, whose codes are eighths.
    #[inline]
    fn scale(&self, g: usize) -> f32 {
        let s = u16::from_le_bytes(self.qh[g]) >> 12 & 7;
        self.d() * f32::from(2 * s + 1) * 0.125
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        let word = u16::from_le_bytes(self.qh[g]);
        let shift = if word >> 15 == 1 { -1 } else { 1 };
        let mut out = [0; 32];
        for (l, eight) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = usize::from(word >> (3 * l) & 7);
            let entry = usize::from(self.qs[4 * g + l]) | high << 8;
            *eight = IQ1_GRID[entry].map(|v| 8 * v + shift);
        }
        out
    }
}
