//! Blocks of 32 quants with one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL.

use formats::blocks::{BlockType, IQ4_NL_LEVELS};
use half::f16;

/// Little-endian f16 at `at`.
fn f16_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Low nibbles are the first 16 quants, high nibbles the last 16.
fn nibbles(qs: &[u8], q: &mut [f32], f: impl Fn(usize, u8) -> f32) {
    for (i, b) in qs.iter().enumerate() {
        q[i] = f(i, b & 15);
        q[i + 16] = f(i + 16, b >> 4);
    }
}

/// Quants of one block into `q`; returns scale and minimum.
pub(super) fn unpack(ty: BlockType, b: &[u8], q: &mut [f32]) -> (f32, f32) {
    let d = f16_at(b, 0);
    match ty {
        BlockType::Q4_0 => nibbles(&b[2..18], q, |_, n| f32::from(n) - 8.0),
        BlockType::IQ4_NL => {
            nibbles(&b[2..18], q, |_, n| {
                f32::from(IQ4_NL_LEVELS[usize::from(n)])
            });
        }
        BlockType::Q4_1 => {
            nibbles(&b[4..20], q, |_, n| f32::from(n));
            return (d, f16_at(b, 2));
        }
        BlockType::Q5_0 => {
            let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            nibbles(&b[6..22], q, |i, n| {
                f32::from(n | ((high >> i) as u8 & 1) << 4) - 16.0
            });
        }
        BlockType::Q5_1 => {
            let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
            nibbles(&b[8..24], q, |i, n| {
                f32::from(n | ((high >> i) as u8 & 1) << 4)
            });
            return (d, f16_at(b, 2));
        }
        _ => {
            for (q, b) in q.iter_mut().zip(&b[2..34]) {
                *q = f32::from(*b as i8);
            }
        }
    }
    (d, 0.0)
}
