//! How long an encoder searches.

use std::fmt;

/// How long an encoder searches for the scales that err least. Another effort gives other bytes
/// of the same type and size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effort {
    /// A fraction of the time that llama-quantize takes, and less error.
    #[default]
    Normal,
    /// Several times longer, and less error still.
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
