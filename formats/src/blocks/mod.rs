//! GGML block types: how a row of weights is laid out in bytes.
//!
//! Every type has a file of its own with its layout struct, a compile-time size assertion, a
//! decoder and (see [`BlockType::can_encode`]) an encoder. A *row* is the unit: `n` weights, `n` a multiple of
//! [`BlockType::block_len`], occupy [`BlockType::row_bytes`]`(n)` bytes.
//!
//! [`dequantize_row`] and [`quantize_row`] serve whole rows of any type; [`blocks_of`] views a row
//! as its layout structs, for kernels that work on the codes. All layouts have alignment 1.
//! The searches behind the encoders are in `fit`, written once over the vectors of `simd`;
//! `shared_scale` is that of IQ4_XS and IQ3_S. The codebooks of the IQ types are in `grids`.

// What takes vectors must be inlined into the function that may use the wide registers.
#![allow(clippy::inline_always)]

use std::fmt;

mod codec;
mod effort;
mod fit;
mod float;
mod grids;
mod groups;
mod half_scale;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_s_search;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod iq4_xs_search;
mod mxfp4;
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
mod shared_scale;
mod simd;
mod tq1_0;
mod tq2_0;

pub use codec::{Block, RowError, blocks_of, dequantize_row, quantize_row};
pub use effort::{Effort, UnknownEffort};
pub use grids::{
    EVEN_SIGNS, IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID,
};
pub use groups::Grouped;
pub use iq1_m::BlockIq1M;
pub use iq1_s::BlockIq1S;
pub use iq2_s::BlockIq2S;
pub use iq2_xs::BlockIq2Xs;
pub use iq2_xxs::BlockIq2Xxs;
pub use iq3_s::BlockIq3S;
pub use iq3_xxs::BlockIq3Xxs;
pub use iq4_nl::{BlockIq4Nl, IQ4_NL_LEVELS};
pub use iq4_xs::BlockIq4Xs;
pub use mxfp4::{BlockMxfp4, MXFP4_LEVELS};
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
pub use tq1_0::BlockTq1_0;
pub use tq2_0::BlockTq2_0;

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
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
}

impl BlockType {
    /// All types, by ascending bits per weight.
    pub const ALL: [Self; 25] = [
        Self::IQ1_S,
        Self::TQ1_0,
        Self::IQ1_M,
        Self::IQ2_XXS,
        Self::TQ2_0,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::Q2_K,
        Self::IQ3_XXS,
        Self::IQ3_S,
        Self::Q3_K,
        Self::IQ4_XS,
        Self::MXFP4,
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
            Self::IQ2_XXS => "IQ2_XXS",
            Self::IQ2_XS => "IQ2_XS",
            Self::IQ3_XXS => "IQ3_XXS",
            Self::IQ1_S => "IQ1_S",
            Self::IQ3_S => "IQ3_S",
            Self::IQ2_S => "IQ2_S",
            Self::IQ4_XS => "IQ4_XS",
            Self::IQ1_M => "IQ1_M",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::MXFP4 => "MXFP4",
        }
    }

    /// Weights per block: 1, 32 or 256.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::IQ4_NL
            | Self::MXFP4 => 32,
            Self::Q2_K
            | Self::Q3_K
            | Self::Q4_K
            | Self::Q5_K
            | Self::Q6_K
            | Self::IQ1_S
            | Self::IQ1_M
            | Self::IQ2_XXS
            | Self::IQ2_XS
            | Self::IQ2_S
            | Self::IQ3_XXS
            | Self::IQ3_S
            | Self::IQ4_XS
            | Self::TQ1_0
            | Self::TQ2_0 => QK_K,
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
            Self::Q3_K | Self::IQ3_S => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::MXFP4 => 17,
            Self::IQ1_S => 50,
            Self::TQ1_0 => 54,
            Self::IQ1_M => 56,
            Self::IQ2_XXS | Self::TQ2_0 => 66,
            Self::IQ2_XS => 74,
            Self::IQ2_S => 82,
            Self::IQ3_XXS => 98,
            Self::IQ4_XS => 136,
        }
    }

    /// Whether [`quantize_row`] can write this type; every type can be read.
    pub const fn can_encode(self) -> bool {
        !matches!(
            self,
            Self::IQ1_S | Self::IQ1_M | Self::IQ2_XXS | Self::IQ2_XS | Self::IQ2_S | Self::IQ3_XXS
        )
    }

    /// The types that can be written, by ascending bits per weight.
    pub fn encodable() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|t| t.can_encode())
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
#[error("unknown block type `{0}`; known: {list}", list = names(BlockType::ALL))]
pub struct UnknownBlockType(pub String);

/// Names with spaces between them.
pub(crate) fn names(types: impl IntoIterator<Item = BlockType>) -> String {
    let names: Vec<&str> = types.into_iter().map(BlockType::name).collect();
    names.join(" ")
}

impl std::str::FromStr for BlockType {
    type Err = UnknownBlockType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(s))
            .ok_or_else(|| UnknownBlockType(s.to_owned()))
    }
}
