//! AVX-512 kernels with VNNI: products in whole numbers. All else runs in [`super::avx2`], which
//! such a processor has as well.

// As in `avx2`.
#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    clippy::needless_range_loop
)]

mod integer;
mod narrow;

pub(crate) use integer::products;
pub(crate) use narrow::products_narrow;
