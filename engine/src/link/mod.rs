//! The gRPC link between the halves: one bidirectional stream per generation.
//!
//! The protocol, for clients in any language, is `engine/proto/splitrun/v1/link.proto`. The
//! cloud's end is [`Server`] over a [`Backend`]; the edge's end is [`EdgeLink`] and [`Stream`],
//! made for a plain synchronous loop:
//!
//! ```no_run
//! # fn f(request: engine::link::OpenRequest, frame: Vec<u8>) -> Result<(), engine::link::LinkError> {
//! use engine::link::{EdgeLink, EdgeOptions};
//!
//! let link = EdgeLink::connect(EdgeOptions::new("127.0.0.1:7433".parse()?))?;
//! let mut stream = link.open(&request)?;
//! stream.send_rows(0, frame, true)?;
//! println!("token {}", stream.recv_token()?.id);
//! stream.close()?;
//! # Ok(()) }
//! ```
//!
//! The link carries frames as opaque bytes. It checks who talks, that the halves belong together,
//! the order and size of messages, and how long anything takes; what a frame says is the
//! backend's business. Compute runs on one thread per session, so chunk `i + 1` of a prompt arrives while
//! chunk `i` is computed. Every message from thread to thread costs a wake-up, some 50 µs: so the edge's thread
//! serves the socket while it waits, and the server computes a single token where its row came in, when that takes a few
//! milliseconds and nobody else has a session.

mod address;
mod backend;
mod edge;
mod error;
mod reactor;
mod request;
mod security;
mod server;
mod status;

#[cfg(test)]
mod tests;

pub use address::Address;
pub use backend::{Backend, Opened, Refusal, RowsDone, Sampled, Session, SessionError};
pub use edge::{EdgeLink, EdgeOptions, Stream, StreamInfo};
pub use error::LinkError;
pub use reactor::Interrupt;
pub use request::{OpenRequest, Sampling, TokenOut};
pub use security::{EdgeTls, ServerTls, Token};
pub use server::{RunningServer, Server, ServerOptions};

/// What protox and prost made of `link.proto`.
#[allow(missing_docs, unreachable_pub, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("splitrun.v1");
}

/// Where both sides meet unless told otherwise.
pub const DEFAULT_PORT: u16 = 7433;

/// Version of the protocol both ends speak.
pub const PROTOCOL: u32 = 1;

/// Bytes one message may have; gRPC's usual limit, so that proxies and other clients agree.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Bytes one frame may have: a message less its own fields.
pub const MAX_FRAME_BYTES: usize = MAX_MESSAGE_BYTES - 1024;

/// What the server calls itself in `Accepted`.
const SERVER_NAME: &str = concat!("splitrun/", env!("CARGO_PKG_VERSION"));
