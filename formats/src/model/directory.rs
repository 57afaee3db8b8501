//! What the reader asks of a set of tensors, whatever file they stand in.

use crate::blocks::{RowError, dequantize_row};
use crate::gguf::GgufSet;

/// The tensors of a model by their GGUF names.
pub trait TensorDirectory {
    /// The shape of `name`, row length first; `None` when there is no such tensor.
    fn dims(&self, name: &str) -> Option<Vec<u64>>;

    /// All names, each once.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// All values of `name`, decoded; `None` when there is no such tensor. Asked for small
    /// tensors only.
    fn floats(&self, name: &str) -> Option<Result<Vec<f32>, RowError>>;
}

impl TensorDirectory for GgufSet {
    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        self.tensor(name).map(|(_, t)| t.dims.clone())
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors().map(|(_, t)| t.name.as_str()))
    }

    fn floats(&self, name: &str) -> Option<Result<Vec<f32>, RowError>> {
        let (file, t) = self.tensor(name)?;
        // The reader of the file has checked that its bytes are there.
        let mut values = vec![0.0; t.row_len() * t.rows()];
        Some(dequantize_row(t.block_type, file.data(t), &mut values).map(|()| values))
    }
}
