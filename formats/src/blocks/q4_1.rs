//! Q4_1: 32 weights `x ≈ d·q + m`, `q` of 4 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::affine::{self, AffineBlock};
use super::pack::{nibble, pack_nibbles};
use super::{BlockType, Effort};

/// 20 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Step, a little-endian half float.
    pub d: [u8; 2],
    /// Offset, a little-endian half float.
    pub m: [u8; 2],
    /// Weight `j` in the low nibble of byte `j`, weight `j + 16` in the high one.
    pub qs: [u8; 16],
}

assert_layout!(BlockQ4_1, BlockType::Q4_1);

const TRIMS: [(f32, f32); 36] = [
    (-0.02, -0.02),
    (-0.02, 0.0),
    (-0.02, 0.02),
    (-0.02, 0.04),
    (-0.02, 0.07),
    (-0.02, 0.11),
    (0.0, -0.02),
    (0.0, 0.0),
    (0.0, 0.02),
    (0.0, 0.04),
    (0.0, 0.07),
    (0.0, 0.11),
    (0.02, -0.02),
    (0.02, 0.0),
    (0.02, 0.02),
    (0.02, 0.04),
    (0.02, 0.07),
    (0.02, 0.11),
    (0.04, -0.02),
    (0.04, 0.0),
    (0.04, 0.02),
    (0.04, 0.04),
    (0.04, 0.07),
    (0.04, 0.11),
    (0.07, -0.02),
    (0.07, 0.0),
    (0.07, 0.02),
    (0.07, 0.04),
    (0.07, 0.07),
    (0.07, 0.11),
    (0.11, -0.02),
    (0.11, 0.0),
    (0.11, 0.02),
    (0.11, 0.04),
    (0.11, 0.07),
    (0.11, 0.11),
];

const MORE_TRIMS: [(f32, f32); affine::MANY] = affine::grid(-0.03, 0.135);

impl BlockQ4_1 {
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

impl Block<32> for BlockQ4_1 {
    const TYPE: BlockType = BlockType::Q4_1;

    fn decode(&self, out: &mut [f32; 32]) {
        let (d, m) = (self.d(), self.m());
        for (j, v) in out.iter_mut().enumerate() {
            *v = f32::from(nibble(&self.qs, j)) * d + m;
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        affine::encode_row::<Self>(row, importance, effort, out);
    }
}

impl AffineBlock for BlockQ4_1 {
    const TOP: f32 = 15.0;

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
            qs: pack_nibbles(levels),
        }
    }
}
