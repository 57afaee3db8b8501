//! `--gpu-variants`: which variants of the kernels are wanted.

use std::str::FromStr;

/// Which variants of its kernels a device may use. Each has the plain kernel as its fallback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variants {
    /// What the adapter has and what pays there: cooperative matrices; without them 8-bit activations where it
    /// multiplies packed bytes in one step; without both half floats, unless it is a processor.
    #[default]
    Auto,
    /// The same, but activations stay floats.
    Exact,
    /// Those named, where the adapter can do them at all.
    Named(Names),
}

/// A set of variants.
// Any of them may be there with any other: no enum says that.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Sums over subgroups instead of workgroup memory.
    pub subgroups: bool,
    /// Activations in 8 bits, products of whole numbers.
    pub int8: bool,
    /// Tiles in half floats.
    pub f16: bool,
    /// Tiles on cooperative matrices.
    pub cooperative: bool,
}

impl Variants {
    /// No optional variant.
    pub const PLAIN: Self = Self::Named(Names {
        subgroups: false,
        int8: false,
        f16: false,
        cooperative: false,
    });
}

/// A text that names no set of variants.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no variant of the kernels; give auto, exact, plain, or some of subgroups, int8, f16, cooperative with commas between"
)]
pub struct UnknownVariant(String);

impl FromStr for Variants {
    type Err = UnknownVariant;

    fn from_str(text: &str) -> Result<Self, UnknownVariant> {
        match text {
            "auto" => return Ok(Self::Auto),
            "exact" => return Ok(Self::Exact),
            "plain" => return Ok(Self::PLAIN),
            _ => {}
        }
        let mut names = Names::default();
        for name in text.split(',') {
            *match name {
                "subgroups" => &mut names.subgroups,
                "int8" => &mut names.int8,
                "f16" => &mut names.f16,
                "cooperative" => &mut names.cooperative,
                _ => return Err(UnknownVariant(name.to_owned())),
            } = true;
        }
        Ok(Self::Named(names))
    }
}
