//! The kernels and their sources.

use crate::expand::{Context, SourceError, expand};

/// A compute kernel. The file of the same name under `kernels/` says what it does, which constants
/// it needs and what is bound where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// RMS norm of rows.
    Norm,
    /// Weight matrix times a few rows.
    MatVec,
    /// Weight matrix times many rows.
    MatMul,
    /// Biases, rotary embedding, and keys and values into the cache.
    Rope,
    /// Causal attention over the cache.
    Attention,
    /// silu(gate) · up.
    Swiglu,
    /// Place of the largest value.
    Argmax,
    /// Copies memory.
    Copy,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 8] = [
        Self::Norm,
        Self::MatVec,
        Self::MatMul,
        Self::Rope,
        Self::Attention,
        Self::Swiglu,
        Self::Argmax,
        Self::Copy,
    ];

    /// The name of its file, and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::MatVec => "matvec",
            Self::MatMul => "matmul",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::Swiglu => "swiglu",
            Self::Argmax => "argmax",
            Self::Copy => "copy",
        }
    }

    /// Whether it multiplies weights, and so needs a block type.
    pub const fn needs_block(self) -> bool {
        matches!(self, Self::MatVec | Self::MatMul)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Norm => include_str!("../kernels/norm.wgsl"),
            Self::MatVec => include_str!("../kernels/matvec.wgsl"),
            Self::MatMul => include_str!("../kernels/matmul.wgsl"),
            Self::Rope => include_str!("../kernels/rope.wgsl"),
            Self::Attention => include_str!("../kernels/attention.wgsl"),
            Self::Swiglu => include_str!("../kernels/swiglu.wgsl"),
            Self::Argmax => include_str!("../kernels/argmax.wgsl"),
            Self::Copy => include_str!("../kernels/copy.wgsl"),
        }
    }
}

/// What a variant of a kernel may use, or which of two forms it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// Sums over a subgroup, whose size is the constant `LANES`.
    pub subgroups: bool,
    /// Rotary pairs are neighbours (`llama`), not half a head apart (`qwen2`).
    pub interleaved: bool,
}

impl Features {
    fn get(self, name: &str) -> Option<bool> {
        match name {
            "subgroups" => Some(self.subgroups),
            "interleaved" => Some(self.interleaved),
            _ => None,
        }
    }
}

/// Named numbers that a kernel is compiled with.
pub type Constants<'a> = &'a [(&'static str, u32)];

/// The WGSL of `kernel`, over blocks whose `unpack32` is in the text `block`.
///
/// # Errors
/// When the kernel needs a constant or a block that is not given, or its file has a wrong directive.
pub fn source(
    kernel: Kernel,
    block: Option<&'static str>,
    features: Features,
    constants: Constants<'_>,
) -> Result<String, SourceError> {
    let context = Context {
        kernel: kernel.name(),
        file: &|name| match name {
            "matrix" => Some(include_str!("../kernels/matrix.wgsl")),
            "pass" => Some(include_str!("../kernels/pass.wgsl")),
            "block" => block,
            _ => {
                let piece = crate::blocks::PIECES.iter().find(|p| p.0 == name);
                piece.map(|p| p.1)
            }
        },
        feature: &|name| features.get(name),
        constant: &|name| constants.iter().find(|c| c.0 == name).map(|c| c.1),
    };
    let body = expand(&context, kernel.text())?;
    let mut lines: Vec<String> = constants
        .iter()
        .map(|(name, value)| format!("const {name}: u32 = {value}u;"))
        .collect();
    lines.push(body);
    Ok(lines.join("\n"))
}
