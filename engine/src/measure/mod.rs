//! What a split is worth: perplexity, divergence, bytes, speed.

mod bench;
mod distribution;
mod eval;

pub use bench::{BenchOptions, BenchReport, bench};
pub use distribution::{Comparison, compare, log_softmax};
pub use eval::{EvalOptions, EvalReport, evaluate};
