//! What a split is worth: perplexity, divergence, bytes, speed; and what quantisers want to know.

mod against;
mod bench;
mod boundary;
mod calibrate;
mod codecs;
pub mod damage;
mod distribution;
mod eval;
mod journal;
pub mod profile;
mod sensitivity;
mod steps;
pub mod task;
mod windows;

pub use against::{AgainstReport, evaluate_against};
pub use bench::{
    BatchReport, BenchOptions, BenchReport, BusyReport, CpuReport, GpuReport, PhaseTime, bench,
    bench_cpu, bench_gpu,
};
pub use calibrate::{CalibrateOptions, calibrate};
pub use codecs::{Candidate, CodecFigures, CodecsOptions, CodecsReport, compare_codecs};
pub use distribution::{Comparison, compare, log_softmax};
pub use eval::{EvalOptions, EvalReport, evaluate};
pub use journal::Journal;
pub use sensitivity::{SensitivityOptions, sensitivity};
pub use steps::{StepOptions, check_cuts, steps};
