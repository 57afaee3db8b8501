//! IQ2_XXS: 8 sub-blocks of 32 weights `x ≈ d·(s + 1/2)/4 · ±grid`, codebook entries of 8
//! magnitudes, signs of even number.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::assert_layout;
use super::grids::{EVEN_SIGNS, IQ2_XXS_GRID};
use super::groups::{Grouped, signed};

/// 66 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq2Xxs {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// For each sub-block four codebook entries, and a little-endian word of four times seven
    /// sign bits and, on top, four bits of scale.
    pub qs: [[u8; 8]; 8],
}

assert_layout!(BlockIq2Xxs, BlockType::IQ2_XXS);

impl BlockIq2Xxs {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Signs and scale of sub-block `g`.
    #[inline]
    pub fn word(&self, g: usize) -> u32 {
        let q = &self.qs[g];
        u32::from_le_bytes([q[4], q[5], q[6], q[7]])
    }
}

impl Grouped<32> for BlockIq2Xxs {
    const TYPE: BlockType = BlockType::IQ2_XXS;

    #[inline]
    fn scale(&self, g: usize) -> f32 {
        self.d() * (0.5 + (self.word(g) >> 28) as f32) * 0.25
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        let word = self.word(g);
        let mut out = [0; 32];
        for (l, eight) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let entry = &IQ2_XXS_GRID[usize::from(self.qs[g][l])];
            let signs = EVEN_SIGNS[(word >> (7 * l) & 127) as usize];
            *eight = std::array::from_fn(|j| signed(entry[j], signs, j));
        }
        out
    }
}
