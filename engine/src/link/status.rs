//! Errors' way into gRPC statuses and out of them.

use std::error::Error;
use std::io;

use formats::pair::ContractMismatch;
use tonic::{Code, Status};

use super::backend::{Refusal, SessionError};
use super::error::LinkError;

/// Characters of a peer's text that are shown.
const MAX_REASON: usize = 600;

/// The mismatch in words that are right at either end.
pub(super) fn mismatch(difference: &ContractMismatch) -> Status {
    let (what, cloud, edge) = match difference {
        ContractMismatch::PairId { ours, theirs } => ("pair", ours.to_string(), theirs.to_string()),
        ContractMismatch::Split { ours, theirs } => {
            ("first cloud layer", ours.to_string(), theirs.to_string())
        }
        ContractMismatch::Layers { ours, theirs } => {
            ("number of layers", ours.to_string(), theirs.to_string())
        }
        ContractMismatch::Width { ours, theirs } => {
            ("row width", ours.to_string(), theirs.to_string())
        }
    };
    Status::failed_precondition(format!(
        "the cloud's {what} is {cloud}, the edge's is {edge}; use the two files that one splitconv run wrote"
    ))
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(text) => Self::invalid_argument(text),
            Refusal::Unfit(text) => Self::failed_precondition(text),
            Refusal::Full(text) => Self::resource_exhausted(text),
            Refusal::Internal(text) => Self::internal(text),
        }
    }
}

impl From<SessionError> for Status {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::BadFrame(text) => Self::invalid_argument(text),
            SessionError::ContextFull(text) => Self::out_of_range(text),
            SessionError::Internal(text) => Self::internal(text),
        }
    }
}

/// What a status means to the edge. One with a source was made at this end, when the connection
/// broke; one without came from the server.
pub(super) fn from_status(peer: &str, status: &Status) -> LinkError {
    let peer = peer.to_owned();
    if let Some(source) = status.source() {
        return LinkError::Gone {
            peer,
            reason: chain(source),
        };
    }
    let reason = shown(status.message());
    match status.code() {
        Code::FailedPrecondition => LinkError::Mismatch { peer, reason },
        Code::ResourceExhausted => LinkError::Full { peer, reason },
        Code::Unauthenticated | Code::PermissionDenied => {
            LinkError::Unauthenticated { peer, reason }
        }
        Code::Unavailable | Code::Cancelled => LinkError::Gone { peer, reason },
        Code::Unimplemented => LinkError::Protocol {
            peer,
            reason: format!("it does not offer splitrun.v1.Split ({reason})"),
        },
        code => LinkError::Refused {
            peer,
            code: format!("{code:?}"),
            reason,
        },
    }
}

/// Why connecting failed.
pub(super) fn from_connect(peer: &str, tls: bool, error: &tonic::transport::Error) -> LinkError {
    let reason = chain(error);
    let peer = peer.to_owned();
    if tls && !is_network(error) {
        LinkError::Tls { peer, reason }
    } else {
        LinkError::Unreachable { peer, reason }
    }
}

/// Whether an error is the network's (and not TLS's).
fn is_network(error: &(dyn Error + 'static)) -> bool {
    let mut at = Some(error);
    while let Some(error) = at {
        let text = error.to_string();
        // hyper-util's connector names its steps in text only.
        if text.starts_with("tcp ") || text.starts_with("dns ") {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return !matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other
            );
        }
        at = error.source();
    }
    false
}

/// An error and what is under it, each thing said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut at = Some(error);
    while let Some(error) = at {
        let part = error.to_string();
        if !part.is_empty() && part != "transport error" && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        at = error.source();
    }
    shown(&text)
}

/// A peer's text, fit for a terminal: bounded, and without control characters.
pub(super) fn shown(text: &str) -> String {
    if text.is_empty() {
        return "no reason given".to_owned();
    }
    text.chars()
        .take(MAX_REASON)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_what_they_mean() {
        let map = |status: Status| from_status("cloud:1", &status);
        assert!(matches!(
            map(Status::failed_precondition("x")),
            LinkError::Mismatch { .. }
        ));
        assert!(map(Status::resource_exhausted("x")).may_retry());
        assert!(map(Status::unavailable("x")).may_retry());
        assert!(!map(Status::unauthenticated("x")).may_retry());
        let error = map(Status::invalid_argument("bad\u{1b}[31m frame")).to_string();
        assert!(
            error.contains("cloud:1") && error.contains("InvalidArgument"),
            "{error}"
        );
        assert!(!error.contains('\u{1b}'), "{error}");
        assert!(map(Status::internal("y".repeat(100_000))).to_string().len() < 1000);
    }
}
