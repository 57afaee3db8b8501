//! The back half behind the link.

use std::time::{Duration, Instant};

use formats::pair::Contract;
use formats::wire::{self, Codec, Origin, Scratch};

use super::back::{Back, SessionOptions};
use super::error::RunError;
use super::to_wire;
use crate::link::{EdgeLink, OpenRequest, Stream, TokenOut};

/// A cloud session, as the edge drives it.
pub struct RemoteBack {
    stream: Stream,
    /// Carries the stream; closed after it.
    _link: EdgeLink,
    codec: Codec,
    contract: Contract,
    scratch: Scratch,
}

impl RemoteBack {
    /// Opens a session for up to `n_ctx` positions.
    ///
    /// # Errors
    /// When the cloud refuses: another pair, full, an unknown codec.
    pub fn open(
        link: EdgeLink,
        contract: Contract,
        codec: &Codec,
        n_ctx: usize,
        options: SessionOptions,
    ) -> Result<Self, RunError> {
        let codec = codec.resolve();
        let stream = link.open(&OpenRequest {
            contract,
            codec: codec.to_string(),
            n_ctx: u32::try_from(n_ctx).unwrap_or(u32::MAX),
            sampling: to_wire(&options.sampling),
            top_logprobs: options.top_logprobs as u32,
            tail_ids: options.tail_ids,
        })?;
        Ok(Self {
            stream,
            _link: link,
            codec,
            contract,
            scratch: Scratch::default(),
        })
    }

    /// Ends the session in order.
    ///
    /// # Errors
    /// When the cloud is gone.
    pub fn close(self) -> Result<(), RunError> {
        Ok(self.stream.close()?)
    }
}

impl Back for RemoteBack {
    fn rows(&mut self, first: u32, rows: &[f32], want_token: bool) -> Result<Duration, RunError> {
        let begun = Instant::now();
        let origin = Origin {
            pair_tag: self.contract.pair_id.into(),
            first_position: first,
            width: self.contract.width as usize,
        };
        let mut frame = Vec::new();
        wire::encode(&self.codec, &origin, rows, &mut self.scratch, &mut frame)?;
        let encoding = begun.elapsed();
        self.stream.send_rows(first, frame, want_token)?;
        Ok(encoding)
    }

    fn token(&mut self) -> Result<TokenOut, RunError> {
        Ok(self.stream.recv_token()?)
    }

    fn truncate(&mut self, len: u32) -> Result<(), RunError> {
        Ok(self.stream.truncate(len)?)
    }

    fn uplink_bytes(&self) -> u64 {
        self.stream.uplink_bytes()
    }

    fn n_ctx(&self) -> usize {
        self.stream.info().n_ctx as usize
    }

    fn max_rows(&self) -> usize {
        let info = self.stream.info();
        // The widest coding (f32) and its header must fit a message too.
        let row = 4 * self.contract.width as usize + 16;
        (info.max_rows_per_message as usize)
            .min(info.max_frame_bytes / row)
            .max(1)
    }
}
