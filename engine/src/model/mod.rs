//! What a model is: hyperparameters and the tensors of one layer range.

mod load;
mod part;

pub use formats::model::{Architecture, HParams, Rope, RopeStyle};
pub use load::{ModelError, read_hparams};
pub(crate) use part::Tiles;
pub use part::{LayerTensors, ModelPart, Tensor};
