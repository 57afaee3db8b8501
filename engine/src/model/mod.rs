//! What a model is: hyperparameters and the tensors of one layer range.

mod hparams;
mod load;
mod part;

pub use hparams::{HParams, Rope};
pub use load::{ModelError, read_hparams};
pub use part::{LayerTensors, ModelPart, Tensor};
