//! IQ4_XS: 8 sub-blocks of 32 weights `x ≈ (d·(scale − 32))·level[q]`, the levels of IQ4_NL,
//! scales of 6 bits.
//!
//! The search behind the encoder is in `iq4_xs_search`.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout, encode_each};
use super::groups::{self, Grouped};
use super::iq4_nl::IQ4_NL_LEVELS;
use super::iq4_xs_search;
use super::pack::{nibble, pack_nibbles};
use super::{BlockType, Effort, QK_K};

/// 136 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Upper two bits of the scales, a little-endian word: sub-block `b` in bits `2b..2b+2`.
    pub scales_h: [u8; 2],
    /// Lower four bits of the scales, low nibble first.
    pub scales_l: [u8; 4],
    /// Indices into [`IQ4_NL_LEVELS`]: of sub-block `b` weight `j` low in byte `j` of `qs[b]`,
    /// weight `j + 16` high.
    pub qs: [[u8; 16]; 8],
}

assert_layout!(BlockIq4Xs, BlockType::IQ4_XS);

impl BlockIq4Xs {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Integer scale of sub-block `b` (0..8), −32..=31.
    #[inline]
    pub fn integer(&self, b: usize) -> i8 {
        let low = self.scales_l[b / 2] >> (4 * (b % 2)) & 15;
        let high = (u16::from_le_bytes(self.scales_h) >> (2 * b)) as u8 & 3;
        (low | high << 4) as i8 - 32
    }
}

impl Grouped<32> for BlockIq4Xs {
    const TYPE: BlockType = BlockType::IQ4_XS;

    #[inline]
    fn scale(&self, g: usize) -> f32 {
        self.d() * f32::from(self.integer(g))
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        std::array::from_fn(|j| IQ4_NL_LEVELS[usize::from(nibble(&self.qs[g], j))])
    }
}

impl Block<QK_K> for BlockIq4Xs {
    const TYPE: BlockType = BlockType::IQ4_XS;

    fn decode(&self, out: &mut [f32; QK_K]) {
        groups::decode(self, out);
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        encode_each(row, importance, out, |x, w| Self::fitted(x, w, effort));
    }
}

impl BlockIq4Xs {
    fn fitted(x: &[f32; QK_K], w: &[f32; QK_K], effort: Effort) -> Self {
        let fit = iq4_xs_search::fit(x, w, effort);
        let (mut low, mut high) = ([0; 4], 0);
        for (b, scale) in fit.scales.iter().enumerate() {
            let s = (scale + 32) as u8;
            low[b / 2] |= (s & 15) << (4 * (b % 2));
            high |= u16::from(s >> 4) << (2 * b);
        }
        Self {
            d: fit.d.to_le_bytes(),
            scales_h: high.to_le_bytes(),
            scales_l: low,
            qs: fit.codes.map(|codes| pack_nibbles(&codes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_where_ggml_has_them() {
        let block = BlockIq4Xs {
            scales_l: [0x21, 0x43, 0x65, 0x87],
            scales_h: 0b11_10_01_00_11_10_01_00u16.to_le_bytes(),
            ..BlockIq4Xs::zeroed()
        };
        let scales = std::array::from_fn(|b| block.integer(b));
        assert_eq!(scales, [-31, -14, 3, 20, -27, -10, 7, 24]);
    }
}
