//! Bits to block types.

use std::fmt;
use std::str::FromStr;

use formats::blocks::BlockType;

/// The bits per weight that a user asks for: one of 2, 3, 4, 5, 6, 8, 16, 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(u32);

/// Not a number of bits that a half can be written in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` bits cannot be had; choose 2, 3, 4, 5, 6, 8, 16 or 32")]
pub struct BadBits(String);

impl Bits {
    /// What can be asked for.
    pub const ALL: [u32; 8] = [2, 3, 4, 5, 6, 8, 16, 32];

    /// Checks that `bits` can be had.
    ///
    /// # Errors
    /// When it is not one of [`Bits::ALL`].
    pub fn new(bits: u32) -> Result<Self, BadBits> {
        if Self::ALL.contains(&bits) {
            Ok(Self(bits))
        } else {
            Err(BadBits(bits.to_string()))
        }
    }

    /// Those of the edge when nothing is said.
    pub const EDGE: Self = Self(4);

    /// Those of the cloud when nothing is said.
    pub const CLOUD: Self = Self(8);

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number that a forced block type stands for in a file name.
    pub fn nominal(ty: BlockType) -> Self {
        Self(match ty {
            BlockType::Q2_K
            | BlockType::IQ1_S
            | BlockType::IQ1_M
            | BlockType::IQ2_XXS
            | BlockType::IQ2_XS
            | BlockType::IQ2_S
            | BlockType::TQ1_0
            | BlockType::TQ2_0 => 2,
            BlockType::Q3_K | BlockType::IQ3_XXS | BlockType::IQ3_S => 3,
            BlockType::Q4_0
            | BlockType::Q4_1
            | BlockType::Q4_K
            | BlockType::IQ4_NL
            | BlockType::IQ4_XS
            | BlockType::MXFP4 => 4,
            BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5_K => 5,
            BlockType::Q6_K => 6,
            BlockType::Q8_0 => 8,
            BlockType::F16 | BlockType::BF16 => 16,
            BlockType::F32 => 32,
        })
    }

    /// The block type of these bits for rows that allow every type: what the bits cost, and so
    /// the budget of a half.
    pub fn flat(self, source: BlockType) -> BlockType {
        match self.0 {
            2 => BlockType::Q2_K,
            3 => BlockType::Q3_K,
            4 => BlockType::Q4_K,
            5 => BlockType::Q5_K,
            6 => BlockType::Q6_K,
            8 => BlockType::Q8_0,
            16 if source == BlockType::BF16 => BlockType::BF16,
            16 => BlockType::F16,
            _ => BlockType::F32,
        }
    }

    /// The block type of these bits for rows of `row_len` weights: [`Bits::flat`] where the row
    /// is whole blocks of it, else the nearest type that fits.
    pub fn for_rows(self, source: BlockType, row_len: u64) -> BlockType {
        let flat = self.flat(source);
        if fits(flat, row_len) {
            return flat;
        }
        let second = match self.0 {
            2..=4 => BlockType::IQ4_NL,
            5 => BlockType::Q5_1,
            _ => BlockType::Q8_0,
        };
        if fits(second, row_len) {
            second
        } else {
            half_float(source)
        }
    }
}

/// Whether rows of `row_len` weights are whole blocks of `ty`.
pub fn fits(ty: BlockType, row_len: u64) -> bool {
    row_len.is_multiple_of(ty.block_len() as u64)
}

/// The 16-bit float that suits a source: its own kind.
pub fn half_float(source: BlockType) -> BlockType {
    if source == BlockType::BF16 {
        BlockType::BF16
    } else {
        BlockType::F16
    }
}

impl FromStr for Bits {
    type Err = BadBits;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || BadBits(s.chars().take(20).collect());
        Self::new(s.parse().map_err(|_| bad())?).map_err(|_| bad())
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// GGUF's `general.file_type` for a model that is mostly of `ty` (llama.cpp's numbering).
pub fn file_type(ty: BlockType) -> u32 {
    match ty {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q5_0 => 8,
        BlockType::Q5_1 => 9,
        BlockType::Q2_K => 10,
        BlockType::Q3_K => 12,
        BlockType::Q4_K => 15,
        BlockType::Q5_K => 17,
        BlockType::Q6_K => 18,
        BlockType::IQ2_XXS => 19,
        BlockType::IQ2_XS => 20,
        BlockType::IQ3_XXS => 23,
        BlockType::IQ1_S => 24,
        BlockType::IQ4_NL => 25,
        BlockType::IQ3_S => 26,
        BlockType::IQ2_S => 28,
        BlockType::IQ4_XS => 30,
        BlockType::IQ1_M => 31,
        BlockType::BF16 => 32,
        BlockType::TQ1_0 => 36,
        BlockType::TQ2_0 => 37,
        // The only file type with MXFP4 that llama.cpp has is of mixtures of experts.
        BlockType::MXFP4 => 38,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_to_types() {
        let ty = |bits, source, row| Bits::new(bits).unwrap().for_rows(source, row);
        let f16 = BlockType::F16;
        for (bits, wide, narrow) in [
            (2, BlockType::Q2_K, BlockType::IQ4_NL),
            (3, BlockType::Q3_K, BlockType::IQ4_NL),
            (4, BlockType::Q4_K, BlockType::IQ4_NL),
            (5, BlockType::Q5_K, BlockType::Q5_1),
            (6, BlockType::Q6_K, BlockType::Q8_0),
            (8, BlockType::Q8_0, BlockType::Q8_0),
            (16, BlockType::F16, BlockType::F16),
            (32, BlockType::F32, BlockType::F32),
        ] {
            assert_eq!(ty(bits, f16, 1536), wide);
            assert_eq!(ty(bits, f16, 576), narrow);
        }
        assert_eq!(ty(16, BlockType::BF16, 256), BlockType::BF16);
        assert_eq!(ty(3, f16, 100), BlockType::F16);
        assert_eq!(ty(3, BlockType::BF16, 100), BlockType::BF16);
        assert!("7".parse::<Bits>().is_err());
        assert!("x".parse::<Bits>().is_err());
        assert_eq!("16".parse::<Bits>().unwrap().get(), 16);
    }
}
