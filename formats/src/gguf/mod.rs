//! GGUF: reader over a memory map, streaming writer, typed metadata.
//!
//! Our own bounded reader decides whether a header is sound; what it has accepted,
//! [`Gguf::second_opinion`] shows to the `gguf-rs` crate as an independent check. (That crate
//! alone would not do: it loses the widths of metadata numbers and allocates what a header claims.)
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = formats::gguf::GgufSet::open("model.gguf".as_ref())?;
//! for (file, tensor) in model.tensors() {
//!     println!("{} {} {}", tensor.name, tensor.block_type, file.data(tensor).len());
//! }
//! # Ok(()) }
//! ```

mod error;
mod header;
mod reader;
mod value;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{GgufError, GgufErrorKind};
pub use header::TensorInfo;
pub use reader::{Gguf, GgufSet, shard_name};
pub use value::{Array, Metadata, Value, ValueType};
pub use writer::{
    EncodedHeader, TensorDecl, WriteError, Writer, alignment_of, encode_header, file_bytes,
    metadata_bytes,
};
