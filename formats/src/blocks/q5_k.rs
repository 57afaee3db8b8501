//! Q5_K: 8 sub-blocks of 32 weights `x ≈ (d·scale)·q − (dmin·min)`, `q` of 5 bits, scale and
//! minimum of 6 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::affine_super::{self, AffineSuper, Search};
use super::pack::{pack_scale_min, scale_min};
use super::{BlockType, Effort, QK_K};

/// 176 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Factor of the minima, a little-endian half float.
    pub dmin: [u8; 2],
    /// Scales and minima of 6 bits; [`scale_min`] unpacks them.
    pub scales: [u8; 12],
    /// Fifth bits: weight `32·b + i` in bit `b` of byte `i`.
    pub qh: [u8; 32],
    /// Low nibbles: weight `64·k + i` low in byte `32·k + i`, weight `64·k + 32 + i` high.
    pub qs: [u8; 128],
}

assert_layout!(BlockQ5K, BlockType::Q5_K);

/// Chosen one after the other, each the one that then lowered the error most, on weights of a
/// trained table, a normal distribution and one of heavier tails. A quick search tries the first 19.
const TRIMS: &[(f32, f32)] = &[
    (0.005, 0.005),
    (-0.005, 0.015),
    (0.01, -0.005),
    (-0.005, 0.005),
    (0.015, -0.01),
    (0.0, -0.005),
    (-0.015, 0.005),
    (0.015, 0.005),
    (0.005, 0.015),
    (-0.01, -0.005),
    (0.0, -0.015),
    (-0.01, 0.02),
    (0.02, 0.0),
    (0.015, 0.015),
    (0.0, 0.005),
    (0.005, -0.005),
    (0.0, 0.0),
    // 30 steps for what was 15: exact for weights that come from a type of 4 bits.
    (0.0, -1.0 / 30.0),
    (0.01, -0.015),
    (-0.005, 0.01),
    (-0.005, -0.01),
    (0.0, 0.02),
    (-0.015, 0.01),
    (-0.015, 0.0),
    (0.01, 0.005),
    (0.005, -0.015),
    (0.005, 0.02),
    (0.01, 0.015),
    (0.02, 0.005),
    (0.02, -0.005),
    (-0.005, 0.02),
    (-0.01, -0.01),
    (0.01, 0.0),
    (0.03, 0.01),
    (0.01, 0.03),
    (0.03, 0.03),
    (-0.02, 0.02),
];

impl BlockQ5K {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Factor of the minima, decoded.
    #[inline]
    pub fn dmin(&self) -> f32 {
        f16::from_le_bytes(self.dmin).to_f32()
    }
}

impl Block<QK_K> for BlockQ5K {
    const TYPE: BlockType = BlockType::Q5_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let (d, dmin) = (self.d(), self.dmin());
        for (b, sub) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(&self.scales, b);
            let (step, min) = (d * f32::from(scale), dmin * f32::from(min));
            let (start, shift) = (b / 2 * 32, b % 2 * 4);
            let low = &self.qs[start..start + 32];
            for ((v, q), h) in sub.iter_mut().zip(low).zip(&self.qh) {
                *v = step * f32::from(q >> shift & 15 | (h >> b & 1) << 4) - min;
            }
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        affine_super::encode_row::<Self, 32, 1, 8>(row, importance, effort, out);
    }
}

impl AffineSuper<8> for BlockQ5K {
    const TOP: f32 = 31.0;
    const LIMIT: f32 = 63.0;

    const NORMAL: Search = Search::normal(TRIMS.split_at(19).0, 2);
    const HIGH: Search = Search::high(TRIMS);

    #[inline(always)]
    fn pack(d: f16, dmin: f16, scales: [u8; 8], mins: [u8; 8], levels: &[u8; QK_K]) -> Self {
        let (mut qh, mut qs) = ([0u8; 32], [0u8; 128]);
        for (b, sub) in levels.as_chunks::<32>().0.iter().enumerate() {
            let (start, shift) = (b / 2 * 32, b % 2 * 4);
            let low = &mut qs[start..start + 32];
            for ((q, h), l) in low.iter_mut().zip(&mut qh).zip(sub) {
                *q |= (l & 15) << shift;
                *h |= (l >> 4) << b;
            }
        }
        Self {
            d: d.to_le_bytes(),
            dmin: dmin.to_le_bytes(),
            scales: pack_scale_min(scales, mins),
            qh,
            qs,
        }
    }
}
