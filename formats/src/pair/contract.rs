//! The boundary contract: what two halves must agree on before one row may cross.

use std::fmt;

use crate::wire::PairTag;

/// Identity of a conversion: a hash of the source digests, the cut, the types and the format
/// version. The same conversion anywhere gives the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PairId(pub [u8; 16]);

impl fmt::Display for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PairId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairId({self})")
    }
}

impl std::str::FromStr for PairId {
    type Err = BadPairId;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || BadPairId(s.chars().take(64).collect());
        if s.len() != 32 || !s.is_ascii() {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (i, b) in id.iter_mut().enumerate() {
            *b = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

/// A pair id is 32 hexadecimal digits; this is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a pair id (32 hexadecimal digits)")]
pub struct BadPairId(pub String);

/// What both halves carry and must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Which conversion the half came from.
    pub pair_id: PairId,
    /// Layers before the cut: the edge runs `0..split`, the cloud `split..n_layer`.
    pub split: u32,
    /// Layers of the whole model.
    pub n_layer: u32,
    /// Values in a boundary row.
    pub width: u32,
}

/// The halves differ; each variant names both values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractMismatch {
    /// Not from the same conversion.
    #[error(
        "the halves are of different pairs: ours is {ours}, the other is {theirs}; use two files written by one splitconv run"
    )]
    PairId {
        /// The id here.
        ours: PairId,
        /// The id there.
        theirs: PairId,
    },
    /// Another cut.
    #[error("the halves are cut at different layers: ours after {ours}, the other after {theirs}")]
    Split {
        /// The cut here.
        ours: u32,
        /// The cut there.
        theirs: u32,
    },
    /// Another depth.
    #[error(
        "the halves are of models of different depth: ours has {ours} layers, the other {theirs}"
    )]
    Layers {
        /// Layers here.
        ours: u32,
        /// Layers there.
        theirs: u32,
    },
    /// Another row width.
    #[error(
        "the halves have boundary rows of different width: ours {ours} values, the other {theirs}"
    )]
    Width {
        /// Width here.
        ours: u32,
        /// Width there.
        theirs: u32,
    },
}

impl Contract {
    /// Whether a half with `theirs` may work with a half with `self`.
    ///
    /// # Errors
    /// The first difference, with both values.
    pub fn check(&self, theirs: &Self) -> Result<(), ContractMismatch> {
        if self.pair_id != theirs.pair_id {
            return Err(ContractMismatch::PairId {
                ours: self.pair_id,
                theirs: theirs.pair_id,
            });
        }
        if self.split != theirs.split {
            return Err(ContractMismatch::Split {
                ours: self.split,
                theirs: theirs.split,
            });
        }
        if self.n_layer != theirs.n_layer {
            return Err(ContractMismatch::Layers {
                ours: self.n_layer,
                theirs: theirs.n_layer,
            });
        }
        if self.width != theirs.width {
            return Err(ContractMismatch::Width {
                ours: self.width,
                theirs: theirs.width,
            });
        }
        Ok(())
    }
}
impl From<PairId> for PairTag {
    fn from(id: PairId) -> Self {
        let [a, b, c, d, ..] = id.0;
        Self([a, b, c, d])
    }
}
