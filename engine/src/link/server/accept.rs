//! Accepting connections: a bounded number, none that stays silent, and none without business.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Extensions;
use tonic::transport::server::{Connected, TlsConnectInfo};

/// So many times [`Limits::linger`] a connection may live on health calls alone. They need no token,
/// and must not be a way to fill the server; a checker that stays longer connects anew.
const HEALTH_LINGERS: u32 = 6;

/// How long connections may do without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without a byte: a live peer answers HTTP/2 pings, so a silent one is gone or was never a
    /// client.
    pub(super) quiet: Duration,
    /// Without a stream that was let in or a health call: who only answers pings takes room from
    /// others.
    pub(super) linger: Duration,
}

/// What keeps one connection open.
#[derive(Debug)]
pub(super) struct Standing {
    linger: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Streams that were let in and have not ended.
    streams: usize,
    /// Since when there is none.
    since: Instant,
    /// The last health call since then.
    health: Instant,
}

impl Standing {
    fn new(linger: Duration) -> Self {
        let now = Instant::now();
        Self {
            linger,
            state: Mutex::new(State {
                streams: 0,
                since: now,
                health: now,
            }),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A health call came.
    pub(super) fn checked(&self) {
        self.with(|state| state.health = Instant::now());
    }

    /// When the connection is to be closed as things are; none while there are streams.
    fn end(&self) -> Option<Instant> {
        self.with(|state| {
            let last = state.health.max(state.since);
            let end = (last + self.linger).min(state.since + self.linger * HEALTH_LINGERS);
            (state.streams == 0).then_some(end)
        })
    }
}

/// Keeps a connection open for one stream, until dropped.
#[derive(Debug)]
pub(super) struct Hold(Arc<Standing>);

impl Hold {
    pub(super) fn new(standing: Arc<Standing>) -> Self {
        standing.with(|state| state.streams += 1);
        Self(standing)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.streams = state.streams.saturating_sub(1);
            state.since = Instant::now();
        });
    }
}

/// What calls know of their connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Who is at the other end.
    pub(super) address: Option<SocketAddr>,
    /// What keeps it open.
    pub(super) standing: Arc<Standing>,
}

impl Peer {
    /// The one that a call came from.
    pub(super) fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get::<Self>().or_else(|| {
            extensions
                .get::<TlsConnectInfo<Self>>()
                .map(TlsConnectInfo::get_ref)
        })
    }
}

/// Accepts on `listener` for as long as the returned stream is kept. At most `max_connections` are
/// open; more wait in the system's queue. One that goes over a limit is cut off.
pub(super) fn incoming(
    listener: TcpListener,
    max_connections: usize,
    limits: Limits,
) -> ReceiverStream<io::Result<Connection>> {
    let (tx, rx) = mpsc::channel(1);
    let slots = Arc::new(Semaphore::new(max_connections));
    tokio::spawn(async move {
        tokio::select! {
            () = tx.closed() => {}
            () = accept(&listener, &slots, limits, &tx) => {}
        }
    });
    ReceiverStream::new(rx)
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    limits: Limits,
    tx: &mpsc::Sender<io::Result<Connection>>,
) {
    loop {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A row must not wait for the next one to fill a segment.
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, "no TCP_NODELAY: {e}");
                }
                let connection = Connection {
                    stream,
                    limits,
                    heard: Instant::now(),
                    standing: Arc::new(Standing::new(limits.linger)),
                    timer: Box::pin(sleep(limits.quiet.min(limits.linger))),
                    _slot: slot,
                };
                if tx.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Err(e) => {
                // Out of file descriptors, most likely: trying at once would only spin.
                tracing::warn!("cannot accept a connection: {e}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A TCP stream that fails when it is over a limit.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    limits: Limits,
    heard: Instant,
    standing: Arc<Standing>,
    timer: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.heard = Instant::now();
        }
        // The timer is set again when it fires and not at every read, which is the hot path. It is
        // asked after a read too: one who never stops sending must not stay for that.
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let quiet = self.heard + self.limits.quiet;
            let end = self.standing.end();
            let over = |what: &str, wait: Duration| {
                let text = format!("{what} for {} s", wait.as_secs_f32());
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            };
            if quiet <= now {
                return over("nothing heard", self.limits.quiet);
            }
            if end.is_some_and(|end| end <= now) {
                return over("no stream", self.limits.linger);
            }
            // A stream may end at any time, so look again before that can be too long ago.
            let until = quiet.min(end.unwrap_or(now + self.limits.linger));
            self.timer = Box::pin(sleep_until(until));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Self::ConnectInfo {
        Peer {
            address: self.stream.peer_addr().ok(),
            standing: Arc::clone(&self.standing),
        }
    }
}
