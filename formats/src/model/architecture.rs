//! The architectures that are computed here.

use std::fmt;

use super::error::ModelFault;
use super::hparams::RopeStyle;
use crate::gguf::Metadata;

/// Where a file says its architecture.
const KEY: &str = "general.architecture";

/// An architecture that splitconv cuts and splitrun computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3, Mistral, SmolLM.
    Llama,
    /// Qwen2, Qwen2.5: biases on Q, K and V, rotation of halves.
    Qwen2,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Qwen2];

    /// The name in GGUF: the value of `general.architecture` and the prefix of its keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    /// The architecture called `name` in GGUF.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// The names of all, for messages: `` `llama`, `qwen2` ``.
    pub fn supported() -> String {
        Self::ALL.map(|a| format!("`{a}`")).join(", ")
    }

    /// The architecture that `metadata` states.
    ///
    /// # Errors
    /// When the key is missing or no string, or the architecture is not one of [`Self::ALL`].
    pub fn of(metadata: &Metadata) -> Result<Self, ModelFault> {
        let bad = |why: &str| ModelFault::Key {
            key: KEY.into(),
            why: why.into(),
        };
        let value = metadata.get(KEY).ok_or_else(|| bad("is missing"))?;
        let name = value.as_str().ok_or_else(|| bad("is not a string"))?;
        Self::from_name(name).ok_or_else(|| ModelFault::Architecture {
            found: name.chars().take(64).flat_map(char::escape_debug).collect(),
        })
    }

    /// The key of this architecture that ends in `rest`, as `qwen2.block_count`.
    pub fn key(self, rest: &str) -> String {
        format!("{}.{rest}", self.name())
    }

    /// Which values of a head are turned together.
    pub const fn rope_style(self) -> RopeStyle {
        match self {
            Self::Llama => RopeStyle::Interleaved,
            Self::Qwen2 => RopeStyle::HalfSplit,
        }
    }

    /// Whether a model is not whole without biases on Q, K and V.
    pub const fn needs_biases(self) -> bool {
        matches!(self, Self::Qwen2)
    }

    /// Whether frequency factors (`rope_freqs.weight`) or the inverse frequencies of old files
    /// may stand in a file. llama.cpp refuses them in others.
    pub const fn may_have_factors(self) -> bool {
        matches!(self, Self::Llama)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;

    #[test]
    fn names_and_keys() {
        for a in Architecture::ALL {
            assert_eq!(Architecture::from_name(a.name()), Some(a));
        }
        assert_eq!(Architecture::Qwen2.key("block_count"), "qwen2.block_count");
        assert_eq!(Architecture::supported(), "`llama`, `qwen2`");
    }

    #[test]
    fn others_are_refused_with_the_list() {
        let mut m = Metadata::new();
        let text = |m: &Metadata| Architecture::of(m).unwrap_err().to_string();
        assert!(text(&m).contains("missing"));
        m.set(KEY, Value::u32(3));
        assert!(text(&m).contains("not a string"));
        m.set(KEY, Value::string("gemma3"));
        for word in ["`gemma3`", "`llama`", "`qwen2`"] {
            assert!(text(&m).contains(word), "{}", text(&m));
        }
        m.set(KEY, Value::string("qwen2"));
        assert_eq!(Architecture::of(&m).unwrap(), Architecture::Qwen2);
    }
}
