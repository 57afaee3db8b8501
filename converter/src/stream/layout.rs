//! How large the files of a pair will be, without writing them.

use formats::gguf::{Metadata, TensorDecl, Value, alignment_of, file_bytes, metadata_bytes};
use formats::pair::{Digest, HalfRole};

use super::StreamError;
use super::headers::{Known, half_info, rope_freqs};
use crate::recipe::{Plan, TensorPlan};
use crate::source::Source;

/// What of the two files' headers does not depend on the plan. Made once, it lays out any number
/// of plans: the vocabulary, most of a header, is not copied for each.
#[derive(Debug)]
pub struct Layout {
    base: Metadata,
    base_bytes: usize,
    alignment: usize,
    rope_freqs: Option<Vec<f32>>,
    size: (u32, u32),
}

impl Layout {
    /// Of the pairs that `source` can become.
    ///
    /// # Errors
    /// When the rotary factors cannot be read.
    pub fn new(source: &Source) -> Result<Self, StreamError> {
        let mut base = source.metadata().clone();
        // The numbers do not matter here, only their size.
        base.set("general.file_type", Value::u32(0));
        base.set("general.quantization_version", Value::u32(2));
        let h = source.hparams();
        Ok(Self {
            base_bytes: metadata_bytes(&base),
            alignment: alignment_of(&base),
            base,
            rope_freqs: rope_freqs(source)?,
            // The source's sizes fit u32.
            size: (h.n_layer as u32, h.n_embd as u32),
        })
    }

    /// Bytes of the metadata that both halves carry.
    pub fn metadata_bytes(&self) -> u64 {
        self.base_bytes as u64
    }

    /// The size of the file that a conversion writes for the half `role` of `plan`, with
    /// `imatrix` as the digest of the importances that some encoder of the pair is given.
    ///
    /// # Errors
    /// When a tensor's rows are not whole blocks.
    pub fn file_bytes(
        &self,
        plan: &Plan,
        role: HalfRole,
        imatrix: Option<Digest>,
    ) -> Result<u64, StreamError> {
        let mut info = half_info(plan, role, self.size, &Known::blank(plan));
        info.imatrix_digest = imatrix;
        if role == HalfRole::Cloud {
            info.rope_freqs.clone_from(&self.rope_freqs);
        }
        let mut own = Metadata::new();
        info.write(&mut own, 0);
        let mut replaced = Metadata::new();
        for (key, _) in own.iter() {
            if let Some(value) = self.base.get(key) {
                replaced.set(key, value.clone());
            }
        }
        let header = self.base_bytes + metadata_bytes(&own) - metadata_bytes(&replaced);
        let decls: Vec<TensorDecl> = plan.half(role).map(TensorPlan::decl).collect();
        let bytes = file_bytes(header, self.alignment, &decls);
        // No path is at fault: the recipe has chosen types that fit.
        bytes
            .map(|b| b as u64)
            .map_err(|_| StreamError::Internal("a tensor of the plan has no size"))
    }
}
