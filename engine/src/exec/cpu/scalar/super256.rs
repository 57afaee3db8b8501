//! Super-blocks of 256 quants: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.
//!
//! The bit layouts are GGML's; `formats::blocks` documents them.

use formats::blocks::BlockType;
use half::f16;

use super::{PANEL, grouping};

fn f16_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Six-bit scale and minimum of sub-block `j` (of 8) in Q4_K and Q5_K.
pub(crate) fn scale_min_k4(j: usize, s: &[u8]) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (
            (s[j + 4] & 15) | (s[j - 4] >> 6) << 4,
            (s[j + 4] >> 4) | (s[j] >> 6) << 4,
        )
    }
}

/// Six-bit signed scale of sub-block `j` (of 16) in Q3_K.
pub(crate) fn scale_k3(j: usize, s: &[u8]) -> i32 {
    let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
    let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
    i32::from(low | high << 4) - 32
}

/// The scale of a super-block of groups of 16, and what it is multiplied with for each group.
pub(super) fn sizes(ty: BlockType, b: &[u8]) -> (f32, [i32; 16]) {
    match ty {
        BlockType::Q2_K => (f16_at(b, 80), std::array::from_fn(|j| i32::from(b[j] & 15))),
        BlockType::Q3_K => (
            // As vectors read them: four times as large, so that they fill their bytes.
            0.25 * f16_at(b, 108),
            std::array::from_fn(|j| 4 * scale_k3(j, &b[96..108])),
        ),
        _ => (
            f16_at(b, 208),
            std::array::from_fn(|j| i32::from(b[192 + j] as i8)),
        ),
    }
}

/// Quants, scales and (negated) minima of a super-block.
pub(super) fn unpack(
    ty: BlockType,
    b: &[u8],
    q: &mut [f32; PANEL],
    scale: &mut [f32; 16],
    min: &mut [f32; 16],
) {
    if grouping(ty).group == 16 {
        let (d, sizes) = sizes(ty, b);
        *scale = sizes.map(|s| d * s as f32);
    }
    match ty {
        BlockType::Q2_K => {
            let dmin = f16_at(b, 82);
            for (j, m) in min.iter_mut().enumerate() {
                *m = -(dmin * f32::from(b[j] >> 4));
            }
            for (i, q) in q.iter_mut().enumerate() {
                let byte = b[16 + i / 128 * 32 + i % 32];
                *q = f32::from(byte >> (2 * (i % 128 / 32)) & 3);
            }
        }
        BlockType::Q3_K => {
            for (i, q) in q.iter_mut().enumerate() {
                let low = b[32 + i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3;
                let high = b[i % 32] >> (i / 32) & 1;
                *q = f32::from(low) - if high == 0 { 4.0 } else { 0.0 };
            }
        }
        BlockType::Q4_K | BlockType::Q5_K => {
            let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
            for j in 0..8 {
                let (s, m) = scale_min_k4(j, &b[4..16]);
                scale[j] = d * f32::from(s);
                min[j] = -(dmin * f32::from(m));
            }
            let five = ty == BlockType::Q5_K;
            let qs = if five { &b[48..176] } else { &b[16..144] };
            for (i, q) in q.iter_mut().enumerate() {
                let byte = qs[i / 64 * 32 + i % 32];
                let low = byte >> (4 * (i % 64 / 32)) & 15;
                let high = if five {
                    b[16 + i % 32] >> (i / 32) & 1
                } else {
                    0
                };
                *q = f32::from(low | high << 4);
            }
        }
        _ => {
            for (i, q) in q.iter_mut().enumerate() {
                let (half, r, c) = (i / 128, i % 128 / 32, i % 32);
                let low = b[half * 64 + (r % 2) * 32 + c] >> (4 * (r / 2)) & 15;
                let high = b[128 + half * 32 + c] >> (2 * r) & 3;
                *q = f32::from(low | high << 4) - 32.0;
            }
        }
    }
}
