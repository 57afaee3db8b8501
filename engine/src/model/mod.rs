//! What a model is: hyperparameters and the tensors of one layer range.

mod hparams;

pub use hparams::{HParams, Rope};
