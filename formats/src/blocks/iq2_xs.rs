//! IQ2_XS: 16 sub-blocks of 16 weights `x ≈ d·(s + 1/2)/4 · ±grid`, codebook entries of 8
//! magnitudes, signs of even number.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::assert_layout;
use super::grids::{EVEN_SIGNS, IQ2_XS_GRID};
use super::groups::{Grouped, signed};

/// 74 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2Xs {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// A little-endian word for every eight weights: nine bits of codebook entry, seven of signs.
    pub qs: [[u8; 2]; 32],
    /// Scales of four bits, low nibble first.
    pub scales: [u8; 8],
}

assert_layout!(BlockIq2Xs, BlockType::IQ2_XS);

impl BlockIq2Xs {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Grouped<16> for BlockIq2Xs {
    const TYPE: BlockType = BlockType::IQ2_XS;

    #[inline]
    fn scale(&self, g: usize) -> f32 {
        let s = self.scales[g / 2] >> (4 * (g % 2)) & 15;
        self.d() * (0.5 + f32::from(s)) * 0.25
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 16] {
        let mut out = [0; 16];
        for (l, eight) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let word = u16::from_le_bytes(self.qs[2 * g + l]);
            let entry = &IQ2_XS_GRID[usize::from(word & 511)];
            let signs = EVEN_SIGNS[usize::from(word >> 9)];
            *eight = std::array::from_fn(|j| signed(entry[j], signs, j));
        }
        out
    }
}
