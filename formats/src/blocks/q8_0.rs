//! Q8_0: 32 weights `x ≈ d·q`, `q` of 8 bits, signed.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::scale::{self, Integers, ScaleBlock};
use super::{BlockType, Effort};

/// 34 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Step, a little-endian half float.
    pub d: [u8; 2],
    /// Levels; the encoder uses −127..=127, so that a kernel may take magnitudes in 7 bits.
    pub qs: [i8; 32],
}

assert_layout!(BlockQ8_0, BlockType::Q8_0);

/// Levels the largest magnitude is tried at; the range is −127..=127.
const TRIES: [f32; 6] = [127.0, 126.7, 126.4, 126.0, 125.5, 125.0];

const MORE_TRIES: [f32; scale::MANY] = scale::ladders([127.49, 119.0], [118.8, 100.0]);

impl BlockQ8_0 {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Block<32> for BlockQ8_0 {
    const TYPE: BlockType = BlockType::Q8_0;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d();
        for (v, &q) in out.iter_mut().zip(&self.qs) {
            *v = f32::from(q) * d;
        }
    }

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        scale::encode_row::<Self>(row, importance, effort, out);
    }
}

impl ScaleBlock for BlockQ8_0 {
    type Levels = Integers<-127, 127>;

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
            // Counted from −127.
            qs: levels.map(|l| l.wrapping_sub(127) as i8),
        }
    }
}
