//! IQ4_NL: 32 weights `x ≈ d·level[q]`, 16 unevenly spaced levels.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::fit::scale::{self, Levels, ScaleBlock};
use super::pack::{nibble, pack_nibbles};
use super::simd::Simd;
use super::{BlockType, Effort};

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
const TRIES: [f32; 16] = [
    -82.0, -92.0, -99.0, -104.0, -108.5, -113.0, -117.0, -121.0, -126.0, -132.0, -140.0, -160.0,
    88.0, 97.0, 105.0, 114.0,
];

const MORE_TRIES: [f32; scale::MANY] = scale::ladders([-78.0, -165.0], [80.0, 130.0]);

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

/// [`IQ4_NL_LEVELS`], found by sums of steps: no branch and no look-up.
pub(super) struct Nonlinear;

impl Levels for Nonlinear {
    #[inline(always)]
    fn snap<V: Simd>(v: V) -> V {
        let mut level = V::splat(f32::from(IQ4_NL_LEVELS[0]));
        for i in 0..15 {
            let step = f32::from(IQ4_NL_LEVELS[i + 1]) - f32::from(IQ4_NL_LEVELS[i]);
            level = level + V::splat(BORDERS[i]).if_less(v, V::splat(step), V::zero());
        }
        level
    }

    #[inline(always)]
    fn index<V: Simd>(v: V) -> V {
        let mut index = V::zero();
        for border in BORDERS {
            index = index + V::splat(border).if_less(v, V::splat(1.0), V::zero());
        }
        index
    }
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

    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]) {
        scale::encode_row::<Self>(row, importance, effort, out);
    }
}

impl ScaleBlock for BlockIq4Nl {
    type Levels = Nonlinear;

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

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, dispatch};
    use super::*;

    struct Nearest;

    impl Kernel for Nearest {
        #[inline(always)]
        fn run<V: Simd>(self) {
            for tenth in -1500..1500 {
                let v = tenth as f32 / 10.0 + 0.01;
                let level = Nonlinear::snap(V::splat(v)).store()[0];
                let index = Nonlinear::index(V::splat(v)).low_bytes()[0];
                assert_eq!(level, f32::from(IQ4_NL_LEVELS[usize::from(index)]));
                for other in IQ4_NL_LEVELS {
                    assert!((v - level).abs() <= (v - f32::from(other)).abs());
                }
            }
        }
    }

    #[test]
    fn snapping_finds_the_nearest_level() {
        dispatch(Nearest);
    }
}
