//! Q2_K: 16 sub-blocks of 16 weights `x ≈ (d·scale)·q − (dmin·min)`, `q` of 2 bits, scale and
//! minimum of 4 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::search::sanitise;
use super::superblock::fit_affine_super;
use super::{BlockType, QK_K};

/// 84 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Sub-block `b`: scale in the low nibble, minimum in the high one.
    pub scales: [u8; 16],
    /// Weight `128·h + 32·k + i` in bits `2k..2k+2` of byte `32·h + i`.
    pub qs: [u8; 64],
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Factor of the minima, a little-endian half float.
    pub dmin: [u8; 2],
}

assert_layout!(BlockQ2K, BlockType::Q2_K);

const TOP: f32 = 3.0;
const LIMIT: f32 = 15.0;
const TRIMS: [f32; 7] = [-0.04, 0.0, 0.05, 0.1, 0.16, 0.23, 0.32];

impl BlockQ2K {
    /// Factor of the scales, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }

    /// Factor of the minima, decoded.
    #[inline]
    pub fn dmin(&self) -> f32 {
        f16::from_le_bytes(self.dmin).to_f32()
    }
}

impl Block<QK_K> for BlockQ2K {
    const TYPE: BlockType = BlockType::Q2_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let (d, dmin) = (self.d(), self.dmin());
        for (b, sub) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let step = d * f32::from(self.scales[b] & 15);
            let min = dmin * f32::from(self.scales[b] >> 4);
            // Sub-blocks come in pairs that share a bit position and lie side by side.
            let (start, shift) = (b / 8 * 32 + b % 2 * 16, b % 8 / 2 * 2);
            for (v, q) in sub.iter_mut().zip(&self.qs[start..start + 16]) {
                *v = step * f32::from(q >> shift & 3) - min;
            }
        }
    }

    fn encode(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let (x, w) = sanitise(x, importance);
        let x: [[f32; 16]; 16] = bytemuck::cast(x);
        let w: [[f32; 16]; 16] = bytemuck::cast(w);
        let fit = fit_affine_super(&x, &w, TOP, LIMIT, &TRIMS);
        let mut qs = [0u8; 64];
        for (b, sub) in x.iter().enumerate() {
            let (start, shift) = (b / 8 * 32 + b % 2 * 16, b % 8 / 2 * 2);
            for (q, l) in qs[start..start + 16]
                .iter_mut()
                .zip(fit.levels(b, sub, TOP))
            {
                *q |= l << shift;
            }
        }
        Self {
            scales: std::array::from_fn(|b| fit.scales[b] | fit.mins[b] << 4),
            qs,
            d: fit.d.to_le_bytes(),
            dmin: fit.dmin.to_le_bytes(),
        }
    }
}
