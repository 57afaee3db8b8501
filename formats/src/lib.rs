//! What the bytes of splitconv and splitrun mean: GGUF files, GGML block types, the pair of
//! halves on disk, and the activation frame on the wire.
//!
//! Nothing here starts a thread, opens a socket, touches a device or decides a policy.
//!
//! | module | what it is about |
//! |---|---|
//! | [`gguf`] | reader over a memory map, streaming writer, typed metadata |
//! | [`blocks`] | one file per GGML block type: layout, decode, encode |
//! | [`imatrix`] | importance matrices and statistics of the boundary |
//! | [`measured`] | files of measurements: profiles of hosts, sensitivities of models |
//! | [`model`] | architectures, their sizes and tensors |
//! | [`pair`] | names, keys and the boundary contract of the two halves |
//! | [`units`] | quantities as people write them: `4GiB`, `20Mbit/s` |
//! | [`wire`] | the activation frame: TS, TAB-Q, zstd |

pub mod blocks;
pub mod gguf;
pub mod imatrix;
pub mod measured;
pub mod model;
pub mod pair;
pub mod units;
pub mod wire;
