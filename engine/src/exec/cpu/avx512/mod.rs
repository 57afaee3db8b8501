//! AVX-512 kernels with VNNI: products in whole numbers and codes for them, attention, softmax, SwiGLU. All else runs in [`super::avx2`], which
//! such a processor has as well; products in floats of many rows with the registers of AVX-512.

// As in `avx2`.
#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    clippy::needless_range_loop
)]

mod elementwise;
mod integer;

pub(crate) use elementwise::{softmax, swiglu};
pub(crate) use integer::{
    encode, float_scores, float_sums, key_tile, kv_scores, kv_sums, products, soften,
};
