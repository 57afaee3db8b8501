//! The edge's end: a synchronous face over a small runtime that keeps the connection alive while
//! the edge computes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::address::Address;
use super::error::LinkError;
use super::reactor::{Interrupt, Reactor, Waited};
use super::request::{OpenRequest, TokenOut};
use super::security::{self, EdgeTls, Token};
use super::{MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, PROTOCOL, proto, status};
use proto::cloud_message::Kind as FromCloud;
use proto::edge_message::Kind as ToCloud;
use proto::split_client::SplitClient;

/// Messages that may wait for the network before a send waits too.
const QUEUE: usize = 4;
/// What the end of a session may take once the user wants to leave.
const HASTY_CLOSE: Duration = Duration::from_secs(1);

/// Where the cloud is and how to talk to it.
#[derive(Clone, Debug)]
pub struct EdgeOptions {
    /// The server.
    pub address: Address,
    /// Whom to trust; without it nothing is encrypted. Needed, unless `insecure`, to another machine.
    pub tls: Option<EdgeTls>,
    /// The server's secret. Needed like `tls`.
    pub token: Option<Token>,
    /// Talk to another machine without TLS or token all the same.
    pub insecure: bool,
    /// How long connecting may take, name lookup and TLS included.
    pub connect_timeout: Duration,
    /// How long the server may be silent when an answer is due.
    pub reply_timeout: Duration,
    /// Pings go out at this interval; a server that leaves one unanswered as long is gone.
    pub keepalive: Duration,
    /// Ends every wait with [`LinkError::Interrupted`] soon after it fires, and as long as it stays
    /// fired. Only [`Stream::close`] still has its short say then.
    pub interrupt: Option<Interrupt>,
}

impl EdgeOptions {
    /// No TLS, no token; 10 s to connect, 60 s for an answer, pings every 10 s, no interrupt.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            tls: None,
            token: None,
            insecure: false,
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_mins(1),
            keepalive: Duration::from_secs(10),
            interrupt: None,
        }
    }
}

/// A connection to the cloud. Not for use inside an asynchronous task: its calls block.
pub struct EdgeLink {
    reactor: Arc<Reactor>,
    client: SplitClient<Channel>,
    authorization: Option<MetadataValue<Ascii>>,
    peer: Arc<str>,
    tls: bool,
    reply_timeout: Duration,
}

impl EdgeLink {
    /// Connects.
    ///
    /// # Errors
    /// When the address is another machine's and TLS or token are missing, the server cannot be
    /// reached in time, TLS fails, or the interrupt fires.
    pub fn connect(options: EdgeOptions) -> Result<Self, LinkError> {
        let EdgeOptions {
            address,
            tls,
            token,
            insecure,
            connect_timeout,
            reply_timeout,
            keepalive,
            interrupt,
        } = options;
        let peer: Arc<str> = address.to_string().into();
        if let Some(missing) = security::missing(tls.is_some(), token.is_some())
            && !address.is_loopback()
            && !insecure
        {
            return Err(LinkError::OpenDial {
                peer: peer.to_string(),
                missing,
            });
        }
        for (name, wait) in [
            ("connect", connect_timeout),
            ("reply", reply_timeout),
            ("keepalive", keepalive),
        ] {
            if wait.is_zero() || wait > Duration::from_hours(24) {
                return Err(LinkError::BadOption(format!(
                    "the {name} timeout is {wait:?}; it must be more than 0 and at most a day"
                )));
            }
        }
        let authorization = token
            .map(|token| MetadataValue::try_from(token.header()))
            .transpose()
            .map_err(|_| LinkError::BadOption("the token does not fit a header".to_owned()))?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|e| LinkError::BadAddress {
                address: peer.to_string(),
                reason: status::chain(&e),
            })?
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
            .http2_keep_alive_interval(keepalive)
            .keep_alive_timeout(keepalive)
            .keep_alive_while_idle(true);
        let endpoint = match &tls {
            None => endpoint,
            Some(trust) => endpoint
                .tls_config(trust.config(address.host()))
                .map_err(|e| LinkError::Tls {
                    peer: peer.to_string(),
                    reason: status::chain(&e),
                })?,
        };
        let reactor = Arc::new(Reactor::new(interrupt, keepalive)?);
        let deadline = Instant::now() + connect_timeout;
        let channel = match reactor.until(deadline, false, endpoint.connect()) {
            Waited::Done(connected) => {
                connected.map_err(|e| status::from_connect(&peer, tls.is_some(), &e))?
            }
            Waited::Late => {
                return Err(LinkError::Timeout {
                    peer: peer.to_string(),
                    what: "let us connect",
                    after: connect_timeout,
                });
            }
            Waited::Interrupted => {
                return Err(LinkError::Interrupted {
                    peer: peer.to_string(),
                });
            }
        };
        Ok(Self {
            client: SplitClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            reactor,
            authorization,
            peer,
            tls: tls.is_some(),
            reply_timeout,
        })
    }

    /// The server's address, as shown in errors.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Starts a generation. Reconnects first where the connection was lost since.
    ///
    /// # Errors
    /// When the server refuses, is gone, does not answer in time, or the interrupt fires.
    pub fn open(&self, request: &OpenRequest) -> Result<Stream, LinkError> {
        let (tx, rx) = mpsc::channel(QUEUE);
        let first = proto::EdgeMessage {
            kind: Some(ToCloud::Open(request.to_proto())),
        };
        let sent = tx.try_send(first);
        debug_assert!(sent.is_ok(), "the queue is empty");
        let mut call = Request::new(ReceiverStream::new(rx));
        if let Some(value) = &self.authorization {
            call.metadata_mut().insert("authorization", value.clone());
        }
        let mut client = self.client.clone();
        let deadline = Instant::now() + self.reply_timeout;
        let answer = self.reactor.until(deadline, false, async move {
            let mut inbound = client.generate(call).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, Status>((inbound, first))
        });
        let (inbound, first) = match answer {
            Waited::Late => {
                return Err(LinkError::Timeout {
                    peer: self.peer.to_string(),
                    what: "answer",
                    after: self.reply_timeout,
                });
            }
            Waited::Interrupted => {
                return Err(LinkError::Interrupted {
                    peer: self.peer.to_string(),
                });
            }
            Waited::Done(Err(status)) => return Err(self.not_opened(&status)),
            Waited::Done(Ok(answer)) => answer,
        };
        let protocol = |reason: String| LinkError::Protocol {
            peer: self.peer.to_string(),
            reason,
        };
        let Some(FromCloud::Accepted(accepted)) = first.and_then(|m| m.kind) else {
            return Err(protocol("it did not begin with Accepted".to_owned()));
        };
        if accepted.protocol != PROTOCOL
            || accepted.n_ctx == 0
            || accepted.max_rows_per_message == 0
        {
            return Err(protocol(format!(
                "it accepted with protocol {}, {} positions and {} rows a message",
                accepted.protocol, accepted.n_ctx, accepted.max_rows_per_message
            )));
        }
        Ok(Stream {
            wire: Wire {
                reactor: Arc::clone(&self.reactor),
                peer: Arc::clone(&self.peer),
                reply_timeout: self.reply_timeout,
                inbound,
                due: VecDeque::new(),
                skip: 0,
                max_rows: accepted.max_rows_per_message,
                n_ctx: accepted.n_ctx,
                dead: None,
                done: 0,
            },
            tx,
            info: StreamInfo {
                server: status::shown(&accepted.server),
                n_ctx: accepted.n_ctx,
                max_rows_per_message: accepted.max_rows_per_message,
                // A frame shares its message with a few numbers.
                max_frame_bytes: MAX_FRAME_BYTES
                    .min((accepted.max_message_bytes as usize).saturating_sub(1024)),
            },
            uplink_bytes: 0,
        })
    }

    /// A connection that breaks before the first answer was most likely never one of ours.
    fn not_opened(&self, status: &Status) -> LinkError {
        match status::from_status(&self.peer, status) {
            LinkError::Gone { peer, reason } if std::error::Error::source(status).is_some() => {
                let hint = if self.tls {
                    ""
                } else {
                    " (if the server has TLS on, give --tls)"
                };
                LinkError::Unreachable {
                    peer,
                    reason: format!("{reason}{hint}"),
                }
            }
            other => other,
        }
    }
}

/// What the server granted a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Name and version of the server.
    pub server: String,
    /// Positions there are.
    pub n_ctx: u32,
    /// Rows one message may carry.
    pub max_rows_per_message: u32,
    /// Bytes one frame may have.
    pub max_frame_bytes: usize,
}

/// One generation. Dropping it ends the session at the server.
pub struct Stream {
    wire: Wire,
    tx: mpsc::Sender<proto::EdgeMessage>,
    info: StreamInfo,
    uplink_bytes: u64,
}

/// An answer that the server owes.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// For rows from `first` on: their token if one was wanted, else progress.
    Rows { first: u32, token: bool },
    /// For a truncation to this many positions.
    Truncate(u32),
}

/// The receiving half, which also remembers why the stream ended.
struct Wire {
    reactor: Arc<Reactor>,
    peer: Arc<str>,
    reply_timeout: Duration,
    inbound: Streaming<proto::CloudMessage>,
    /// One for each message sent and not yet answered, oldest first.
    due: VecDeque<Due>,
    /// Tokens still to come that nobody waits for any more.
    skip: usize,
    max_rows: u32,
    n_ctx: u32,
    dead: Option<LinkError>,
    done: u32,
}

impl Stream {
    /// What the server granted.
    pub fn info(&self) -> &StreamInfo {
        &self.info
    }

    /// Bytes of all frames sent so far.
    pub fn uplink_bytes(&self) -> u64 {
        self.uplink_bytes
    }

    /// Positions the server has told to hold; it may have more by now.
    pub fn confirmed_len(&self) -> u32 {
        self.wire.done
    }

    /// Sends one frame of rows, which stand at `first_position` and after. Returns when the frame
    /// is on its way, so the next chunk can be computed while the server works; waits only when
    /// several are.
    ///
    /// # Errors
    /// When the frame is too large for a message, the interrupt fires before there is room for it
    /// (it is then not sent), or the stream has ended; with the reason why.
    pub fn send_rows(
        &mut self,
        first_position: u32,
        frame: Vec<u8>,
        want_token: bool,
    ) -> Result<(), LinkError> {
        let bytes = frame.len();
        if bytes > self.info.max_frame_bytes {
            return Err(LinkError::FrameTooLarge {
                bytes,
                limit: self.info.max_frame_bytes,
            });
        }
        self.send(ToCloud::Rows(proto::Rows {
            first_position,
            frame,
            want_token,
        }))?;
        self.wire.due.push_back(Due::Rows {
            first: first_position,
            token: want_token,
        });
        self.uplink_bytes += bytes as u64;
        Ok(())
    }

    /// Makes the server forget the positions from `len` on.
    ///
    /// # Errors
    /// When the stream has ended; with the reason why.
    pub fn truncate(&mut self, len: u32) -> Result<(), LinkError> {
        self.send(ToCloud::Truncate(proto::Truncate { len }))?;
        self.wire.due.push_back(Due::Truncate(len));
        Ok(())
    }

    /// Waits for the token that the last `want_token` asked for. The deadline starts anew with each
    /// answer that is due before it; there is one for each message sent, and no more.
    ///
    /// After [`LinkError::Interrupted`] the stream is as good as before: the tokens due are dropped
    /// when they come, and it can be truncated and used on.
    ///
    /// # Errors
    /// When the server is silent for too long, is gone, answers what was not asked, or ended the
    /// stream; when the interrupt fires.
    pub fn recv_token(&mut self) -> Result<TokenOut, LinkError> {
        loop {
            let deadline = Instant::now() + self.wire.reply_timeout;
            match self.wire.next(deadline)? {
                None => {
                    let reason = "it ended the stream before the token came".to_owned();
                    return Err(self.wire.fail(|peer| LinkError::Gone { peer, reason }));
                }
                Some(FromCloud::Token(_)) if self.wire.skip > 0 => self.wire.skip -= 1,
                Some(FromCloud::Token(token)) => return Ok(token.into()),
                Some(_) => {}
            }
        }
    }

    /// Ends the session in order: everything sent is done when this returns. All of it together
    /// may take as long as one answer; after an interrupt a second, and what is not done then is
    /// left to the server.
    ///
    /// # Errors
    /// When the server fails to end it, or the interrupt fires meanwhile.
    pub fn close(mut self) -> Result<(), LinkError> {
        let leaving = self.wire.reactor.interrupted();
        let wait = if leaving {
            self.wire.reply_timeout.min(HASTY_CLOSE)
        } else {
            self.wire.reply_timeout
        };
        let deadline = Instant::now() + wait;
        let ended = self
            .send_by(ToCloud::Close(proto::Close {}), deadline, leaving)
            .and_then(|()| {
                while self.wire.next_by(deadline, leaving)?.is_some() {}
                Ok(())
            });
        match ended {
            Err(LinkError::Timeout { .. }) if leaving => Ok(()),
            ended => ended,
        }
    }

    fn send(&mut self, kind: ToCloud) -> Result<(), LinkError> {
        self.send_by(kind, Instant::now() + self.wire.reply_timeout, false)
    }

    fn send_by(
        &mut self,
        kind: ToCloud,
        deadline: Instant,
        leaving: bool,
    ) -> Result<(), LinkError> {
        if let Some(error) = &self.wire.dead {
            return Err(error.clone());
        }
        // Who wants a token, or the end, waits for it next, and serves the socket then.
        let off = match &kind {
            ToCloud::Rows(rows) => !rows.want_token,
            ToCloud::Truncate(_) => true,
            ToCloud::Open(_) | ToCloud::Close(_) => false,
        };
        let message = proto::EdgeMessage { kind: Some(kind) };
        #[allow(clippy::result_large_err)] // tokio's own
        let queue = || self.tx.try_send(message);
        let message = match self.wire.reactor.send(off, queue) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(self.wire.why(deadline, leaving));
            }
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        let wait = self.wire.reply_timeout;
        let reactor = &self.wire.reactor;
        match reactor.until(deadline, leaving, self.tx.send(message)) {
            Waited::Done(Ok(())) => {
                reactor.send(off, || ());
                Ok(())
            }
            Waited::Done(Err(_)) => Err(self.wire.why(deadline, leaving)),
            Waited::Late => Err(self.wire.fail(|peer| LinkError::Timeout {
                peer,
                what: "take more rows",
                after: wait,
            })),
            Waited::Interrupted => Err(self.wire.interrupted()),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The end of what is sent tells the server at once, or that of the connection, if the link goes as well.
        self.wire.reactor.attend();
    }
}

impl Wire {
    /// The next message, which is one that is due; none at the stream's good end.
    fn next(&mut self, deadline: Instant) -> Result<Option<FromCloud>, LinkError> {
        self.next_by(deadline, false)
    }

    fn next_by(
        &mut self,
        deadline: Instant,
        leaving: bool,
    ) -> Result<Option<FromCloud>, LinkError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        let wait = self.reply_timeout;
        let message = match self
            .reactor
            .until(deadline, leaving, self.inbound.message())
        {
            Waited::Done(Ok(None)) => return Ok(None),
            Waited::Done(Ok(Some(message))) => message,
            Waited::Done(Err(status)) => {
                return Err(self.fail(|peer| status::from_status(&peer, &status)));
            }
            Waited::Late => {
                return Err(self.fail(|peer| LinkError::Timeout {
                    peer,
                    what: "answer",
                    after: wait,
                }));
            }
            Waited::Interrupted => return Err(self.interrupted()),
        };
        let checked = match message.kind {
            Some(kind) => self.check(&kind).map(|()| kind),
            None => Err("it sent a message of an unknown kind".to_owned()),
        };
        match checked {
            Ok(kind) => Ok(Some(kind)),
            Err(reason) => Err(self.fail(|peer| LinkError::Protocol { peer, reason })),
        }
    }

    /// Whether this is the answer that is due; notes the positions it tells.
    fn check(&mut self, kind: &FromCloud) -> Result<(), String> {
        let (name, len) = match kind {
            FromCloud::Accepted(_) => return Err("it accepted twice".to_owned()),
            FromCloud::Token(token) => ("a token", token.position),
            FromCloud::Progress(progress) => ("progress", progress.len),
        };
        let is_token = matches!(kind, FromCloud::Token(_));
        let (wanted, least, most) = match self.due.pop_front() {
            None => return Err(format!("it sent {name} and nothing was due")),
            Some(Due::Truncate(len)) => (false, len, len),
            // How many rows a frame holds is between edge and backend; its bounds are not.
            Some(Due::Rows { first, token }) => {
                let most = first.saturating_add(self.max_rows).min(self.n_ctx);
                (token, first.saturating_add(1), most)
            }
        };
        if is_token != wanted {
            let due = if wanted { "a token" } else { "progress" };
            return Err(format!("it sent {name} where {due} was due"));
        }
        if !(least..=most).contains(&len) {
            return Err(format!(
                "it sent {name} at position {len}, which must be between {least} and {most}"
            ));
        }
        self.done = len;
        Ok(())
    }

    /// Why sending is over: what the server said last.
    fn why(&mut self, deadline: Instant, leaving: bool) -> LinkError {
        loop {
            match self.next_by(deadline, leaving) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    return self.fail(|peer| LinkError::Gone {
                        peer,
                        reason: "it ended the stream".to_owned(),
                    });
                }
                Err(error) => return error,
            }
        }
    }

    /// The user had enough: the stream lives, but the tokens due are for nobody.
    fn interrupted(&mut self) -> LinkError {
        let tokens = |due: &&Due| matches!(due, Due::Rows { token: true, .. });
        self.skip = self.due.iter().filter(tokens).count();
        LinkError::Interrupted {
            peer: self.peer.to_string(),
        }
    }

    /// The stream is over for this reason, now and at every later call.
    fn fail(&mut self, error: impl FnOnce(String) -> LinkError) -> LinkError {
        let error = error(self.peer.to_string());
        self.dead = Some(error.clone());
        error
    }
}
