//! GGML block types: how a row of weights is laid out in bytes.
//!
//! Every type has a file of its own with its layout struct, a compile-time size assertion, a
//! decoder and an encoder. A *row* is the unit: `n` weights, `n` a multiple of
//! [`BlockType::block_len`], occupy [`BlockType::row_bytes`]`(n)` bytes.
//!
//! [`dequantize_row`] and [`quantize_row`] serve whole rows of any type; [`blocks_of`] views a row
//! as its layout structs, for kernels that work on the codes. All layouts have alignment 1.
//! The searches behind the encoders are in `search` (one group of weights), `half_scale` (scales
//! stored as half floats) and `superblock` (K-quants).

use std::fmt;

mod codec;
mod float;
mod half_scale;
mod iq4_nl;
mod lanes;
mod pack;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod search;
mod superblock;

pub use codec::{Block, RowSizeError, blocks_of, dequantize_row, quantize_row};
pub use iq4_nl::{BlockIq4Nl, IQ4_NL_LEVELS};
pub use pack::scale_min;
pub use q2_k::BlockQ2K;
pub use q3_k::BlockQ3K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4K;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5K;
pub use q6_k::BlockQ6K;
pub use q8_0::BlockQ8_0;

/// Weights in a K-quant super-block.
pub const QK_K: usize = 256;

/// The GGML block types this project reads and writes, with their ids in GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(non_camel_case_types, missing_docs)] // the names are GGML's own, known to every reader
pub enum BlockType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    BF16 = 30,
}

impl BlockType {
    /// All types, by ascending bits per weight.
    pub const ALL: [Self; 14] = [
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q4_0,
        Self::IQ4_NL,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_K,
        Self::Q5_1,
        Self::Q6_K,
        Self::Q8_0,
        Self::F16,
        Self::BF16,
        Self::F32,
    ];

    /// The type with this GGUF id, or `None` when this project does not know it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u32 == id)
    }

    /// The GGUF id.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// GGML's name, as `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::BF16 => "BF16",
        }
    }

    /// Weights per block: 1, 32 or 256.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => QK_K,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of a row of `n` weights; `None` when `n` is not whole blocks or the size overflows.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a block type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown block type `{0}`; known: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL"
)]
pub struct UnknownBlockType(pub String);

impl std::str::FromStr for BlockType {
    type Err = UnknownBlockType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(s))
            .ok_or_else(|| UnknownBlockType(s.to_owned()))
    }
}
