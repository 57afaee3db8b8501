//! What the server needs of the half it serves.

use formats::pair::Contract;

use super::request::OpenRequest;

/// The cloud half, as the link sees it. Shared by all sessions.
pub trait Backend: Send + Sync + 'static {
    /// What edges must agree with. The link compares before it calls [`Backend::open`].
    fn contract(&self) -> Contract;

    /// Starts a session: parses the codec, makes room for the context. Runs on the session's own
    /// thread and may take its time.
    ///
    /// # Errors
    /// Why this session cannot be.
    fn open(&self, request: &OpenRequest) -> Result<Opened, Refusal>;
}

/// A session and what it grants.
pub struct Opened {
    /// The session.
    pub session: Box<dyn Session>,
    /// Positions granted; at least 1.
    pub n_ctx: u32,
    /// Rows one message may carry; at least 1. The session itself refuses more.
    pub max_rows_per_message: u32,
}

/// One generation. One thread at a time computes for it: its own, which also drops it, or one of the network's, when it
/// is quick and nobody else has a session.
pub trait Session: Send {
    /// Decodes `frame`, runs its rows at the positions after those held, and samples what follows
    /// the last row if `want_token`. `frame` is from the network: anything may be in it.
    ///
    /// # Errors
    /// Any; the session is over then.
    fn rows(&mut self, frame: &[u8], want_token: bool) -> Result<RowsDone, SessionError>;

    /// Whether `frame` has one row, as far as can be seen at a glance, and the processor computes it: nothing that
    /// may hang, and nothing that takes longer than the row before. `frame` is from the network: anything may be in it.
    fn is_single(&self, frame: &[u8]) -> bool {
        let _ = frame;
        false
    }

    /// Forgets the positions from `len` on; `len` is at most the number held.
    ///
    /// # Errors
    /// Any; the session is over then.
    fn truncate(&mut self, len: u32) -> Result<(), SessionError>;
}

/// What came of one message of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowsDone {
    /// Rows the frame held; at least 1.
    pub rows: u32,
    /// The token, if one was wanted.
    pub token: Option<Sampled>,
}

/// A sampled token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub id: u32,
    /// Its natural log probability, where asked for.
    pub logprob: Option<f32>,
    /// The most likely ids with theirs, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Why a session cannot start. Each text is shown to the person at the edge, so it names the cause
/// and the way out, and no secrets of the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request makes no sense (`INVALID_ARGUMENT`).
    #[error("{0}")]
    Invalid(String),
    /// The halves, the codec or the device cannot do this (`FAILED_PRECONDITION`).
    #[error("{0}")]
    Unfit(String),
    /// No memory or slot now (`RESOURCE_EXHAUSTED`).
    #[error("{0}")]
    Full(String),
    /// The server's fault (`INTERNAL`).
    #[error("{0}")]
    Internal(String),
}

/// Why a session ended. The texts go to the edge, as with [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The frame cannot be decoded or breaks a limit (`INVALID_ARGUMENT`).
    #[error("{0}")]
    BadFrame(String),
    /// The context is full (`OUT_OF_RANGE`).
    #[error("{0}")]
    ContextFull(String),
    /// The server's fault (`INTERNAL`).
    #[error("{0}")]
    Internal(String),
}
