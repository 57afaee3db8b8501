//! TQ1_0: 256 ternary weights `x ≈ d·(q − 1)`, five to a byte.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::codec::{Block, assert_layout, encode_each};
use super::groups::{self, Grouped};
use super::half_scale::saturate;
use super::{BlockType, Effort, QK_K};

/// 54 bytes for 256 weights.
///
/// A byte `b` is the fraction `b / 256` of the number `q₀ q₁ q₂ q₃ q₄` after the ternary point,
/// rounded up; tripling it moves one digit after the other in front of the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockTq1_0 {
    /// Weights `32·k + i` of the first 160: digit `k` of byte `i`; then weights `160 + 16·k + i`:
    /// digit `k` of byte `32 + i`.
    pub qs: [u8; 48],
    /// Weights `240 + 4·k + i`: digit `k` (of four) of byte `i`.
    pub qh: [u8; 4],
    /// Step, a little-endian half float.
    pub d: [u8; 2],
}

assert_layout!(BlockTq1_0, BlockType::TQ1_0);

const POW3: [u8; 5] = [1, 3, 9, 27, 81];

/// Byte (of `qs`, then `qh`) and digit of weight `i`.
#[inline]
const fn place(i: usize) -> (usize, usize) {
    if i < 160 {
        (i % 32, i / 32)
    } else if i < 240 {
        (32 + i % 16, (i - 160) / 16)
    } else {
        (48 + i % 4, (i - 240) / 4)
    }
}

impl BlockTq1_0 {
    /// The step, decoded.
    #[inline]
    pub fn d(&self) -> f32 {
        f16::from_le_bytes(self.d).to_f32()
    }
}

impl Grouped<32> for BlockTq1_0 {
    const TYPE: BlockType = BlockType::TQ1_0;

    #[inline]
    fn scale(&self, _: usize) -> f32 {
        self.d()
    }

    #[inline]
    fn codes(&self, g: usize) -> [i8; 32] {
        std::array::from_fn(|i| {
            let (byte, digit) = place(32 * g + i);
            let b = if byte < 48 {
                self.qs[byte]
            } else {
                self.qh[byte - 48]
            };
            let fraction = b.wrapping_mul(POW3[digit]);
            ((u16::from(fraction) * 3) >> 8) as i8 - 1
        })
    }
}

impl Block<QK_K> for BlockTq1_0 {
    const TYPE: BlockType = BlockType::TQ1_0;

    fn decode(&self, out: &mut [f32; QK_K]) {
        groups::decode(self, out);
    }

    /// The search is exact, so there is no longer one.
    fn encode_row(row: &[f32], importance: Option<&[f32]>, _: Effort, out: &mut [u8]) {
        encode_each(row, importance, out, Self::fitted);
    }
}

impl BlockTq1_0 {
    fn fitted(x: &[f32; QK_K], w: &[f32; QK_K]) -> Self {
        let (d, codes) = fit_ternary(x, w);
        let mut numbers = [0u16; 52];
        for (i, code) in codes.into_iter().enumerate() {
            let (byte, digit) = place(i);
            numbers[byte] += (code + 1) as u16 * u16::from(POW3[4 - digit]);
        }
        let bytes = numbers.map(|n| (n * 256).div_ceil(243) as u8);
        let (mut qs, mut qh) = ([0; 48], [0; 4]);
        qs.copy_from_slice(&bytes[..48]);
        qh.copy_from_slice(&bytes[48..]);
        Self {
            qs,
            qh,
            d: d.to_le_bytes(),
        }
    }
}

/// The step and the codes −1, 0, 1 that minimise `Σ w·(x − d·code)²`.
///
/// For a given step the codes that are not 0 belong to the magnitudes above half of it, so the
/// best set is a beginning of the list in falling order, and there are only 256 of these.
pub(super) fn fit_ternary(x: &[f32; QK_K], w: &[f32; QK_K]) -> (f16, [i8; QK_K]) {
    let mut order: [u16; QK_K] = std::array::from_fn(|i| i as u16);
    let size = |i: &u16| x[usize::from(*i)].abs();
    order.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let (mut sum, mut weight, mut best, mut step) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    for i in order.map(usize::from) {
        sum += f64::from(w[i]) * f64::from(x[i].abs());
        weight += f64::from(w[i]);
        if sum * sum > best * weight {
            best = sum * sum / weight;
            step = sum / weight;
        }
    }
    let d = saturate(step as f32);
    let half = d.to_f32() / 2.0;
    let codes = x.map(|v| {
        if v > half {
            1
        } else if v < -half {
            -1
        } else {
            0
        }
    });
    (d, codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_survive_the_packing() {
        // Every byte sees every number of five digits.
        for n in 0..243usize {
            let x = std::array::from_fn(|i| {
                let (byte, digit) = place(i);
                let digits = (n + byte) % 243 / 3usize.pow(4 - digit as u32);
                (digits % 3) as f32 - 1.0
            });
            let block = BlockTq1_0::fitted(&x, &[1.0; QK_K]);
            let mut y = [0.0; QK_K];
            block.decode(&mut y);
            assert_eq!(x, y, "{n}");
        }
    }
}
