//! GGUF files.

mod value;

pub use value::{Array, Metadata, Value, ValueType};
