//! The back half behind the link.

use std::time::{Duration, Instant};

use formats::pair::Contract;
use formats::wire::{self, Codec, CutStatistics, EncodeError, Origin, Scratch};

use super::back::{Back, SessionOptions};
use super::controller::Controller;
use super::error::RunError;
use super::to_wire;
use crate::link::{EdgeLink, LinkError, OpenRequest, Stream, TokenOut};

/// A cloud session, as the edge drives it.
pub struct RemoteBack {
    stream: Stream,
    /// Carries the stream; closed after it.
    _link: EdgeLink,
    controller: Controller,
    contract: Contract,
    scratch: Scratch,
    /// When the last token came, or the session was opened.
    idle_since: Instant,
    /// When the last frame went out.
    sent_at: Instant,
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
        let width = contract.width as usize;
        let mut controller = Controller::new(asked, cut, width);
        let codec = controller.coarsest();
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
            controller = Controller::fixed(plain, width);
            request.codec = plain.to_string();
            opened = link.open(&request);
        }
        let stream = opened?;
        Ok(Self {
            stream,
            _link: link,
            controller,
            contract,
            scratch: Scratch::calibrated(channels),
            idle_since: Instant::now(),
            sent_at: Instant::now(),
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

fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

impl Back for RemoteBack {
    fn begin(&mut self) {
        self.idle_since = Instant::now();
    }

    fn rows(&mut self, first: u32, rows: &[f32], want_token: bool) -> Result<Duration, RunError> {
        let begun = Instant::now();
        let width = self.contract.width as usize;
        let n = (rows.len() / width) as u32;
        let codec = self.controller.choose(n, micros(begun - self.idle_since));
        let origin = Origin {
            pair_tag: self.contract.pair_id.into(),
            first_position: first,
            width,
        };
        let mut frame = Vec::new();
        wire::encode(&codec, &origin, rows, &mut self.scratch, &mut frame)?;
        let encoding = begun.elapsed();
        self.controller
            .sent(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        self.sent_at = Instant::now();
        self.stream.send_rows(first, frame, want_token)?;
        self.idle_since = Instant::now();
        Ok(encoding)
    }

    fn token(&mut self) -> Result<TokenOut, RunError> {
        let token = self.stream.recv_token()?;
        let away = self.sent_at.elapsed();
        let wait = micros(away.saturating_sub(token.cloud));
        self.controller.answered(wait, micros(token.cloud));
        self.idle_since = Instant::now();
        Ok(token)
    }

    fn truncate(&mut self, len: u32) -> Result<(), RunError> {
        Ok(self.stream.truncate(len)?)
    }

    fn uplink_bytes(&self) -> u64 {
        self.stream.uplink_bytes()
    }

    fn codec(&self) -> Option<Codec> {
        Some(self.controller.coarsest())
    }

    fn controller(&self) -> Option<&Controller> {
        Some(&self.controller)
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use formats::pair::PairId;
    use formats::wire::{Expect, KL_STEPS};

    use super::*;
    use crate::link::{
        Backend, EdgeOptions, Opened, Refusal, RowsDone, Sampled, Server, ServerOptions, Session,
        SessionError,
    };

    const CONTRACT: Contract = Contract {
        pair_id: PairId([3; 16]),
        split: 1,
        n_layer: 3,
        width: 8,
    };

    /// A server of the release before `tcq`, and what it was asked for.
    #[derive(Clone, Default)]
    struct Old(std::sync::Arc<Mutex<Vec<String>>>);

    impl Backend for Old {
        fn contract(&self) -> Contract {
            CONTRACT
        }

        fn open(&self, request: &OpenRequest) -> Result<Opened, Refusal> {
            self.0.lock().unwrap().push(request.codec.clone());
            let known = ["f32", "f16", "int8", "ts-tabq"];
            if !known.iter().any(|k| request.codec.starts_with(k)) {
                let text = format!("codec: there is no codec `{}`", request.codec);
                return Err(Refusal::Unfit(text));
            }
            Ok(Opened {
                session: Box::new(self.clone()),
                n_ctx: 100,
                max_rows_per_message: 8,
            })
        }
    }

    impl Session for Old {
        fn rows(&mut self, frame: &[u8], want_token: bool) -> Result<RowsDone, SessionError> {
            // It has never seen a frame of version 2.
            assert_eq!(frame[0], 0xa1);
            let expect = Expect {
                pair_tag: CONTRACT.pair_id.into(),
                width: 8,
                max_rows: 8,
            };
            let mut rows = Vec::new();
            let header = wire::decode(frame, &expect, &mut Scratch::default(), &mut rows).unwrap();
            Ok(RowsDone {
                rows: header.rows as u32,
                token: want_token.then(Sampled::default),
            })
        }

        fn truncate(&mut self, _: u32) -> Result<(), SessionError> {
            Ok(())
        }
    }

    fn open(old: &Old, codec: &str) -> Result<RemoteBack, RunError> {
        let address = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(&address, ServerOptions::default()).unwrap();
        let address = server.local_addr().to_string().parse().unwrap();
        let backend = std::sync::Arc::new(old.clone());
        std::thread::spawn(move || server.run(backend));
        let cut = CutStatistics {
            mean: vec![0.0; 8],
            sigma: vec![1.0; 8],
            kl: KL_STEPS.iter().map(|s| 0.016 * s * s).collect(),
        };
        RemoteBack::open(
            EdgeLink::connect(EdgeOptions::new(address)).unwrap(),
            CONTRACT,
            &codec.parse().unwrap(),
            Some(&cut),
            100,
            SessionOptions::default(),
        )
    }

    #[test]
    fn an_old_server_gets_what_it_knows() {
        let old = Old::default();
        let mut back = open(&old, "auto").unwrap();
        assert_eq!(back.codec(), Some(Codec::TsTabQ(Codec::auto_default())));
        for first in 0..20 {
            back.rows(first, &[1.0; 8], true).unwrap();
            back.token().unwrap();
        }
        let choices = back.controller().unwrap().report().choices;
        assert_eq!((choices.len(), choices[0].rows), (1, 20));
        let asked = old.0.lock().unwrap().clone();
        assert!(
            asked[0].starts_with("tcq") && asked[1].starts_with("ts-tabq"),
            "{asked:?}"
        );
        // Who asked for `tcq` by name gets the server's answer.
        let refused = open(&Old::default(), "tcq:step=0.5").err().unwrap();
        let mut text = refused.to_string();
        let mut cause = std::error::Error::source(&refused);
        while let Some(e) = cause {
            text = format!("{text}: {e}");
            cause = e.source();
        }
        assert!(text.contains("tcq"), "{text}");
    }
}
