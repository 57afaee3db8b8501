//! Accepting connections: a bounded number, and none that stays silent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Accepts on `listener` for as long as the returned stream is kept. At most `max_connections` are
/// open; more wait in the system's queue. One from which no byte comes for `quiet` is cut off: a
/// live peer answers HTTP/2 pings, so a silent one is gone or was never a client.
pub(super) fn incoming(
    listener: TcpListener,
    max_connections: usize,
    quiet: Duration,
) -> ReceiverStream<io::Result<Connection>> {
    let (tx, rx) = mpsc::channel(1);
    let slots = Arc::new(Semaphore::new(max_connections));
    tokio::spawn(async move {
        tokio::select! {
            () = tx.closed() => {}
            () = accept(&listener, &slots, quiet, &tx) => {}
        }
    });
    ReceiverStream::new(rx)
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    quiet: Duration,
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
                    quiet,
                    heard: Instant::now(),
                    timer: Box::pin(sleep(quiet)),
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

/// A TCP stream that fails when nothing has been read for a while.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    quiet: Duration,
    heard: Instant,
    timer: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            self.heard = Instant::now();
            return Poll::Ready(read);
        }
        // The timer is set again when it fires and not at every read, which is the hot path.
        while self.timer.as_mut().poll(cx).is_ready() {
            let until = self.heard + self.quiet;
            if until <= Instant::now() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing heard for {} s", self.quiet.as_secs_f32()),
                )));
            }
            self.timer = Box::pin(sleep_until(until));
        }
        Poll::Pending
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
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}
