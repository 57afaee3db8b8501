//! Q8_0: 32 weights `x ≈ d·q`, `q` of 8 bits, signed.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::{Block, assert_layout};
use super::half_scale::best_scale;
use super::lanes::Lanes;
use super::search::{fit_scale, sanitise, scale_levels};

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
const TRIES: [f32; 8] = [124.0, 125.0, 125.5, 126.0, 126.4, 126.7, 127.0, 127.3];

#[inline]
fn snap(v: Lanes) -> Lanes {
    v.round_to(-127.0, 127.0)
}

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

    fn encode(x: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let (x, w) = sanitise(x, importance);
        let plain = x.iter().fold(0.0f32, |a, v| a.max(v.abs())) / 127.0;
        // The levels are symmetric, so the sign of the step is free: keep it positive.
        let fitted = fit_scale(&x, &w, &TRIES, snap).abs();
        let d = best_scale(&x, &w, &[plain, fitted], snap);
        Self {
            d: d.to_le_bytes(),
            qs: scale_levels(&x, d.to_f32(), snap).map(|l| l as i8),
        }
    }
}
