//! What a model is: its architecture, its sizes, and the tensors it must have.
//!
//! One reader serves the converter and the engine, so that neither accepts what the other
//! refuses. It reads GGUF metadata; a source in another format is first described by the metadata
//! that it would have as a GGUF.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use formats::model::{HParams, check_tensors};
//! let set = formats::gguf::GgufSet::open("model.gguf".as_ref())?;
//! let shape = HParams::read(set.metadata(), &set)?;
//! check_tensors(&shape, &set)?;
//! println!("{} layers of {}", shape.n_layer, shape.architecture);
//! # Ok(()) }
//! ```

mod architecture;
mod directory;
mod end_texts;
mod error;
mod hparams;
mod kv;
mod memory;
mod read;
mod tensors;

#[cfg(test)]
mod tests;

pub use architecture::Architecture;
pub use directory::TensorDirectory;
pub use end_texts::END_TEXTS;
pub use error::ModelFault;
pub use hparams::{HParams, Rope, RopeStyle};
pub use kv::{KV_BLOCK, KV_PAGE, KvType, UnknownKvType};
pub use memory::{
    CHUNK_ROWS, Load, Memory, RUNTIME_BYTES, Scores, TOKENIZER_BYTES, TOKENIZER_BYTES_PER_TOKEN,
};
pub use tensors::{LAYER_BIASES, Place, TensorSpec, check_tensors};
