//! Q4_K: 8 sub-blocks of 32 weights `x ≈ (d·scale)·q − (dmin·min)`, `q` of 4 bits, scale and
//! minimum of 6 bits.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout};
use super::pack::{pack_scale_min, scale_min};
use super::search::sanitise;
use super::superblock::fit_affine_super;
use super::{BlockType, QK_K};

/// 144 bytes for 256 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// Factor of the scales, a little-endian half float.
    pub d: [u8; 2],
    /// Factor of the minima, a little-endian half float.
    pub dmin: [u8; 2],
    /// Scales and minima of 6 bits; [`scale_min`] unpacks them.
    pub scales: [u8; 12],
    /// Weight `64·k + i` low in byte `32·k + i`, weight `64·k + 32 + i` high.
    pub qs: [u8; 128],
}

assert_layout!(BlockQ4K, BlockType::Q4_K);

const TOP: f32 = 15.0;
const LIMIT: f32 = 63.0;
const TRIMS: [f32; 6] = [-0.02, 0.0, 0.02, 0.04, 0.07, 0.11];

impl BlockQ4K {
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

impl Block<QK_K> for BlockQ4K {
    const TYPE: BlockType = BlockType::Q4_K;

    fn decode(&self, out: &mut [f32; QK_K]) {
        let (d, dmin) = (self.d(), self.dmin());
        for (b, sub) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_min(&self.scales, b);
            let (step, min) = (d * f32::from(scale), dmin * f32::from(min));
            let (start, shift) = (b / 2 * 32, b % 2 * 4);
            for (v, q) in sub.iter_mut().zip(&self.qs[start..start + 32]) {
                *v = step * f32::from(q >> shift & 15) - min;
            }
        }
    }

    fn encode(x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Self {
        let (x, w) = sanitise(x, importance);
        let x: [[f32; 32]; 8] = bytemuck::cast(x);
        let w: [[f32; 32]; 8] = bytemuck::cast(w);
        let fit = fit_affine_super(&x, &w, TOP, LIMIT, &TRIMS);
        let mut qs = [0u8; 128];
        for (b, sub) in x.iter().enumerate() {
            let (start, shift) = (b / 2 * 32, b % 2 * 4);
            for (q, l) in qs[start..start + 32]
                .iter_mut()
                .zip(fit.levels(b, sub, TOP))
            {
                *q |= l << shift;
            }
        }
        Self {
            d: fit.d.to_le_bytes(),
            dmin: fit.dmin.to_le_bytes(),
            scales: pack_scale_min(fit.scales, fit.mins),
            qs,
        }
    }
}
