//! What can go wrong on the link, at either end.

use std::time::Duration;

/// Why the link did not work. Each text names the other end, the cause and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Not an address.
    #[error("`{address}` is no address: {reason}; write host:port, such as 127.0.0.1:7433")]
    BadAddress {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A listen address that others can reach, without protection.
    #[error(
        "{address} can be reached from other machines, and there is no {missing}; give --tls-cert, --tls-key and --token-file, or --insecure to let anyone in, unencrypted"
    )]
    OpenListen {
        /// The listen address.
        address: String,
        /// `TLS`, `token`, or `TLS and no token`.
        missing: &'static str,
    },
    /// A remote server without protection.
    #[error(
        "{peer} is another machine, and there is no {missing}; give --tls (or --tls-ca) and --token-file, or --insecure to send everything in the clear"
    )]
    OpenDial {
        /// The server.
        peer: String,
        /// `TLS`, `token`, or `TLS and no token`.
        missing: &'static str,
    },
    /// A file of the link's options.
    #[error("{what} {path}: {reason}")]
    File {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: String,
        /// The cause.
        reason: String,
    },
    /// An option that cannot be.
    #[error("{0}")]
    BadOption(String),
    /// Could not listen.
    #[error(
        "cannot listen on {address}: {reason}; is another server running there? choose another --listen"
    )]
    Bind {
        /// The listen address.
        address: String,
        /// The cause.
        reason: String,
    },
    /// No connection.
    #[error(
        "cannot reach the cloud at {peer}: {reason}; is `splitrun --role cloud` running there, and is --cloud right?"
    )]
    Unreachable {
        /// The server.
        peer: String,
        /// The cause.
        reason: String,
    },
    /// No trust.
    #[error(
        "TLS with {peer} failed: {reason}; check --tls-ca, the name in the server's certificate, and that the server has TLS on"
    )]
    Tls {
        /// The other end.
        peer: String,
        /// The cause.
        reason: String,
    },
    /// The halves do not belong together.
    #[error("{peer} does not fit this half: {reason}")]
    Mismatch {
        /// The server.
        peer: String,
        /// What differs, with both values.
        reason: String,
    },
    /// No room.
    #[error("{peer} is full: {reason}")]
    Full {
        /// The server.
        peer: String,
        /// What is used up.
        reason: String,
    },
    /// No entry.
    #[error("{peer} does not let us in: {reason}; give the server's token with --token-file")]
    Unauthenticated {
        /// The server.
        peer: String,
        /// The cause.
        reason: String,
    },
    /// The server said no for another reason.
    #[error("{peer} refused ({code}): {reason}")]
    Refused {
        /// The server.
        peer: String,
        /// The gRPC code.
        code: String,
        /// The server's words.
        reason: String,
    },
    /// No answer.
    #[error("{peer} did not {what} within {} s; is the network up and the server not overloaded? raise --timeout to wait longer", after.as_secs_f32())]
    Timeout {
        /// The other end.
        peer: String,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The user had enough of waiting; see [`EdgeOptions::interrupt`](super::EdgeOptions::interrupt).
    #[error("interrupted while waiting for {peer}")]
    Interrupted {
        /// The server.
        peer: String,
    },
    /// The connection ended while in use.
    #[error("lost {peer}: {reason}; connect again, the rows can be sent once more")]
    Gone {
        /// The server.
        peer: String,
        /// The cause.
        reason: String,
    },
    /// The other end broke the protocol.
    #[error("{peer} broke the protocol: {reason}; use the same splitrun release at both ends")]
    Protocol {
        /// The other end.
        peer: String,
        /// What it did.
        reason: String,
    },
    /// A frame too large for a message.
    #[error("a frame of {bytes} bytes is over the link's {limit}; send fewer rows a message")]
    FrameTooLarge {
        /// Bytes of the frame.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The machine has no threads or sockets left.
    #[error("cannot run the link: {0}")]
    Runtime(String),
}

impl LinkError {
    /// Whether another try, with the rows sent again, may work: the server vanished, is full, or
    /// did not answer. Wrong files, tokens and certificates stay wrong.
    pub fn may_retry(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Full { .. } | Self::Timeout { .. } | Self::Gone { .. }
        )
    }
}
