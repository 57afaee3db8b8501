//! Q2_K: 16 sub-blocks of 16 weights `x ≈ (d·scale)·q − (dmin·min)`, `q` of 2 bits, scale and
//! minimum of 4 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::affine_super::{self, AffineSuper, Search};
use super::{BlockType, Effort, QK_K};

/// 84 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Sub-block `b`: scale in the low nibble, minimum in the high one.
    pub scales: [u8; 16],
    /// Weight `128·h + 32·k + i` in bits `2k..2k+2` of byte `32·h + i`.
    pub qs: [u8; 64],
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Factor of the minima, a little-endian half float.
    pub dmin: [u8; 2],
}

assert_layout!(BlockQ2K, BlockType::Q2_K);

/// Chosen one after the other, each the one that then lowered the error most, on weights of a
/// trained table, a normal distribution and one of heavier tails. A quick search tries the first 17.
const TRIMS: &[(f32, f32)] = &[
    (0.09, 0.09),
    (0.0, 0.15),
    (0.15, 0.03),
    (0.06, 0.12),
    (0.18, -0.03),
    (0.12, 0.06),
    (-0.03, 0.18),
    (-0.03, -0.03),
    (0.09, 0.18),
    (0.18, 0.15),
    (0.09, -0.06),
    (-0.06, 0.06),
    (0.25, 0.09),
    (0.03, 0.21),
    (0.03, 0.0),
    (0.21, -0.06),
    (0.0, 0.0),
    (0.15, 0.18),
    (-0.06, 0.21),
    (0.18, 0.09),
    (0.03, 0.12),
    (0.18, 0.0),
    (0.06, 0.21),
    (0.06, 0.09),
    (0.09, 0.03),
    (0.15, 0.12),
    (-0.06, 0.18),
    (-0.06, 0.12),
    (0.15, 0.25),
    (0.15, 0.0),
    (-0.06, 0.25),
    (0.12, 0.12),
    (0.0, 0.06),
    (0.3, 0.1),
    (0.1, 0.3),
    (0.25, 0.25),
    (0.3, -0.05),
];

impl BlockQ2K {
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

impl Block<QK_K> for BlockQ2K {
    const TYPE: BlockType = BlockType::Q2_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let (d, dmin) = (self.d(), self.dmin());
        for (b, sub) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = d * f32::from(self.scales[b] & 15);
            let min = dmin * f32::from(self.scales[b] >> 4);
            // Sub-blocks come in pairs that share a bit position and lie side by side.
            let (start, shift) = (b / 8 * 32 + b % 2 * 16, b % 8 / 2 * 2);
            for (v, q) in sub.iter_mut().zip(&self.qs[start..start + 16]) {
                *v = step * f32::from(q >> shift & 3) - min;
            }
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        affine_super::encode_row::<Self, 16, 2, 16>(row, importance, effort, out);
    }
}

impl AffineSuper<16> for BlockQ2K {
    const TOP: f32 = 3.0;
    const LIMIT: f32 = 15.0;

    const NORMAL: Search = Search::normal(TRIMS.split_at(17).0, 3);
    const HIGH: Search = Search::high(TRIMS);

    #[inline(always)]
    fn pack(d: f16, dmin: f16, scales: [u8; 16], mins: [u8; 16], levels: &[u8; QK_K]) -> Self {
        let mut qs = [0u8; 64];
        for (b, sub) in levels.as_chunks::<16>().0.iter().enumerate() {
            let (start, shift) = (b / 8 * 32 + b % 2 * 16, b % 8 / 2 * 2);
            for (q, l) in qs[start..start + 16].iter_mut().zip(sub) {
                *q |= l << shift;
            }
        }
        Self {
            scales: std::array::from_fn(|b| scales[b] | mins[b] << 4),
            qs,
            d: d.to_le_bytes(),
            dmin: dmin.to_le_bytes(),
        }
    }
}
