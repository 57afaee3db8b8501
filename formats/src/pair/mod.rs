//! The two files of a split model: names, keys, digests and the boundary contract.

mod contract;

pub use contract::{BadPairId, Contract, ContractMismatch, PairId};
