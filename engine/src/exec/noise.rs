//! Weights and activations for the tests of kernels.

use formats::blocks::{self, BlockType, Effort};
use half::f16;

/// Values that look like weights and activations: bell-shaped, with a few far ones.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        if self.0.is_multiple_of(97) {
            sum * 40.0
        } else {
            sum
        }
    }

    pub(crate) fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    /// A row of weights of type `ty`; random codes where there is no encoder, and in ternary
    /// types, whose codes would otherwise be almost all alike.
    pub(crate) fn row(&mut self, ty: BlockType, cols: usize) -> Vec<u8> {
        let mut bytes = vec![0; ty.row_bytes(cols).unwrap()];
        if ty.can_encode() && !matches!(ty, BlockType::TQ1_0 | BlockType::TQ2_0) {
            blocks::quantize_row(ty, &self.take(cols), None, Effort::Normal, &mut bytes).unwrap();
            return bytes;
        }
        for b in &mut bytes {
            self.next();
            *b = (self.0 >> 40) as u8;
        }
        let step = f16::from_f32(0.01 + self.next().abs()).to_le_bytes();
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            let end = block.len();
            match ty {
                BlockType::TQ1_0 | BlockType::TQ2_0 => block[end - 2..].copy_from_slice(&step),
                BlockType::IQ1_M => {
                    for (i, at) in (49..56).step_by(2).enumerate() {
                        block[at] = block[at] & 15 | step[i / 2] >> (4 * (i % 2)) << 4;
                    }
                }
                _ => block[..2].copy_from_slice(&step),
            }
        }
        bytes
    }
}
