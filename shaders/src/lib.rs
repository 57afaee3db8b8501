//! WGSL compute shaders: one file per kernel under `kernels/`, one per block type under `blocks/`.
//!
//! A kernel is generic: what it needs of a block type is one function, `unpack32`, that the block's
//! file defines. [`source()`] puts the two together and carries out a few directives; what comes out is
//! plain WGSL. Nothing here talks to a device.
//!
//! | directive (a line of its own) | meaning |
//! |---|---|
//! | `//#include FILE` | the text of `FILE`, once |
//! | `//#include block` | the file of the block type |
//! | `//#if NAME` … `//#else` … `//#end` | one of two texts, as [`Features`] has it |
//! | `//#repeat i N` … `//#end` | the text N times, `$i` being 0, 1, … (N a number or a constant) |
//!
//! Repetition is textual because an array indexed by a loop's variable may end up in slow memory:
//! whether a loop is unrolled is the driver's choice, this is ours.

pub mod blocks;
mod expand;
mod kernels;
pub mod repack;

pub use blocks::{BlockShader, block};
pub use expand::SourceError;
pub use kernels::{Constants, CooperativeSize, Features, Kernel, source};
