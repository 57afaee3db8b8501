//! How long an encoder searches.

use std::fmt;

/// How long an encoder searches for the scales that err least. Another effort gives other bytes
/// of the same type and size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effort {
    /// A fraction of the time that llama-quantize takes, and less error.
    #[default]
    Normal,
    /// Several times longer, and never more error in any block.
    ///
    /// Without importances `Q8_0` gains 5 %, `Q5_K` and `Q6_K` 1 %, `Q4_K`, `Q5_1`, `IQ4_NL`,
    /// `Q4_1` and `Q2_K` 0.4 to 0.2 %, `Q4_0`, `Q5_0`, `Q3_K`, `IQ3_S` and `IQ4_XS` at most 0.1 %:
    /// a quick search ends there where a long one does. Importances leave more to be found.
    /// `MXFP4` has another exponent only under importances far apart; `TQ1_0` and `TQ2_0`, whose
    /// search is exact, and the float types stay as they are.
    High,
}

impl Effort {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Normal, Self::High];

    /// `normal` or `high`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of an effort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown effort `{0}`; known: normal high")]
pub struct UnknownEffort(pub String);

impl std::str::FromStr for Effort {
    type Err = UnknownEffort;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|e| e.name() == s)
            .ok_or_else(|| UnknownEffort(s.to_owned()))
    }
}
