//! The cloud half behind the link: one [`BackSession`] per edge.

use std::sync::Arc;

use formats::pair::Contract;
use formats::wire::{self, Codec, Expect, Scratch};

use super::back::{BackSession, SessionOptions};
use super::from_wire;
use crate::exec::{ExecError, Executor};
use crate::link::{Backend, OpenRequest, Opened, Refusal, RowsDone, Session, SessionError};

/// Rows one message may carry: enough for a whole chunk of a prompt, and at any width below
/// gRPC's message limit.
const MAX_ROWS: u32 = 512;

/// Serves the cloud half of one pair.
pub struct CloudBackend {
    exec: Arc<dyn Executor>,
    contract: Contract,
    n_ctx: usize,
}

impl CloudBackend {
    /// Serves `exec` with at most `n_ctx` positions a session.
    pub fn new(exec: Arc<dyn Executor>, contract: Contract, n_ctx: usize) -> Self {
        Self {
            exec,
            contract,
            n_ctx,
        }
    }
}

impl Backend for CloudBackend {
    fn contract(&self) -> Contract {
        self.contract
    }

    fn open(&self, request: &OpenRequest) -> Result<Opened, Refusal> {
        let codec: Codec = request
            .codec
            .parse()
            .map_err(|e: wire::SpecError| Refusal::Invalid(format!("codec: {e}")))?;
        tracing::info!(%codec, "session opened");
        let n_ctx = match request.n_ctx as usize {
            0 => self.n_ctx,
            n => n.min(self.n_ctx),
        };
        let options = SessionOptions {
            sampling: from_wire(&request.sampling),
            top_logprobs: request.top_logprobs as usize,
            tail_ids: request.tail_ids.clone(),
        };
        let session = BackSession::new(Arc::clone(&self.exec), n_ctx, options)
            .map_err(|e| Refusal::Full(e.to_string()))?;
        Ok(Opened {
            session: Box::new(CloudSession {
                session,
                n_ctx,
                contract: self.contract,
                scratch: Scratch::default(),
                rows: Vec::new(),
            }),
            n_ctx: n_ctx as u32,
            max_rows_per_message: MAX_ROWS,
        })
    }
}

struct CloudSession {
    session: BackSession,
    n_ctx: usize,
    contract: Contract,
    scratch: Scratch,
    rows: Vec<f32>,
}

impl Session for CloudSession {
    fn rows(&mut self, frame: &[u8], want_token: bool) -> Result<RowsDone, SessionError> {
        let expect = Expect {
            pair_tag: self.contract.pair_id.into(),
            width: self.contract.width as usize,
            max_rows: MAX_ROWS as usize,
        };
        let bad = |why: String| SessionError::BadFrame(why);
        let header = wire::decode(frame, &expect, &mut self.scratch, &mut self.rows)
            .map_err(|e| bad(e.to_string()))?;
        if header.rows == 0 {
            return Err(bad("a frame without rows".into()));
        }
        if header.first_position as usize != self.session.len() {
            return Err(bad(format!(
                "a frame for position {}, but {} are held",
                header.first_position,
                self.session.len()
            )));
        }
        if self.session.len() + header.rows > self.n_ctx {
            let full = ExecError::ContextFull {
                used: self.session.len(),
                n_ctx: self.n_ctx,
                more: header.rows,
            };
            return Err(SessionError::ContextFull(full.to_string()));
        }
        let token = self
            .session
            .run(&mut self.rows, want_token)
            .map_err(|e| SessionError::Internal(e.to_string()))?;
        Ok(RowsDone {
            rows: header.rows as u32,
            token,
        })
    }

    fn truncate(&mut self, len: u32) -> Result<(), SessionError> {
        self.session.truncate(len as usize);
        Ok(())
    }
}
