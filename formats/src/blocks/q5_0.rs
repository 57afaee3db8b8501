//! Q5_0: 32 weights `x ≈ d·(q − 16)`, `q` of 5 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::{Block, assert_layout};
use super::half_scale::best_scale;
use super::lanes::Lanes;
use super::pack::{nibble, pack_fifth_bits, pack_nibbles};
use super::search::{fit_scale, sanitise, scale_levels};

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
    11.0, 12.5, 13.25, 13.75, 14.25, 14.5, 14.75, 15.0, 15.25, 15.5, 15.75, 16.0, 16.25, 16.5,
    17.0, 20.0,
];

#[inline]
fn snap(v: Lanes) -> Lanes {
    v.round_to(-16.0, 15.0)
}

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

    fn encode(x: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let (x, w) = sanitise(x, importance);
        let d = best_scale(&x, &w, &[fit_scale(&x, &w, &TRIES, snap)], snap);
        let levels = scale_levels(&x, d.to_f32(), snap).map(|l| (l + 16.0) as u8);
        Self {
            d: d.to_le_bytes(),
            qh: pack_fifth_bits(&levels),
            qs: pack_nibbles(&levels),
        }
    }
}
