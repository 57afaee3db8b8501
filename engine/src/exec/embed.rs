//! Rows of the embedding: looked up in the map by any executor, a few at a time.

use formats::blocks;

use super::{ExecError, missing};
use crate::model::ModelPart;

/// Embeds `ids` into `rows` (`ids.len() × n_embd`, row after row).
pub(super) fn rows(part: &ModelPart, ids: &[u32], rows: &mut Vec<f32>) -> Result<(), ExecError> {
    let t = part
        .token_embd
        .as_ref()
        .ok_or_else(|| missing(part, "token embedding"))?;
    let (data, row_bytes) = (t.data(), t.row_bytes());
    rows.clear();
    rows.resize(ids.len() * t.cols, 0.0);
    for (id, row) in ids.iter().zip(rows.chunks_exact_mut(t.cols)) {
        let at = *id as usize * row_bytes;
        let bad = ExecError::BadToken {
            id: *id,
            n_vocab: t.rows,
        };
        let bytes = data.get(at..at + row_bytes).ok_or_else(|| bad.clone())?;
        blocks::dequantize_row(t.block_type, bytes, row).map_err(|_| bad)?;
    }
    Ok(())
}
