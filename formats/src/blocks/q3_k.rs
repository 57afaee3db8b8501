//! Q3_K: 16 sub-blocks of 16 weights `x ≈ (d·(scale − 32))·(q − 4)`, `q` of 3 bits, scales of
//! 6 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::scale::Integers;
use super::fit::scale_super::{self, ScaleSuper, Search};
use super::{BlockType, Effort, QK_K};

/// 110 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: weight `32·k + i` in bit `k` of byte `i`.
    pub hmask: [u8; 32],
    /// Low two bits: weight `128·h + 32·k + i` in bits `2k..2k+2` of byte `32·h + i`.
    pub qs: [u8; 64],
    /// Scales of 6 bits; [`BlockQ3K::scale`] unpacks them.
    pub scales: [u8; 12],
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
}

assert_layout!(BlockQ3K, BlockType::Q3_K);

const TRIES: [f32; 13] = [
    -0.8, -1.8, -2.3, -2.7, -3.0, -3.3, -3.6, -3.9, -4.25, -4.7, -6.0, 3.7, 4.1,
];

const MORE_TRIES: [f32; 35] = [
    -0.8, -1.6, -1.8, -2.0, -2.15, -2.3, -2.45, -2.55, -2.65, -2.75, -2.85, -2.95, -3.05, -3.15,
    -3.3, -3.4, -3.5, -3.6, -3.7, -3.8, -3.9, -4.0, -4.1, -4.2, -4.35, -4.5, -4.7, -5.2, -6.0, 3.6,
    3.75, 3.9, 4.1, 4.4, 5.0,
];

impl BlockQ3K {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Scale of sub-block `b` (0..16), −32..=31.
    ///
    /// Low nibbles: sub-blocks 0..8 low and 8..16 high in bytes 0..8; upper two bits: sub-block
    /// `4k + i` in bits `2k..2k+2` of byte `8 + i`.
    #[inline]
    pub fn scale(&self, b: usize) -> i8 {
        let low = if b < 8 {
            self.scales[b] & 15
        } else {
            self.scales[b % 8] >> 4
        };
        let high = self.scales[8 + b % 4] >> (b / 4 % 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    }
}

fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut out = [0; 12];
    for (b, &scale) in scales.iter().enumerate() {
        let s = (scale + 32) as u8;
        out[b % 8] |= (s & 15) << (b / 8 * 4);
        out[8 + b % 4] |= (s >> 4) << (b / 4 * 2);
    }
    out
}

impl Block<QK_K> for BlockQ3K {
    const TYPE: BlockType = BlockType::Q3_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let d = self.d();
        for (b, sub) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = d * f32::from(self.scale(b));
            let (half, pair, side) = (b / 8, b % 8 / 2, b % 2 * 16);
            for (i, v) in sub.iter_mut().enumerate() {
                let low = self.qs[half * 32 + side + i] >> (2 * pair) & 3;
                let high = self.hmask[side + i] >> (half * 4 + pair) & 1;
                *v = step * f32::from((low | high << 2) as i8 - 4);
            }
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        scale_super::encode_row::<Self>(row, importance, effort, out);
    }
}

impl ScaleSuper for BlockQ3K {
    type Levels = Integers<-4, 3>;
    const LIMIT: f32 = 32.0;
    const BOTTOM: f32 = -4.0;

    const NORMAL: Search = Search::normal(&TRIES);
    const HIGH: Search = Search::high(&MORE_TRIES);

    #[inline(always)]
    fn pack(d: f16, scales: [i8; 16], levels: &[u8; QK_K]) -> Self {
        let (mut hmask, mut qs) = ([0u8; 32], [0u8; 64]);
        for (b, sub) in levels.as_chunks::<16>().0.iter().enumerate() {
            let (half, pair, side) = (b / 8, b % 8 / 2, b % 2 * 16);
            for (i, q) in sub.iter().enumerate() {
                qs[half * 32 + side + i] |= (q & 3) << (2 * pair);
                hmask[side + i] |= (q >> 2) << (half * 4 + pair);
            }
        }
        Self {
            hmask,
            qs,
            scales: pack_scales(&scales),
            d: d.to_le_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_survive_the_packing() {
        let scales = [-32, 31, 0, -1, 15, 16, -16, -17, 7, 8, -8, 30, 1, 2, 3, -31];
        let block = BlockQ3K {
            scales: pack_scales(&scales),
            ..BlockQ3K::zeroed()
        };
        assert_eq!(std::array::from_fn(|b| block.scale(b)), scales);
    }
}
