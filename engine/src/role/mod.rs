//! Edge, cloud, both: what ties tokenizer, executor, codec and link together.
//!
//! All roles run the same [`Generator`]: a front executor makes boundary rows and hands them to a
//! [`Back`], which answers with tokens. The back is the same code everywhere ([`BackSession`]): in
//! the cloud process behind the link, or in this process.

mod back;
mod batch;
mod chat;
mod cloud;
mod controller;
mod edge;
mod error;
mod generate;
mod local;
mod open;

pub use back::{Back, BackSession, SessionOptions};
pub use chat::{Chat, Open, chat_loop};
pub use cloud::CloudBackend;
pub use controller::{Chosen, Controller, Event, LinkReport};
pub use edge::RemoteBack;
pub use error::RunError;
pub use generate::{GenerateOptions, Generation, Generator, Stop, TokenLogprobs};
pub use local::LocalBack;
pub use open::{HalfFile, OpenedModel, open_half, open_model, read_metadata};

use crate::link::Sampling;
use crate::text::SamplingParams;

/// The sampling parameters as they travel.
pub fn to_wire(p: &SamplingParams) -> Sampling {
    Sampling {
        temperature: p.temperature.max(0.0),
        top_k: p.top_k.max(0) as u32,
        top_p: p.top_p,
        min_p: p.min_p,
        repeat_penalty: p.repeat_penalty,
        // Negative means "all there are".
        repeat_last_n: u32::try_from(p.repeat_last_n).unwrap_or(i32::MAX as u32),
        seed: p.seed,
    }
}

/// The sampling parameters as they arrive.
pub fn from_wire(s: &Sampling) -> SamplingParams {
    SamplingParams {
        temperature: s.temperature,
        top_k: i32::try_from(s.top_k).unwrap_or(i32::MAX),
        top_p: s.top_p,
        min_p: s.min_p,
        repeat_penalty: s.repeat_penalty,
        repeat_last_n: i32::try_from(s.repeat_last_n).unwrap_or(i32::MAX),
        seed: s.seed,
    }
}
