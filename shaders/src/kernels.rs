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
    /// Puts together what several workgroups of [`Attention`](Self::Attention) made of one row.
    Combine,
    /// Rows of activations to 8 bits.
    Quantize,
    /// Rows of activations to halves.
    Halve,
    /// Copies memory.
    Copy,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: [Self; 11] = [
        Self::Norm,
        Self::MatVec,
        Self::MatMul,
        Self::Rope,
        Self::Attention,
        Self::Swiglu,
        Self::Argmax,
        Self::Combine,
        Self::Quantize,
        Self::Halve,
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
            Self::Combine => "combine",
            Self::Quantize => "quantize",
            Self::Halve => "halve",
            Self::Copy => "copy",
        }
    }

    /// Whether it multiplies weights, and so needs a block type.
    pub const fn needs_block(self) -> bool {
        matches!(self, Self::MatVec | Self::MatMul)
    }

    fn text(self, features: Features) -> &'static str {
        match self {
            Self::Norm => include_str!("../kernels/norm.wgsl"),
            Self::MatVec => include_str!("../kernels/matvec.wgsl"),
            Self::MatMul if features.cooperative.is_some() => {
                include_str!("../kernels/matmul_cooperative.wgsl")
            }
            Self::MatMul if features.int8 => include_str!("../kernels/matmul_int8.wgsl"),
            Self::MatMul if features.f16 => include_str!("../kernels/matmul_f16.wgsl"),
            Self::MatMul => include_str!("../kernels/matmul.wgsl"),
            Self::Rope => include_str!("../kernels/rope.wgsl"),
            Self::Attention => include_str!("../kernels/attention.wgsl"),
            Self::Swiglu => include_str!("../kernels/swiglu.wgsl"),
            Self::Argmax => include_str!("../kernels/argmax.wgsl"),
            Self::Combine => include_str!("../kernels/combine.wgsl"),
            Self::Quantize => include_str!("../kernels/quantize.wgsl"),
            Self::Halve => include_str!("../kernels/halve.wgsl"),
            Self::Copy => include_str!("../kernels/copy.wgsl"),
        }
    }
}

/// What a variant of a kernel may use, or which of two forms it has.
// They are the names after `//#if`.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// Sums over a subgroup, whose size is the constant `LANES`.
    pub subgroups: bool,
    /// Rotary pairs are neighbours (`llama`), not half a head apart (`qwen2`).
    pub interleaved: bool,
    /// Activations in 8 bits; products are of whole numbers (`dot4I8Packed`), for blocks with
    /// [`codes`](crate::BlockShader::has_codes).
    pub int8: bool,
    /// Products in half floats. Takes activations that [`Kernel::Halve`] made.
    pub f16: bool,
    /// Products on cooperative matrices, squares of this size with halves in and floats out. Takes
    /// the activations that `f16` takes.
    pub cooperative: Option<CooperativeSize>,
    /// Attention over a part of the positions; [`Kernel::Combine`] puts parts together.
    pub split: bool,
}

/// Rows and columns of a cooperative matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CooperativeSize {
    /// 8 by 8.
    Eight,
    /// 16 by 16.
    Sixteen,
}

impl CooperativeSize {
    /// The number.
    pub const fn get(self) -> u32 {
        match self {
            Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }
}

impl Features {
    fn get(self, name: &str) -> Option<bool> {
        match name {
            "subgroups" => Some(self.subgroups),
            "interleaved" => Some(self.interleaved),
            "int8" => Some(self.int8),
            "f16" => Some(self.f16),
            "cooperative" => Some(self.cooperative.is_some()),
            "size8" => Some(self.cooperative == Some(CooperativeSize::Eight)),
            "split" => Some(self.split),
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
            "halves" => Some(include_str!("../kernels/halves.wgsl")),
            "block" => block,
            _ => {
                let piece = crate::blocks::PIECES.iter().find(|p| p.0 == name);
                piece.map(|p| p.1)
            }
        },
        feature: &|name| features.get(name),
        constant: &|name| constants.iter().find(|c| c.0 == name).map(|c| c.1),
    };
    let body = expand(&context, kernel.text(features))?;
    // WGSL wants what is enabled before everything else.
    let (enables, rest): (Vec<&str>, Vec<&str>) =
        body.lines().partition(|line| line.starts_with("enable "));
    let constants = constants
        .iter()
        .map(|(name, value)| format!("const {name}: u32 = {value}u;"));
    let lines = enables.into_iter().map(str::to_owned).chain(constants);
    let lines = lines.chain(rest.into_iter().map(str::to_owned));
    Ok(lines.collect::<Vec<_>>().join("\n") + "\n")
}
