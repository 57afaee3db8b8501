//! Q4_K: 8 sub-blocks of 32 weights `x ≈ (d·scale)·q − (dmin·min)`, `q` of 4 bits, scale and
//! minimum of 6 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::affine_super::{self, AffineSuper, FAR, MORE_STARTS, NEAR, STARTS, Search};
use super::fit::{Batch, encode_row};
use super::pack::{pack_scale_min, scale_min};
use super::simd::Simd;
use super::{BlockType, Effort, QK_K};

/// 144 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Factor of the minima, a little-endian half float.
    pub dmin: [u8; 2],
    /// Scales and minima of 6 bits; [`scale_min`] unpacks them.
    pub scales: [u8; 12],
    /// Weight `64·k + i` low in byte `32·k + i`, weight `64·k + 32 + i` high.
    pub qs: [u8; 128],
}

assert_layout!(BlockQ4K, BlockType::Q4_K);

/// Chosen one after the other, each the one that then lowered the error most, on weights of a
/// trained table, a normal distribution and one of heavier tails; last, no trimming.
const TRIMS: [(f32, f32); 17] = [
    (0.01, 0.01),
    (-0.015, 0.03),
    (0.03, 0.0),
    (0.0, 0.02),
    (0.03, -0.015),
    (0.02, 0.0),
    (-0.015, 0.0),
    (0.01, 0.04),
    (0.0, -0.015),
    (0.03, 0.03),
    (-0.03, 0.01),
    (0.01, -0.03),
    (-0.015, 0.04),
    (0.04, 0.02),
    (0.01, 0.02),
    (0.04, -0.015),
    (0.0, 0.0),
];

/// The same, continued.
const MORE_TRIMS: [(f32, f32); 38] = [
    (0.01, 0.01),
    (-0.015, 0.03),
    (0.03, 0.0),
    (0.0, 0.02),
    (0.03, -0.015),
    (0.02, 0.0),
    (-0.015, 0.0),
    (0.01, 0.04),
    (0.0, -0.015),
    (0.03, 0.03),
    (-0.03, 0.01),
    (0.01, -0.03),
    (-0.015, 0.04),
    (0.04, 0.02),
    (0.01, 0.02),
    (0.04, -0.015),
    (0.0, 0.0),
    (-0.015, -0.015),
    (-0.015, 0.02),
    (0.02, 0.01),
    (0.04, 0.0),
    (0.0, 0.04),
    (0.02, 0.04),
    (0.01, -0.015),
    (-0.03, 0.03),
    (-0.015, 0.01),
    (0.02, -0.03),
    (0.055, 0.02),
    (-0.03, -0.015),
    (0.02, 0.055),
    (0.0, -0.03),
    (0.02, 0.02),
    (0.07, 0.07),
    (0.055, 0.0),
    (0.0, 0.055),
    (0.0, 0.12),
    (0.12, 0.0),
    (0.1, 0.1),
];

const NORMAL: Search = Search {
    trims: &TRIMS,
    keep: 2,
    starts: &STARTS,
    finalists: 1,
    reach: &NEAR,
    rounds: 3,
};

const HIGH: Search = Search {
    trims: &MORE_TRIMS,
    keep: 3,
    starts: &MORE_STARTS,
    finalists: 4,
    reach: &FAR,
    rounds: 4,
};

impl BlockQ4K {
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

impl Block<QK_K> for BlockQ4K {
    const TYPE: BlockType = BlockType::Q4_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let (d, dmin) = (self.d(), self.dmin());
        for (b, sub) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(&self.scales, b);
            let (step, min) = (d * f32::from(scale), dmin * f32::from(min));
            let (start, shift) = (b / 2 * 32, b % 2 * 4);
            for (v, q) in sub.iter_mut().zip(&self.qs[start..start + 32]) {
                *v = step * f32::from(q >> shift & 15) - min;
            }
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        encode_row::<Self>(row, importance, effort, out);
    }
}

impl Batch for BlockQ4K {
    const WEIGHTS: usize = QK_K;

    #[inline(always)]
    fn encode<V: Simd, const WEIGHTED: bool>(
        x: &[f32; QK_K],
        w: &[f32; QK_K],
        effort: Effort,
        out: &mut [u8],
    ) {
        affine_super::encode::<Self, V, WEIGHTED, 32, 1, 8>(x, w, effort, out);
    }
}

impl AffineSuper<8> for BlockQ4K {
    const TOP: f32 = 15.0;
    const LIMIT: f32 = 63.0;

    fn search(effort: Effort) -> &'static Search {
        match effort {
            Effort::Normal => &NORMAL,
            Effort::High => &HIGH,
        }
    }

    #[inline(always)]
    fn pack(d: f16, dmin: f16, scales: [u8; 8], mins: [u8; 8], levels: &[u8; QK_K]) -> Self {
        let mut qs = [0u8; 128];
        for (b, sub) in levels.as_chunks::<32>().0.iter().enumerate() {
            let (start, shift) = (b / 2 * 32, b % 2 * 4);
            for (q, l) in qs[start..start + 32].iter_mut().zip(sub) {
                *q |= l << shift;
            }
        }
        Self {
            d: d.to_le_bytes(),
            dmin: dmin.to_le_bytes(),
            scales: pack_scale_min(scales, mins),
            qs,
        }
    }
}
