//! The back half behind the link.

use std::time::{Duration, Instant};

use formats::pair::Contract;
use formats::wire::{self, Codec, CutStatistics, EncodeError, Origin, Scratch};

use super::back::{Back, SessionOptions};
use super::error::RunError;
use super::to_wire;
use crate::link::{EdgeLink, LinkError, OpenRequest, Stream, TokenOut};

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
    /// Opens a session for up to `n_ctx` positions; `cut` is what the pair knows of its rows. Where
    /// `auto` would take a codec that the cloud does not know yet, it takes the one that every
    /// release knows.
    ///
    /// # Errors
    /// When the cloud refuses: another pair, full, an unknown codec.
    pub fn open(
        link: EdgeLink,
        contract: Contract,
        codec: &Codec,
        cut: Option<&CutStatistics>,
        n_ctx: usize,
        options: SessionOptions,
    ) -> Result<Self, RunError> {
        let channels = cut.and_then(|c| c.channels(contract.width as usize));
        let asked = codec;
        let mut codec = asked.resolve(cut);
        if codec.needs_calibration() && channels.is_none() {
            return Err(EncodeError::NotCalibrated.into());
        }
        let mut request = OpenRequest {
            contract,
            codec: codec.to_string(),
            n_ctx: u32::try_from(n_ctx).unwrap_or(u32::MAX),
            sampling: to_wire(&options.sampling),
            top_logprobs: options.top_logprobs as u32,
            tail_ids: options.tail_ids,
        };
        let mut opened = link.open(&request);
        let plain = asked.resolve(None);
        if let Err(LinkError::Mismatch { reason, .. }) = &opened
            && reason.starts_with("codec")
            && plain != codec
        {
            // Somebody else asked for `auto`; what it stands for is said where it is chosen.
            tracing::warn!(
                "the cloud does not take codec {codec} ({reason}); rows travel as {plain}, the bound of `auto` is unproved"
            );
            codec = plain;
            request.codec = codec.to_string();
            opened = link.open(&request);
        }
        let stream = opened?;
        Ok(Self {
            stream,
            _link: link,
            codec,
            contract,
            scratch: Scratch::calibrated(channels),
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

    fn codec(&self) -> Option<Codec> {
        Some(self.codec)
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
