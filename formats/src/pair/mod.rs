//! The two files of a split model: names, keys, digests and the boundary contract.

mod contract;
mod keys;
mod names;

pub use contract::{BadPairId, Contract, ContractMismatch, PairId};
pub use keys::{
    Digest, FORMAT_VERSION, HalfInfo, HalfRole, PairError, PairIdBuilder, SourceDigest, key,
    metadata_digest,
};
pub use names::{LocateError, Located, PairName, ShardName, locate, model_stem, shard_of};
