//! Q5_1: 32 weights `x ≈ d·q + m`, `q` of 5 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::affine::{self, AffineBlock};
use super::pack::{nibble, pack_fifth_bits, pack_nibbles};
use super::{BlockType, Effort};

/// 24 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Step, a little-endian half float.
    pub d: [u8; 2],
    /// Offset, a little-endian half float.
    pub m: [u8; 2],
    /// Fifth bits, a little-endian `u32`: bit `j` of weight `j`.
    pub qh: [u8; 4],
    /// Low nibbles: weight `j` low in byte `j`, weight `j + 16` high.
    pub qs: [u8; 16],
}

assert_layout!(BlockQ5_1, BlockType::Q5_1);

const TRIMS: [(f32, f32); 25] = [
    (-0.01, -0.01),
    (-0.01, 0.0),
    (-0.01, 0.01),
    (-0.01, 0.025),
    (-0.01, 0.05),
    (0.0, -0.01),
    (0.0, 0.0),
    (0.0, 0.01),
    (0.0, 0.025),
    (0.0, 0.05),
    (0.01, -0.01),
    (0.01, 0.0),
    (0.01, 0.01),
    (0.01, 0.025),
    (0.01, 0.05),
    (0.025, -0.01),
    (0.025, 0.0),
    (0.025, 0.01),
    (0.025, 0.025),
    (0.025, 0.05),
    (0.05, -0.01),
    (0.05, 0.0),
    (0.05, 0.01),
    (0.05, 0.025),
    (0.05, 0.05),
];

const MORE_TRIMS: [(f32, f32); affine::MANY] = affine::grid(-0.015, 0.06);

impl BlockQ5_1 {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// The offset, decoded.
    #[inline]
    pub fn m(&self) -> f32 {
        f16::from_le_bytes(self.m).to_f32()
    }
}

impl Block<32> for BlockQ5_1 {
    const TYPE: BlockType = BlockType::Q5_1;

    fn decode(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d(), self.m());
        let high = u32::from_le_bytes(self.qh);
        for (j, v) in out.iter_mut().enumerate() {
            let q = nibble(&self.qs, j) | ((high >> j & 1) << 4) as u8;
            *v = f32::from(q) * d + m;
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        affine::encode_row::<Self>(row, importance, effort, out);
    }
}

impl AffineBlock for BlockQ5_1 {
    const TOP: f32 = 31.0;

    fn trims(effort: Effort) -> &'static [(f32, f32)] {
        match effort {
            Effort::Normal => &TRIMS,
            Effort::High => &MORE_TRIMS,
        }
    }

    #[inline(always)]
    fn pack(d: f16, m: f16, levels: &[u8; 32]) -> Self {
        Self {
            d: d.to_le_bytes(),
            m: m.to_le_bytes(),
            qh: pack_fifth_bits(levels),
            qs: pack_nibbles(levels),
        }
    }
}
