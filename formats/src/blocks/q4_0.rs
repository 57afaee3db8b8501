//! Q4_0: 32 weights `x ≈ d·(q − 8)`, `q` of 4 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::scale::{self, Integers, ScaleBlock};
use super::pack::{nibble, pack_nibbles};
use super::{BlockType, Effort};

/// 18 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Step, a little-endian half float.
    pub d: [u8; 2],
    /// Weight `j` in the low nibble of byte `j`, weight `j + 16` in the high one.
    pub qs: [u8; 16],
}

assert_layout!(BlockQ4_0, BlockType::Q4_0);

/// Levels the largest magnitude is tried at; the range is −8..=7.
const TRIES: [f32; 18] = [
    -5.0, -5.5, -5.875, -6.25, -6.5, -6.75, -7.0, -7.25, -7.5, -7.75, -8.0, -8.25, -8.5, -8.75,
    -9.25, -11.0, 7.75, 8.0,
];

const MORE_TRIES: [f32; scale::MANY] = scale::ladders([-4.5, -12.0], [4.75, 10.0]);

impl BlockQ4_0 {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Block<32> for BlockQ4_0 {
    const TYPE: BlockType = BlockType::Q4_0;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d();
        for (j, v) in out.iter_mut().enumerate() {
            *v = (i32::from(nibble(&self.qs, j)) - 8) as f32 * d;
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        scale::encode_row::<Self>(row, importance, effort, out);
    }
}

impl ScaleBlock for BlockQ4_0 {
    type Levels = Integers<-8, 7>;

    fn tries(effort: Effort) -> &'static [f32] {
        match effort {
            Effort::Normal => &TRIES,
            Effort::High => &MORE_TRIES,
        }
    }

    #[inline(always)]
    fn pack(d: f16, levels: &[u8; 32]) -> Self {
        Self {
            d: d.to_le_bytes(),
            qs: pack_nibbles(levels),
        }
    }
}
