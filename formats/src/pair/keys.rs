//! The keys a half carries in its metadata, written and read back.
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `split.no`, `split.count` | u16 | shard number from 0, always 2 shards (GGUF's own keys) |
//! | `split.tensors.count` | i32 | tensors of both files together |
//! | `splitconv.version` | u32 | [`FORMAT_VERSION`] |
//! | `splitconv.role` | str | `edge` or `cloud` |
//! | `splitconv.first_layer`, `splitconv.end_layer` | u32 | layers of this file, the end excluded |
//! | `splitconv.n_layer` | u32 | layers of the whole model |
//! | `splitconv.width` | u32 | values in a boundary row |
//! | `splitconv.pair_id` | str | 32 hexadecimal digits, see [`PairIdBuilder`] |
//! | `splitconv.source_digest` | str | BLAKE3 of the source, 64 hexadecimal digits, see [`SourceDigest`] |
//! | `splitconv.tensor_digests` | arr[str] | BLAKE3 of each tensor's bytes, in the order of the file's tensor directory |
//! | `splitconv.metadata_digest` | str | [`metadata_digest`] of all other keys of this file |
//! | `splitconv.imatrix_digest` | str | when importances were used: their digest, 64 hexadecimal digits, see [`crate::imatrix::Imatrix::digest`] |
//! | `splitconv.boundary.mean`, `splitconv.boundary.sigma` | arr[f32] | when calibrated: mean and standard deviation of each channel of the rows at the cut |
//! | `splitconv.boundary.kl` | arr[f32] | when it was measured: what steps cost, see [`crate::wire::KL_STEPS`] |
//! | `splitconv.rope_freqs` | arr[f32] | cloud only: the source's `rope_freqs.weight`, which stays on the edge |

use std::fmt;

use super::contract::{Contract, PairId};
use crate::blocks::{BlockType, Effort};
use crate::gguf::{Metadata, Value};
use crate::wire::{CutStatistics, KL_STEPS};

/// The version of the pair's layout and of the meaning of its keys.
pub const FORMAT_VERSION: u32 = 1;

/// Names of the keys.
#[allow(missing_docs)] // the table above says what each one is
pub mod key {
    pub const SPLIT_NO: &str = "split.no";
    pub const SPLIT_COUNT: &str = "split.count";
    pub const SPLIT_TENSORS_COUNT: &str = "split.tensors.count";
    pub const VERSION: &str = "splitconv.version";
    pub const ROLE: &str = "splitconv.role";
    pub const FIRST_LAYER: &str = "splitconv.first_layer";
    pub const END_LAYER: &str = "splitconv.end_layer";
    pub const N_LAYER: &str = "splitconv.n_layer";
    pub const WIDTH: &str = "splitconv.width";
    pub const PAIR_ID: &str = "splitconv.pair_id";
    pub const SOURCE_DIGEST: &str = "splitconv.source_digest";
    pub const TENSOR_DIGESTS: &str = "splitconv.tensor_digests";
    pub const METADATA_DIGEST: &str = "splitconv.metadata_digest";
    pub const IMATRIX_DIGEST: &str = "splitconv.imatrix_digest";
    pub const BOUNDARY_MEAN: &str = "splitconv.boundary.mean";
    pub const BOUNDARY_SIGMA: &str = "splitconv.boundary.sigma";
    pub const BOUNDARY_KL: &str = "splitconv.boundary.kl";
    pub const ROPE_FREQS: &str = "splitconv.rope_freqs";
}

/// Which half a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HalfRole {
    /// The front: embedding and the first layers.
    Edge,
    /// The back: the last layers, norm and head.
    Cloud,
}

impl HalfRole {
    /// `edge` or `cloud`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        }
    }

    /// The shard number, from 0.
    pub const fn shard(self) -> u16 {
        match self {
            Self::Edge => 0,
            Self::Cloud => 1,
        }
    }

    /// The other half.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Edge => Self::Cloud,
            Self::Cloud => Self::Edge,
        }
    }
}

impl fmt::Display for HalfRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// 32 bytes of BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Reads 64 hexadecimal digits.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|h| Self(h.into()))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A file says it is a half but cannot be read as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// Written by a newer (or broken) splitconv.
    #[error(
        "pair format version {found}; this program reads {FORMAT_VERSION}: convert again, or update the program"
    )]
    Version {
        /// The version in the file.
        found: u64,
    },
    /// A key is absent or has another type or form.
    #[error(
        "`{key}` is missing or is not {wanted}: the file is damaged or not by splitconv; convert again"
    )]
    Key {
        /// The key.
        key: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The layer numbers contradict each other.
    #[error(
        "layers {first}..{end} of {n_layer} cannot be the {role} half: the file is damaged; convert again"
    )]
    Layers {
        /// Which half it says it is.
        role: HalfRole,
        /// First layer.
        first: u32,
        /// End of the layers.
        end: u32,
        /// Layers of the model.
        n_layer: u32,
    },
}

/// What a half says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct HalfInfo {
    /// Which half.
    pub role: HalfRole,
    /// What both halves must agree on.
    pub contract: Contract,
    /// First layer in this file.
    pub first_layer: u32,
    /// Layer after the last one in this file.
    pub end_layer: u32,
    /// BLAKE3 of the source.
    pub source_digest: Digest,
    /// Digest of the importances that the encoders were given, if they were.
    pub imatrix_digest: Option<Digest>,
    /// Statistics of the rows at the cut, if the model was calibrated.
    pub boundary: Option<CutStatistics>,
    /// BLAKE3 of each tensor, in the order of the tensor directory.
    pub tensor_digests: Vec<Digest>,
    /// Cloud only: the rotary frequency factors, which stand as a tensor in the edge file.
    pub rope_freqs: Option<Vec<f32>>,
}

impl HalfInfo {
    /// Reads the half's own keys; `None` for an ordinary GGUF.
    ///
    /// # Errors
    /// [`PairError`] when the file says it is a half but its keys are not whole.
    pub fn from_metadata(meta: &Metadata) -> Result<Option<Self>, PairError> {
        if !meta.iter().any(|(k, _)| k.starts_with("splitconv.")) {
            return Ok(None);
        }
        let bad = |key, wanted| PairError::Key { key, wanted };
        let number = |key| {
            let value = meta.get(key).and_then(Value::as_u32);
            value.ok_or(bad(key, "a number"))
        };
        let text = |key| {
            let value = meta.get(key).and_then(Value::as_str);
            value.ok_or(bad(key, "a string"))
        };
        let version = u64::from(number(key::VERSION)?);
        if version != u64::from(FORMAT_VERSION) {
            return Err(PairError::Version { found: version });
        }
        let role = match text(key::ROLE)? {
            "edge" => HalfRole::Edge,
            "cloud" => HalfRole::Cloud,
            _ => return Err(bad(key::ROLE, "`edge` or `cloud`")),
        };
        let (first, end) = (number(key::FIRST_LAYER)?, number(key::END_LAYER)?);
        let n_layer = number(key::N_LAYER)?;
        let whole = match role {
            HalfRole::Edge => first == 0 && 0 < end && end < n_layer,
            HalfRole::Cloud => 0 < first && first < end && end == n_layer,
        };
        if !whole {
            return Err(PairError::Layers {
                role,
                first,
                end,
                n_layer,
            });
        }
        let pair_id: PairId = text(key::PAIR_ID)?
            .parse()
            .map_err(|_| bad(key::PAIR_ID, "32 hexadecimal digits"))?;
        let hex = "64 hexadecimal digits";
        let source_digest = Digest::from_hex(text(key::SOURCE_DIGEST)?.as_bytes())
            .ok_or(bad(key::SOURCE_DIGEST, hex))?;
        let imatrix_digest = match meta.get(key::IMATRIX_DIGEST) {
            None => None,
            Some(_) => Some(
                Digest::from_hex(text(key::IMATRIX_DIGEST)?.as_bytes())
                    .ok_or(bad(key::IMATRIX_DIGEST, hex))?,
            ),
        };
        let digests_bad = || bad(key::TENSOR_DIGESTS, "an array of BLAKE3 digests");
        let tensor_digests = meta
            .get(key::TENSOR_DIGESTS)
            .and_then(Value::as_array)
            .and_then(|a| a.strings())
            .ok_or_else(digests_bad)?
            .map(|s| Digest::from_hex(s).ok_or_else(digests_bad))
            .collect::<Result<Vec<_>, _>>()?;
        let floats = |key| match meta.get(key) {
            None => Ok(None),
            Some(v) => {
                let floats = v.as_array().and_then(|a| a.f32s());
                let floats = floats.ok_or(bad(key, "an array of f32"))?;
                Ok(Some(floats.collect::<Vec<f32>>()))
            }
        };
        let rope_freqs = floats(key::ROPE_FREQS)?;
        let boundary = match (floats(key::BOUNDARY_MEAN)?, floats(key::BOUNDARY_SIGMA)?) {
            (None, None) => None,
            (Some(mean), Some(sigma)) => {
                let kl = floats(key::BOUNDARY_KL)?.unwrap_or_default();
                if !kl.is_empty() && kl.len() != KL_STEPS.len() {
                    // Steps would be chosen by a curve of other points.
                    return Err(bad(key::BOUNDARY_KL, "an array of two f32"));
                }
                Some(CutStatistics { mean, sigma, kl })
            }
            (None, _) => return Err(bad(key::BOUNDARY_MEAN, "an array of f32")),
            (_, None) => return Err(bad(key::BOUNDARY_SIGMA, "an array of f32")),
        };
        Ok(Some(Self {
            role,
            contract: Contract {
                pair_id,
                split: if role == HalfRole::Edge { end } else { first },
                n_layer,
                width: number(key::WIDTH)?,
            },
            first_layer: first,
            end_layer: end,
            source_digest,
            imatrix_digest,
            boundary,
            tensor_digests,
            rope_freqs,
        }))
    }

    /// Sets this half's keys in `meta` (which holds the source's), the three of GGUF's `split.`
    /// included; `tensors` counts the tensors of both files.
    ///
    /// The encoded size depends only on how many digests and frequencies there are, never on
    /// their values: a header written early can be written again over itself.
    pub fn write(&self, meta: &mut Metadata, tensors: i32) {
        meta.set(key::SPLIT_NO, Value::u16(self.role.shard()));
        meta.set(key::SPLIT_COUNT, Value::u16(2));
        meta.set(key::SPLIT_TENSORS_COUNT, Value::i32(tensors));
        meta.set(key::VERSION, Value::u32(FORMAT_VERSION));
        meta.set(key::ROLE, Value::string(self.role.name()));
        meta.set(key::FIRST_LAYER, Value::u32(self.first_layer));
        meta.set(key::END_LAYER, Value::u32(self.end_layer));
        meta.set(key::N_LAYER, Value::u32(self.contract.n_layer));
        meta.set(key::WIDTH, Value::u32(self.contract.width));
        meta.set(
            key::PAIR_ID,
            Value::string(&self.contract.pair_id.to_string()),
        );
        let source = Value::string(&self.source_digest.to_string());
        meta.set(key::SOURCE_DIGEST, source);
        if let Some(digest) = self.imatrix_digest {
            meta.set(key::IMATRIX_DIGEST, Value::string(&digest.to_string()));
        }
        if let Some(b) = &self.boundary {
            meta.set(key::BOUNDARY_MEAN, Value::f32_array(&b.mean));
            meta.set(key::BOUNDARY_SIGMA, Value::f32_array(&b.sigma));
            if !b.kl.is_empty() {
                meta.set(key::BOUNDARY_KL, Value::f32_array(&b.kl));
            }
        }
        let digests: Vec<String> = self.tensor_digests.iter().map(Digest::to_string).collect();
        meta.set(key::TENSOR_DIGESTS, Value::string_array(&digests));
        if let Some(freqs) = &self.rope_freqs {
            meta.set(key::ROPE_FREQS, Value::f32_array(freqs));
        }
        let digest = Value::string(&metadata_digest(meta).to_string());
        meta.set(key::METADATA_DIGEST, digest);
    }
}

/// BLAKE3 of the keys of a half with their types and values, in the file's order;
/// `splitconv.metadata_digest` itself stays out. A flipped bit in a vocabulary or in a norm's
/// epsilon would else go unseen.
pub fn metadata_digest(meta: &Metadata) -> Digest {
    let mut hash = blake3::Hasher::new();
    for (k, v) in meta.iter().filter(|(k, _)| *k != key::METADATA_DIGEST) {
        hash.update(&(k.len() as u64).to_le_bytes());
        hash.update(k.as_bytes());
        hash.update(&(v.value_type() as u32).to_le_bytes());
        hash.update(&(v.payload().len() as u64).to_le_bytes());
        hash.update(v.payload());
    }
    hash.finalize().into()
}

/// The digest of a source model: its metadata and its tensors, whatever order they stand in and
/// however many shards they came in.
#[derive(Debug, Default)]
pub struct SourceDigest {
    items: Vec<(Vec<u8>, Digest)>,
}

impl SourceDigest {
    /// Starts with the source's metadata; `split.*`, which describe shards, stay out.
    pub fn new(meta: &Metadata) -> Self {
        let mut me = Self::default();
        for (k, v) in meta.iter().filter(|(k, _)| !k.starts_with("split.")) {
            let mut hash = blake3::Hasher::new();
            hash.update(&(v.value_type() as u32).to_le_bytes());
            hash.update(v.payload());
            me.push(b'm', k, hash.finalize().into());
        }
        me
    }

    /// Adds a tensor: its name, GGUF type id, extents (row length first) and the digest of its
    /// bytes.
    pub fn tensor(&mut self, name: &str, type_id: u32, dims: &[u64], data: Digest) {
        let mut hash = blake3::Hasher::new();
        hash.update(&type_id.to_le_bytes());
        hash.update(&(dims.len() as u64).to_le_bytes());
        for d in dims {
            hash.update(&d.to_le_bytes());
        }
        hash.update(&data.0);
        self.push(b't', name, hash.finalize().into());
    }

    fn push(&mut self, kind: u8, name: &str, digest: Digest) {
        let mut key = vec![kind];
        key.extend(name.as_bytes());
        self.items.push((key, digest));
    }

    /// The digest.
    pub fn finish(mut self) -> Digest {
        self.items.sort_by(|a, b| a.0.cmp(&b.0));
        let mut hash = blake3::Hasher::new();
        hash.update(b"splitconv source 1");
        for (key, digest) in &self.items {
            hash.update(&(key.len() as u64).to_le_bytes());
            hash.update(key);
            hash.update(&digest.0);
        }
        hash.finalize().into()
    }
}

/// Computes the pair id: BLAKE3 of source digest, cut, every tensor's type, and the format
/// version. No path, file name, time or thread count goes in.
#[derive(Debug)]
pub struct PairIdBuilder {
    head: Vec<u8>,
    tensors: Vec<Vec<u8>>,
}

impl PairIdBuilder {
    /// A pair cut after `split` layers, of the source with this digest.
    pub fn new(source: Digest, split: u32) -> Self {
        let mut head = b"splitconv pair".to_vec();
        head.extend(FORMAT_VERSION.to_le_bytes());
        head.extend(source.0);
        head.extend(split.to_le_bytes());
        Self {
            head,
            tensors: Vec::new(),
        }
    }

    /// Says that encoders were given the importances with this digest: other bytes, another pair.
    pub fn importance(&mut self, digest: Digest) {
        self.head.extend(b"importance");
        self.head.extend(digest.0);
    }

    /// Says that the halves carry these statistics of the cut: frames are read by them.
    pub fn boundary(&mut self, cut: &CutStatistics) {
        self.head.extend(b"boundary");
        for part in [&cut.mean, &cut.sigma, &cut.kl] {
            self.head.extend((part.len() as u64).to_le_bytes());
            self.head.extend(part.iter().flat_map(|x| x.to_le_bytes()));
        }
    }

    /// Adds a tensor that is written: its half, name and type, and with what effort it was encoded
    /// anew; `None` when it was copied.
    pub fn tensor(&mut self, role: HalfRole, name: &str, ty: BlockType, encoded: Option<Effort>) {
        let mut item = vec![role.shard() as u8];
        item.extend((name.len() as u64).to_le_bytes());
        item.extend(name.as_bytes());
        item.extend(ty.id().to_le_bytes());
        item.push(match encoded {
            None => 0,
            Some(Effort::Normal) => 1,
            Some(Effort::High) => 2,
        });
        self.tensors.push(item);
    }

    /// The id.
    pub fn finish(mut self) -> PairId {
        self.tensors.sort();
        let mut hash = blake3::Hasher::new();
        hash.update(&self.head);
        for t in &self.tensors {
            hash.update(t);
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        PairId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(role: HalfRole) -> HalfInfo {
        HalfInfo {
            role,
            contract: Contract {
                pair_id: PairId([7; 16]),
                split: 3,
                n_layer: 5,
                width: 64,
            },
            first_layer: if role == HalfRole::Edge { 0 } else { 3 },
            end_layer: if role == HalfRole::Edge { 3 } else { 5 },
            source_digest: Digest::of(b"source"),
            imatrix_digest: (role == HalfRole::Edge).then(|| Digest::of(b"importances")),
            boundary: (role == HalfRole::Cloud).then(|| CutStatistics {
                mean: vec![0.0, 1.0],
                sigma: vec![2.0, 3.0],
                kl: vec![0.5, 0.75],
            }),
            tensor_digests: vec![Digest::of(b"a"), Digest::of(b"b")],
            rope_freqs: (role == HalfRole::Cloud).then(|| vec![1.0, 8.0]),
        }
    }

    #[test]
    fn keys_there_and_back() {
        for role in [HalfRole::Edge, HalfRole::Cloud] {
            let mut meta = Metadata::new();
            meta.set("split.count", Value::u16(9));
            assert_eq!(HalfInfo::from_metadata(&meta), Ok(None));
            half(role).write(&mut meta, 11);
            assert_eq!(HalfInfo::from_metadata(&meta), Ok(Some(half(role))));
            assert_eq!(meta.get("split.no"), Some(&Value::u16(role.shard())));
            assert_eq!(meta.get("split.count"), Some(&Value::u16(2)));
            assert_eq!(meta.get("split.tensors.count"), Some(&Value::i32(11)));
        }
    }

    #[test]
    fn damaged_keys_are_named() {
        let mut whole = Metadata::new();
        half(HalfRole::Edge).write(&mut whole, 1);
        let keys: Vec<String> = whole.iter().map(|(k, _)| k.to_owned()).collect();
        let read = |k: &&String| k.starts_with("splitconv.") && *k != key::METADATA_DIGEST;
        for k in keys.iter().filter(read) {
            let mut meta = whole.clone();
            meta.set(k, Value::bool(true));
            let err = HalfInfo::from_metadata(&meta).unwrap_err().to_string();
            assert!(err.contains(k.as_str()), "{k}: {err}");
        }
        let mut cloud = Metadata::new();
        half(HalfRole::Cloud).write(&mut cloud, 1);
        for wrong in [&[0.5][..], &[0.5; 3]] {
            let mut meta = cloud.clone();
            meta.set(key::BOUNDARY_KL, Value::f32_array(wrong));
            let err = HalfInfo::from_metadata(&meta).unwrap_err().to_string();
            assert!(err.contains(key::BOUNDARY_KL), "{err}");
        }
        let mut meta = whole.clone();
        meta.set(key::VERSION, Value::u32(99));
        assert_eq!(
            HalfInfo::from_metadata(&meta),
            Err(PairError::Version { found: 99 })
        );
        for end in [0, 5, 6] {
            let mut meta = whole.clone();
            meta.set(key::END_LAYER, Value::u32(end));
            assert!(matches!(
                HalfInfo::from_metadata(&meta),
                Err(PairError::Layers { .. })
            ));
        }
    }

    #[test]
    fn the_source_digest_feels_contents_not_order() {
        let mut a = Metadata::new();
        a.set("x", Value::u32(1));
        a.set("y", Value::u32(2));
        let mut b = Metadata::new();
        b.set("y", Value::u32(2));
        b.set("split.count", Value::u16(4));
        b.set("x", Value::u32(1));
        let digest = |meta: &Metadata, names: [&str; 2], type_id| {
            let mut d = SourceDigest::new(meta);
            for n in names {
                d.tensor(n, type_id, &[4, 2], Digest::of(n.as_bytes()));
            }
            d.finish()
        };
        let one = digest(&a, ["p", "q"], 0);
        assert_eq!(one, digest(&b, ["q", "p"], 0));
        assert_ne!(one, digest(&a, ["p", "q"], 1));
        b.set("x", Value::i32(1));
        assert_ne!(one, digest(&b, ["p", "q"], 0));
    }

    #[test]
    fn the_pair_id_feels_cut_and_types() {
        let id = |split, ty, encoded| {
            let mut b = PairIdBuilder::new(Digest::of(b"s"), split);
            b.tensor(HalfRole::Edge, "t", ty, encoded);
            b.finish()
        };
        let normal = Some(Effort::Normal);
        let one = id(3, BlockType::Q4_0, normal);
        assert_eq!(one, id(3, BlockType::Q4_0, normal));
        assert_ne!(one, id(4, BlockType::Q4_0, normal));
        assert_ne!(one, id(3, BlockType::Q4_1, normal));
        assert_ne!(one, id(3, BlockType::Q4_0, Some(Effort::High)));
        assert_ne!(one, id(3, BlockType::Q4_0, None));
        let mut other = PairIdBuilder::new(Digest::of(b"s"), 3);
        other.importance(Digest::of(b"i"));
        other.tensor(HalfRole::Edge, "t", BlockType::Q4_0, normal);
        assert_ne!(one, other.finish());
    }
}
