//! IQ4_NL: 32 weights `x ≈ d·level[q]`, 16 unevenly spaced levels.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::BlockType;
use super::codec::{Block, assert_layout};
use super::half_scale::best_scale;
use super::lanes::Lanes;
use super::pack::{nibble, pack_nibbles};
use super::search::{fit_scale, sanitise, scale_levels};

/// The 16 levels, denser around zero, as GGML defines them.
pub const IQ4_NL_LEVELS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// 18 bytes for 32 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// Step, a little-endian half float.
    pub d: [u8; 2],
    /// Indices into [`IQ4_NL_LEVELS`]: weight `j` low in byte `j`, weight `j + 16` high.
    pub qs: [u8; 16],
}

assert_layout!(BlockIq4Nl, BlockType::IQ4_NL);

/// Values the largest magnitude is tried at; the levels reach from −127 to 113.
const TRIES: [f32; 14] = [
    80.0, 88.0, 95.0, 100.0, 104.0, 108.0, 112.0, 116.0, 120.0, 124.0, 128.0, 133.0, 140.0, 165.0,
];

/// Where rounding goes from one level to the next: halfway.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = f32::midpoint(IQ4_NL_LEVELS[i] as f32, IQ4_NL_LEVELS[i + 1] as f32);
        i += 1;
    }
    borders
};

/// The levels nearest to `v`, as a sum of steps: no branch and no table look-up, so it vectorises.
#[inline]
fn snap(v: Lanes) -> Lanes {
    let mut level = Lanes::splat(f32::from(IQ4_NL_LEVELS[0]));
    for i in 0..15 {
        let step = f32::from(IQ4_NL_LEVELS[i + 1]) - f32::from(IQ4_NL_LEVELS[i]);
        level = level + v.step_above(BORDERS[i], step);
    }
    level
}

/// The indices of those levels.
#[inline]
fn index(v: Lanes) -> Lanes {
    BORDERS
        .iter()
        .fold(Lanes::splat(0.0), |sum, &b| sum + v.step_above(b, 1.0))
}

impl BlockIq4Nl {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Block<32> for BlockIq4Nl {
    const TYPE: BlockType = BlockType::IQ4_NL;

    fn decode(&self, out: &mut [f32; 32]) {
        let d = self.d();
        for (j, v) in out.iter_mut().enumerate() {
            *v = d * f32::from(IQ4_NL_LEVELS[usize::from(nibble(&self.qs, j))]);
        }
    }

    fn encode(x: &[f32; 32], importance: Option<&[f32; 32]>) -> Self {
        let (x, w) = sanitise(x, importance);
        let d = best_scale(&x, &w, &[fit_scale(&x, &w, &TRIES, snap)], snap);
        Self {
            d: d.to_le_bytes(),
            qs: pack_nibbles(&scale_levels(&x, d.to_f32(), index).map(|i| i as u8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapping_finds_the_nearest_level() {
        for tenth in -1500..1500 {
            let v = tenth as f32 / 10.0 + 0.01;
            let level = snap(Lanes::splat(v)).0[0];
            assert_eq!(
                level,
                f32::from(IQ4_NL_LEVELS[index(Lanes::splat(v)).0[0] as usize])
            );
            for other in IQ4_NL_LEVELS {
                assert!((v - level).abs() <= (v - f32::from(other)).abs());
            }
        }
    }
}
