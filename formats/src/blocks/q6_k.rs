//! Q6_K: 16 sub-blocks of 16 weights `x ≈ (d·scale)·(q − 32)`, `q` of 6 bits, scales of 8 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::scale::Integers;
use super::fit::scale_super::{self, ScaleSuper, Search};
use super::{BlockType, Effort, QK_K};

/// 210 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low nibbles: weight `128·h + 64·n + i` (`i` in 0..64) in nibble `n` of byte `64·h + i`.
    pub ql: [u8; 128],
    /// Upper two bits: weight `128·h + 32·k + i` in bits `2k..2k+2` of byte `32·h + i`.
    pub qh: [u8; 64],
    /// Scales of the sub-blocks.
    pub scales: [i8; 16],
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
}

assert_layout!(BlockQ6K, BlockType::Q6_K);

const TRIES: [f32; 16] = [
    -24.0, -27.0, -28.5, -29.25, -29.75, -30.25, -30.5, -30.75, -31.0, -31.25, -31.5, -31.75,
    -32.0, -32.25, -32.5, -33.5,
];

const MORE_TRIES: [f32; 33] = [
    -22.0, -24.0, -26.0, -27.0, -27.5, -28.0, -28.17, -28.34, -28.51, -28.68, -28.85, -29.02,
    -29.19, -29.36, -29.53, -29.7, -29.87, -30.04, -30.21, -30.38, -30.55, -30.72, -30.89, -31.06,
    -31.23, -31.4, -31.57, -31.74, -31.91, -32.08, -32.25, -32.42, -32.59,
];

impl BlockQ6K {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Block<QK_K> for BlockQ6K {
    const TYPE: BlockType = BlockType::Q6_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let d = self.d();
        for (b, sub) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = d * f32::from(self.scales[b]);
            let (low, nibble) = (b / 8 * 64 + b % 4 * 16, b % 8 / 4 * 4);
            let (high, shift) = (b / 8 * 32 + b % 2 * 16, b % 8 / 2 * 2);
            for (i, v) in sub.iter_mut().enumerate() {
                let q = self.ql[low + i] >> nibble & 15 | (self.qh[high + i] >> shift & 3) << 4;
                *v = step * f32::from(q as i8 - 32);
            }
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        scale_super::encode_row::<Self>(row, importance, effort, out);
    }
}

impl ScaleSuper for BlockQ6K {
    type Levels = Integers<-32, 31>;
    const LIMIT: f32 = 128.0;
    const BOTTOM: f32 = -32.0;

    const NORMAL: Search = Search::normal(&TRIES);
    const HIGH: Search = Search::high(&MORE_TRIES);

    #[inline(always)]
    fn pack(d: f16, scales: [i8; 16], levels: &[u8; QK_K]) -> Self {
        let (mut ql, mut qh) = ([0u8; 128], [0u8; 64]);
        for (b, sub) in levels.as_chunks::<16>().0.iter().enumerate() {
            let (low, nibble) = (b / 8 * 64 + b % 4 * 16, b % 8 / 4 * 4);
            let (high, shift) = (b / 8 * 32 + b % 2 * 16, b % 8 / 2 * 2);
            for (i, q) in sub.iter().enumerate() {
                ql[low + i] |= (q & 15) << nibble;
                qh[high + i] |= (q >> 4) << shift;
            }
        }
        Self {
            ql,
            qh,
            scales,
            d: d.to_le_bytes(),
        }
    }
}
