//! What a split is worth: perplexity, divergence, bytes, speed; and what quantisers want to know.

mod against;
mod bench;
mod calibrate;
mod distribution;
mod eval;
mod sensitivity;
mod steps;
mod windows;

pub use against::{AgainstReport, evaluate_against};
pub use bench::{
    BenchOptions, BenchReport, CpuReport, GpuReport, PhaseTime, bench, bench_cpu, bench_gpu,
};
pub use calibrate::{CalibrateOptions, calibrate};
pub use distribution::{Comparison, compare, log_softmax};
pub use eval::{EvalOptions, EvalReport, evaluate};
pub use sensitivity::{SensitivityOptions, sensitivity};
pub use steps::{StepOptions, check_cuts, steps};
