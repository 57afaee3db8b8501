//! One file per operation: its parameters, what it binds, how large its grid is.

pub(super) mod argmax;
pub(super) mod attention;
pub(super) mod matrix;
pub(super) mod norm;
pub(super) mod prepare;
pub(super) mod rope;
pub(super) mod swiglu;

use shaders::Kernel;

use super::device::Binding::{self, Read, Uniform, Write};

/// Threads of a workgroup in kernels that go over rows value by value.
pub(super) const THREADS: u32 = 64;

/// What a kernel binds in group 0, and whether group 1 is its pass.
pub(super) fn bindings(kernel: Kernel) -> (&'static [Binding], bool) {
    match kernel {
        Kernel::Norm | Kernel::MatVec | Kernel::MatMul => (&[Read, Uniform, Read, Write], true),
        Kernel::Rope => (&[Write, Uniform, Read, Read, Write, Write], true),
        Kernel::Attention => (&[Read, Uniform, Read, Read, Write], true),
        Kernel::Swiglu | Kernel::Argmax | Kernel::Quantize | Kernel::Halve => {
            (&[Read, Uniform, Write], false)
        }
        Kernel::Combine => (&[Read, Uniform, Write], true),
        Kernel::Copy => (&[Read, Write], false),
    }
}
