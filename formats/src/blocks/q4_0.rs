//! Q4_0: 32 weights `x ≈ d·(q − 8)`, `q` of 4 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::{Block, assert_layout};
use super::half_scale::best_scale;
use super::lanes::Lanes;
use super::pack::{nibble, pack_nibbles};
use super::search::{fit_scale, sanitise, scale_levels};

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
const TRIES: [f32; 16] = [
    5.0, 5.5, 5.875, 6.25, 6.5, 6.75, 7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.25, 11.0,
];

#[inline]
fn snap(v: Lanes) -> Lanes {
    v.round_to(-8.0, 7.0)
}

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

    fn encode(x: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let (x, w) = sanitise(x, importance);
        let d = best_scale(&x, &w, &[fit_scale(&x, &w, &TRIES, snap)], snap);
        Self {
            d: d.to_le_bytes(),
            qs: pack_nibbles(&scale_levels(&x, d.to_f32(), snap).map(|l| (l + 8.0) as u8)),
        }
    }
}
