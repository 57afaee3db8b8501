//! IQ3_XXS: 8 sub-blocks of 32 weights `x ≈ d·(s + 1/2)/2 · ±grid`, codebook entries of 4
//! magnitudes, signs of even number in eight weights.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::assert_layout;
use super::grids::{EVEN_SIGNS, IQ3_XXS_GRID};
use super::groups::{Grouped, signed};

/// 98 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq3Xxs {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Codebook entries, one for every four weights.
    pub qs: [u8; 64],
    /// A little-endian word for each sub-block: four times seven sign bits and, on top, four bits
    /// of scale.
    pub words: [[u8; 4]; 8],
}

assert_layout!(BlockIq3Xxs, BlockType::IQ3_XXS);

impl BlockIq3Xxs {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Grouped<32> for BlockIq3Xxs {
    const TYPE: BlockType = BlockType::IQ3_XXS;

    #[inline]
    fn scale(&self, g: usize) -> f32 {
        let s = u32::from_le_bytes(self.words[g]) >> 28;
        self.d() * (0.5 + s as f32) * 0.5
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        let word = u32::from_le_bytes(self.words[g]);
        let mut out = [0; 32];
        for (e, four) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let entry = &IQ3_XXS_GRID[usize::from(self.qs[8 * g + e])];
            let signs = EVEN_SIGNS[(word >> (7 * (e / 2)) & 127) as usize] >> (4 * (e % 2));
            *four = std::array::from_fn(|j| signed(entry[j], signs, j));
        }
        out
    }
}
