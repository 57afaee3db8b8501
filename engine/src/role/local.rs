//! The back half in this process.

use std::time::{Duration, Instant};

use formats::wire::{self, Codec, CutStatistics, Expect, Origin, PairTag, Scratch};

use super::back::{Back, BackSession, token_out};
use super::error::RunError;
use crate::link::TokenOut;

/// A [`BackSession`] without a link. With a codec, rows are encoded and decoded as if they
/// travelled, so that what is measured here holds there.
pub struct LocalBack {
    session: BackSession,
    codec: Option<Codec>,
    width: usize,
    n_ctx: usize,
    scratch: Scratch,
    frame: Vec<u8>,
    rows: Vec<f32>,
    sent: u64,
    token: Option<TokenOut>,
    since: Instant,
    busy: Duration,
}

impl LocalBack {
    /// A back of `n_ctx` positions for rows of `width`, of which `cut` is known.
    pub fn new(
        session: BackSession,
        codec: Option<Codec>,
        cut: Option<&CutStatistics>,
        width: usize,
        n_ctx: usize,
    ) -> Self {
        Self {
            session,
            codec: codec.map(|c| c.resolve(cut)),
            width,
            n_ctx,
            scratch: Scratch::calibrated(cut.and_then(|c| c.channels(width))),
            frame: Vec::new(),
            rows: Vec::new(),
            sent: 0,
            token: None,
            since: Instant::now(),
            busy: Duration::ZERO,
        }
    }
}

impl Back for LocalBack {
    fn rows(&mut self, first: u32, rows: &[f32], want_token: bool) -> Result<Duration, RunError> {
        let begun = Instant::now();
        if let Some(codec) = &self.codec {
            let pair_tag = PairTag([0; 4]);
            let origin = Origin {
                pair_tag,
                first_position: first,
                width: self.width,
            };
            wire::encode(codec, &origin, rows, &mut self.scratch, &mut self.frame)?;
            self.sent += self.frame.len() as u64;
            let expect = Expect {
                pair_tag,
                width: self.width,
                max_rows: rows.len() / self.width,
            };
            wire::decode(&self.frame, &expect, &mut self.scratch, &mut self.rows)?;
        } else {
            self.rows.clear();
            self.rows.extend_from_slice(rows);
        }
        let encoding = begun.elapsed();
        self.since = Instant::now();
        let sampled = self.session.run(&mut self.rows, want_token)?;
        self.busy += self.since.elapsed();
        if let Some(sampled) = sampled {
            let mut token = token_out(sampled, self.session.len(), self.since);
            token.cloud = std::mem::take(&mut self.busy);
            self.token = Some(token);
        }
        Ok(encoding)
    }

    fn token(&mut self) -> Result<TokenOut, RunError> {
        self.token
            .take()
            .ok_or_else(|| RunError::Request("no token was asked for".into()))
    }

    fn truncate(&mut self, len: u32) -> Result<(), RunError> {
        self.session.truncate(len as usize);
        Ok(())
    }

    fn uplink_bytes(&self) -> u64 {
        self.sent
    }

    fn codec(&self) -> Option<Codec> {
        self.codec
    }

    fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    fn max_rows(&self) -> usize {
        usize::MAX
    }
}
