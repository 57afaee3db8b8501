//! What a split is worth: perplexity, divergence, bytes, speed; and what quantisers want to know.

mod against;
mod bench;
mod calibrate;
mod codecs;
mod distribution;
mod eval;
mod sensitivity;
mod steps;
mod windows;

pub use against::{AgainstReport, evaluate_against};
pub use bench::{BenchOptions, BenchReport, GpuReport, bench, bench_gpu};
pub use calibrate::{CalibrateOptions, calibrate};
pub use codecs::{Candidate, CodecFigures, CodecsOptions, CodecsReport, compare_codecs};
pub use distribution::{Comparison, compare, log_softmax};
pub use eval::{EvalOptions, EvalReport, evaluate};
pub use sensitivity::{SensitivityOptions, sensitivity};
pub use steps::{StepOptions, check_cuts, steps};
