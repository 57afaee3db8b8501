//! The metadata of the two files, before and after the digests are known.

use std::collections::HashMap;

use formats::blocks::BlockType;
use formats::gguf::{Metadata, Value};
use formats::pair::{Contract, Digest, HalfInfo, HalfRole, PairId, PairIdBuilder, SourceDigest};

use super::StreamError;
use crate::recipe::{Plan, file_type};
use crate::source::Source;

/// What becomes known while the tensors stream.
pub(super) struct Known {
    pub(super) pair_id: PairId,
    pub(super) source: Digest,
    /// In the plan's order.
    tensors: Vec<Digest>,
}

impl Known {
    /// Stands in for what is not known yet: of the same encoded size.
    pub(super) fn blank(plan: &Plan) -> Self {
        Self {
            pair_id: PairId([0; 16]),
            source: Digest([0; 32]),
            tensors: vec![Digest([0; 32]); plan.tensors.len()],
        }
    }
}

/// The rotary frequency factors, which the cloud half carries as an array.
pub(super) fn rope_freqs(source: &Source) -> Result<Option<Vec<f32>>, StreamError> {
    match source.tensor("rope_freqs.weight") {
        None => Ok(None),
        Some((t, data)) if t.block_type == BlockType::F32 => {
            let bytes = data.all().map_err(|e| StreamError::Read {
                path: data.path().to_owned(),
                tensor: t.name.clone(),
                source: e,
            })?;
            let (words, _) = bytes.as_chunks::<4>();
            Ok(Some(words.iter().map(|w| f32::from_le_bytes(*w)).collect()))
        }
        Some((t, _)) => Err(StreamError::RopeFreqs {
            path: source.path().to_owned(),
            found: t.block_type,
        }),
    }
}

/// What the half `role` of `plan` says about itself, but for the rotary factors; `size` is layers
/// and width of the model.
pub(super) fn half_info(plan: &Plan, role: HalfRole, size: (u32, u32), known: &Known) -> HalfInfo {
    let (n_layer, width) = size;
    let (first_layer, end_layer) = match role {
        HalfRole::Edge => (0, plan.split),
        HalfRole::Cloud => (plan.split, n_layer),
    };
    let digests = plan.tensors.iter().zip(&known.tensors);
    let own = digests.filter(|(t, _)| t.role == role).map(|(_, d)| *d);
    HalfInfo {
        role,
        contract: Contract {
            pair_id: known.pair_id,
            split: plan.split,
            n_layer,
            width,
        },
        first_layer,
        end_layer,
        source_digest: known.source,
        imatrix_digest: plan.imatrix_digest(),
        boundary: plan.boundary.clone(),
        tensor_digests: own.collect(),
        rope_freqs: None,
    }
}

/// Makes the metadata of the two files.
pub(super) struct Headers<'a> {
    plan: &'a Plan,
    base: Metadata,
    n_layer: u32,
    width: u32,
    rope_freqs: Option<Vec<f32>>,
    tensors: i32,
}

impl<'a> Headers<'a> {
    pub(super) fn new(source: &Source, plan: &'a Plan) -> Result<Self, StreamError> {
        let rope_freqs = rope_freqs(source)?;
        let mut base = source.metadata().clone();
        base.set("general.file_type", Value::u32(file_type(plan.main_type())));
        base.set("general.quantization_version", Value::u32(2));
        let h = source.hparams();
        Ok(Self {
            plan,
            base,
            // The source's sizes fit u32.
            n_layer: h.n_layer as u32,
            width: h.n_embd as u32,
            rope_freqs,
            tensors: i32::try_from(plan.tensors.len())
                .map_err(|_| StreamError::Internal("too many tensors"))?,
        })
    }

    pub(super) fn of(&self, role: HalfRole, known: &Known) -> Metadata {
        let size = (self.n_layer, self.width);
        let mut info = half_info(self.plan, role, size, known);
        if role == HalfRole::Cloud {
            info.rope_freqs.clone_from(&self.rope_freqs);
        }
        let mut meta = self.base.clone();
        info.write(&mut meta, self.tensors);
        meta
    }

    /// With the digests of all tensors, in the plan's order: in the source and in the halves.
    pub(super) fn known(
        &self,
        source: &Source,
        digests: &[[Digest; 2]],
    ) -> Result<Known, StreamError> {
        let mut whole = SourceDigest::new(source.metadata());
        let tensors = self.plan.tensors.iter();
        let read: HashMap<&str, Digest> = (tensors.zip(digests))
            .map(|(t, [read, _])| (t.source.as_str(), *read))
            .collect();
        for t in source.tensors() {
            let digest = read.get(t.name.as_str());
            let digest = digest.ok_or(StreamError::Internal("a tensor was left out"))?;
            whole.tensor(&t.name, t.block_type.id(), &t.dims, *digest);
        }
        let source = whole.finish();
        let mut id = PairIdBuilder::new(source, self.plan.split);
        if let Some(digest) = self.plan.imatrix_digest() {
            id.importance(digest);
        }
        if let Some(boundary) = &self.plan.boundary {
            id.boundary(boundary);
        }
        for t in &self.plan.tensors {
            id.tensor(t.role, &t.name, t.to, t.encode.then_some(self.plan.effort));
        }
        Ok(Known {
            pair_id: id.finish(),
            source,
            tensors: digests.iter().map(|[_, written]| *written).collect(),
        })
    }
}
