//! AVX-512 kernels with VNNI: products in whole numbers, attention. All else runs in [`super::avx2`], which
//! such a processor has as well.

// As in `avx2`.
#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    clippy::needless_range_loop
)]

mod attention;
mod integer;

pub(crate) use attention::{scores_f16, sums_f16};
pub(crate) use integer::{kv_scores, kv_sums, products, soften};
