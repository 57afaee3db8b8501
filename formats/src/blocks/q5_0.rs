//! Q5_0: 32 weights `x ≈ d·(q − 16)`, `q` of 5 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::scale::{self, Integers, ScaleBlock};
use super::pack::{nibble, pack_fifth_bits, pack_nibbles};
use super::{BlockType, Effort};

/// 22 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Step, a little-endian half float.
    pub d: [u8; 2],
    /// Fifth bits, a little-endian `u32`: bit `j` of weight `j`.
    pub qh: [u8; 4],
    /// Low nibbles: weight `j` low in byte `j`, weight `j + 16` high.
    pub qs: [u8; 16],
}

assert_layout!(BlockQ5_0, BlockType::Q5_0);

/// Levels the largest magnitude is tried at; the range is −16..=15.
const TRIES: [f32; 16] = [
    -11.0, -12.5, -13.25, -13.75, -14.25, -14.5, -14.75, -15.0, -15.25, -15.5, -15.75, -16.0,
    -16.25, -16.5, -17.0, -20.0,
];

const MORE_TRIES: [f32; scale::MANY] = scale::ladders([-10.0, -21.0], [11.0, 19.0]);

impl BlockQ5_0 {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Block<32> for BlockQ5_0 {
    const TYPE: BlockType = BlockType::Q5_0;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d();
        let high = u32::from_le_bytes(self.qh);
        for (j, v) in out.iter_mut().enumerate() {
            let q = i32::from(nibble(&self.qs, j)) | ((high >> j & 1) << 4) as i32;
            *v = (q - 16) as f32 * d;
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        scale::encode_row::<Self>(row, importance, effort, out);
    }
}

impl ScaleBlock for BlockQ5_0 {
    type Levels = Integers<-16, 15>;

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
            qh: pack_fifth_bits(levels),
            qs: pack_nibbles(levels),
        }
    }
}
