//! WGSL.

pub mod blocks;
pub mod repack;
