//! TQ2_0: 256 ternary weights `x ≈ d·(q − 1)`, `q` of two bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout, encode_each};
use super::groups::{self, Grouped};
use super::tq1_0::fit_ternary;
use super::{BlockType, Effort, QK_K};

/// 66 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTq2_0 {
    /// Weight `128·h + 32·k + i` in bits `2k..2k+2` of byte `32·h + i`.
    pub qs: [u8; 64],
    /// Step, a little-endian half float.
    pub d: [u8; 2],
}

assert_layout!(BlockTq2_0, BlockType::TQ2_0);

impl BlockTq2_0 {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Grouped<32> for BlockTq2_0 {
    const TYPE: BlockType = BlockType::TQ2_0;

    #[inline]
    fn scale(&self, _: usize) -> f32 {
        self.d()
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        let (half, pair) = (g / 4, g % 4);
        std::array::from_fn(|i| (self.qs[32 * half + i] >> (2 * pair) & 3) as i8 - 1)
    }
}

impl Block<QK_K> for BlockTq2_0 {
    const TYPE: BlockType = BlockType::TQ2_0;

    fn decode(&self, out: &mut [f32; QK_K]) {
        groups::decode(self, out);
    }

    /// The search is exact, so there is no longer one.
    fn encode_row(row: &[f32], importance: Option<&[f32]>, _: Effort, out: &mut [u8]) {
        encode_each(row, importance, out, Self::fitted);
    }
}

impl BlockTq2_0 {
    fn fitted(x: &[f32; QK_K], w: &[f32; QK_K]) -> Self {
        let (d, codes) = fit_ternary(x, w);
        let mut qs = [0; 64];
        for (i, code) in codes.into_iter().enumerate() {
            qs[i / 128 * 32 + i % 32] |= ((code + 1) as u8) << (2 * (i % 128 / 32));
        }
        Self {
            qs,
            d: d.to_le_bytes(),
        }
    }
}
