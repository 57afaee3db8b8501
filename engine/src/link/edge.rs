//! The edge's end: a synchronous face over a small runtime that keeps the connection alive while
//! the edge computes.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::address::Address;
use super::error::LinkError;
use super::request::{OpenRequest, TokenOut};
use super::security::{self, EdgeTls, Token};
use super::{MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, PROTOCOL, proto, status};
use proto::cloud_message::Kind as FromCloud;
use proto::edge_message::Kind as ToCloud;
use proto::split_client::SplitClient;

/// Messages that may wait for the network before a send waits too.
const QUEUE: usize = 4;

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
}

impl EdgeOptions {
    /// No TLS, no token; 10 s to connect, 60 s for an answer, pings every 10 s.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            tls: None,
            token: None,
            insecure: false,
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_mins(1),
            keepalive: Duration::from_secs(10),
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
    /// reached in time, or TLS fails.
    pub fn connect(options: EdgeOptions) -> Result<Self, LinkError> {
        let EdgeOptions {
            address,
            tls,
            token,
            insecure,
            connect_timeout,
            reply_timeout,
            keepalive,
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
        let reactor = Arc::new(Reactor::new()?);
        let channel = reactor
            .within(connect_timeout, endpoint.connect())
            .ok_or_else(|| LinkError::Timeout {
                peer: peer.to_string(),
                what: "let us connect",
                after: connect_timeout,
            })?
            .map_err(|e| status::from_connect(&peer, tls.is_some(), &e))?;
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
    /// When the server refuses, is gone, or does not answer in time.
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
        let answer = self.reactor.within(self.reply_timeout, async move {
            let mut inbound = client.generate(call).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, Status>((inbound, first))
        });
        let (inbound, first) = match answer {
            None => {
                return Err(LinkError::Timeout {
                    peer: self.peer.to_string(),
                    what: "answer",
                    after: self.reply_timeout,
                });
            }
            Some(Err(status)) => return Err(self.not_opened(&status)),
            Some(Ok(answer)) => answer,
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

/// The receiving half, which also remembers why the stream ended.
struct Wire {
    reactor: Arc<Reactor>,
    peer: Arc<str>,
    reply_timeout: Duration,
    inbound: Streaming<proto::CloudMessage>,
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
    /// When the frame is too large for a message, or the stream has ended; with the reason why.
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
        self.uplink_bytes += bytes as u64;
        Ok(())
    }

    /// Makes the server forget the positions from `len` on.
    ///
    /// # Errors
    /// When the stream has ended; with the reason why.
    pub fn truncate(&mut self, len: u32) -> Result<(), LinkError> {
        self.send(ToCloud::Truncate(proto::Truncate { len }))
    }

    /// Waits for the token that the last `want_token` asked for. The deadline starts anew whenever
    /// the server tells progress.
    ///
    /// # Errors
    /// When the server is silent for too long, is gone, or ended the stream.
    pub fn recv_token(&mut self) -> Result<TokenOut, LinkError> {
        loop {
            match self.wire.next()? {
                None => {
                    let reason = "it ended the stream before the token came".to_owned();
                    return Err(self.wire.fail(|peer| LinkError::Gone { peer, reason }));
                }
                Some(FromCloud::Token(token)) => {
                    self.wire.done = token.position;
                    return Ok(token.into());
                }
                Some(FromCloud::Progress(progress)) => self.wire.done = progress.len,
                Some(FromCloud::Accepted(_)) => {
                    let reason = "it accepted twice".to_owned();
                    return Err(self.wire.fail(|peer| LinkError::Protocol { peer, reason }));
                }
            }
        }
    }

    /// Ends the session in order: everything sent is done when this returns.
    ///
    /// # Errors
    /// When the server fails to end it.
    pub fn close(mut self) -> Result<(), LinkError> {
        self.send(ToCloud::Close(proto::Close {}))?;
        while self.wire.next()?.is_some() {}
        Ok(())
    }

    fn send(&mut self, kind: ToCloud) -> Result<(), LinkError> {
        if let Some(error) = &self.wire.dead {
            return Err(error.clone());
        }
        let message = proto::EdgeMessage { kind: Some(kind) };
        let message = match self.tx.try_send(message) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.wire.why()),
            Err(mpsc::error::TrySendError::Full(message)) => message,
        };
        let wait = self.wire.reply_timeout;
        match self.wire.reactor.within(wait, self.tx.send(message)) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(self.wire.why()),
            None => Err(self.wire.fail(|peer| LinkError::Timeout {
                peer,
                what: "take more rows",
                after: wait,
            })),
        }
    }
}

impl Wire {
    /// The next message; none at the stream's good end.
    fn next(&mut self) -> Result<Option<FromCloud>, LinkError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        let wait = self.reply_timeout;
        match self.reactor.within(wait, self.inbound.message()) {
            Some(Ok(None)) => Ok(None),
            Some(Ok(Some(message))) => match message.kind {
                Some(kind) => Ok(Some(kind)),
                None => Err(self.fail(|peer| LinkError::Protocol {
                    peer,
                    reason: "it sent a message of an unknown kind".to_owned(),
                })),
            },
            Some(Err(status)) => Err(self.fail(|peer| status::from_status(&peer, &status))),
            None => Err(self.fail(|peer| LinkError::Timeout {
                peer,
                what: "answer",
                after: wait,
            })),
        }
    }

    /// Why sending is over: what the server said last.
    fn why(&mut self) -> LinkError {
        loop {
            match self.next() {
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

    /// The stream is over for this reason, now and at every later call.
    fn fail(&mut self, error: impl FnOnce(String) -> LinkError) -> LinkError {
        let error = error(self.peer.to_string());
        self.dead = Some(error.clone());
        error
    }
}

/// One thread that serves the socket and answers pings, also while the edge computes.
struct Reactor(Option<Runtime>);

impl Reactor {
    fn new() -> Result<Self, LinkError> {
        if Handle::try_current().is_ok() {
            return Err(LinkError::Runtime(
                "an EdgeLink blocks and cannot be used inside an asynchronous task".to_owned(),
            ));
        }
        Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("link")
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
            .map_err(|e| LinkError::Runtime(e.to_string()))
    }

    /// Waits on this thread for `future`; none when `wait` has passed.
    fn within<T>(&self, wait: Duration, future: impl Future<Output = T>) -> Option<T> {
        // The runtime is there until drop; an absent one would never answer either.
        let runtime = self.0.as_ref()?;
        runtime.block_on(async { timeout(wait, future).await.ok() })
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A name lookup may still hang in a thread of its own.
            runtime.shutdown_background();
        }
    }
}
