//! In what form keys and values are kept.

use std::fmt;
use std::str::FromStr;

/// Values that share a scale in a quantised cache.
pub const KV_BLOCK: usize = 32;

/// Positions that a quantised cache keeps side by side: its memory comes in whole groups of them.
pub const KV_PAGE: usize = 16;

/// The type of keys and values, by its name in llama.cpp (`--cache-type-k`, `--cache-type-v`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvType {
    /// Half floats.
    #[default]
    F16,
    /// Blocks of 32 with an f16 scale and codes of 8 bits.
    Q8_0,
    /// Blocks of 32 with an f16 scale and codes of 4 bits.
    Q4_0,
}

impl KvType {
    /// All, the most exact first.
    pub const ALL: [Self; 3] = [Self::F16, Self::Q8_0, Self::Q4_0];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Bytes of 32 values, their scale included.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F16 => 64,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
        }
    }

    /// Whether heads of `head_dim` values can be kept so.
    pub const fn fits(self, head_dim: usize) -> bool {
        matches!(self, Self::F16) || head_dim.is_multiple_of(KV_BLOCK)
    }

    /// Bytes of `n` values; of whole blocks where there are blocks.
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            Self::F16 => n.saturating_mul(2),
            Self::Q8_0 | Self::Q4_0 => n.div_ceil(KV_BLOCK).saturating_mul(self.block_bytes()),
        }
    }

    /// Positions that memory is taken for where `n_ctx` are asked for: whole pages.
    pub const fn positions(n_ctx: usize) -> usize {
        n_ctx.div_ceil(KV_PAGE).saturating_mul(KV_PAGE)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a type of keys and values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("keys and values are kept in f16, q8_0 or q4_0, not in `{0}`")]
pub struct UnknownKvType(pub String);

impl FromStr for KvType {
    type Err = UnknownKvType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|t| t.name().eq_ignore_ascii_case(s))
            .ok_or_else(|| UnknownKvType(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockType;

    #[test]
    fn sizes_are_those_of_the_block_types() {
        for (kv, block) in [
            (KvType::F16, BlockType::F16),
            (KvType::Q8_0, BlockType::Q8_0),
            (KvType::Q4_0, BlockType::Q4_0),
        ] {
            assert_eq!(Some(kv.bytes(192)), block.row_bytes(192), "{kv}");
            assert_eq!(kv.bytes(KV_BLOCK), kv.block_bytes(), "{kv}");
            assert_eq!(kv.name().parse(), Ok(kv));
        }
        assert!("q5_0".parse::<KvType>().is_err());
        assert!(KvType::F16.fits(80) && !KvType::Q8_0.fits(80) && KvType::Q4_0.fits(96));
        assert_eq!([0, 1, 16, 17].map(KvType::positions), [0, 16, 16, 32]);
    }
}
