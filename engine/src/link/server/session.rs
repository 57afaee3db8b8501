//! One stream at the server: who may open it, what may come, and how long anything takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Status, Streaming};

use super::super::backend::Backend;
use super::super::request::OpenRequest;
use super::super::{PROTOCOL, proto, status};
use super::accept::{Hold, Peer};
use super::worker::{self, Work, Worker};
use proto::cloud_message::Kind as CloudKind;
use proto::edge_message::Kind as FromEdge;

/// Messages that may wait for one session's thread: enough to hide the network, few enough that a
/// session holds at most some 16 MiB of frames.
const QUEUE: usize = 4;

/// What goes to the edge.
pub(super) type Outgoing = mpsc::Sender<Result<proto::CloudMessage, Status>>;

/// What all streams of a server share.
pub(super) struct Shared {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) slots: Arc<Semaphore>,
    pub(super) max_sessions: u32,
    pub(super) open_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) stopping: watch::Receiver<bool>,
}

impl Shared {
    /// Whether one session is all there is.
    fn is_for_one(&self) -> bool {
        self.slots.available_permits() + 1 >= self.max_sessions as usize
    }
}

/// Serves one stream to its end.
pub(super) async fn drive(
    shared: Arc<Shared>,
    peer: Option<Peer>,
    inbound: Streaming<proto::EdgeMessage>,
    out: Outgoing,
) {
    let (peer, _hold) = match peer {
        Some(peer) => (peer.address, Some(Hold::new(peer.standing))),
        None => (None, None),
    };
    let mut stream = Stream {
        stopping: shared.stopping.clone(),
        shared,
        inbound,
        out,
    };
    match stream.run().await {
        Ok(()) => tracing::debug!(?peer, "stream ended"),
        Err(status) => {
            tracing::info!(?peer, code = ?status.code(), reason = status.message(), "stream refused or broken off");
            // The edge may be gone or not reading; then the status has nowhere to go.
            let _ = timeout(Duration::from_secs(5), stream.out.send(Err(status))).await;
        }
    }
}

struct Stream {
    shared: Arc<Shared>,
    inbound: Streaming<proto::EdgeMessage>,
    out: Outgoing,
    stopping: watch::Receiver<bool>,
}

impl Stream {
    async fn run(&mut self) -> Result<(), Status> {
        let Some(request) = self.open_request().await? else {
            return Ok(());
        };
        self.shared
            .backend
            .contract()
            .check(&request.contract)
            .map_err(|difference| status::mismatch(&difference))?;
        let max_sessions = self.shared.max_sessions;
        let slot = Arc::clone(&self.shared.slots)
            .try_acquire_owned()
            .map_err(|_| {
                Status::resource_exhausted(format!(
                    "all {max_sessions} sessions are in use; try again later, or start the cloud with a higher --max-sessions"
                ))
            })?;
        let backend = Arc::clone(&self.shared.backend);
        let mut worker = worker::start(backend, request, slot, max_sessions, QUEUE)?;
        self.serve(&mut worker).await
    }

    /// The first message; none when the edge left before.
    async fn open_request(&mut self) -> Result<Option<OpenRequest>, Status> {
        let wait = self.shared.open_timeout;
        let message = tokio::select! {
            () = stopped(&mut self.stopping) => return Err(shutting_down()),
            () = self.out.closed() => return Ok(None),
            message = timeout(wait, self.inbound.message()) => message.map_err(|_| {
                Status::deadline_exceeded(format!("no Open came within {} s", wait.as_secs_f32()))
            })??,
        };
        let open = match message {
            None => return Ok(None),
            Some(message) => match message.kind {
                Some(FromEdge::Open(open)) => open,
                _ => return Err(Status::invalid_argument("the first message must be Open")),
            },
        };
        if open.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the cloud speaks link protocol {PROTOCOL}, the edge {}; use the same splitrun release at both ends",
                open.protocol
            )));
        }
        OpenRequest::from_proto(open)
            .map(Some)
            .map_err(Status::invalid_argument)
    }

    /// Carries work in and answers out until either end has enough.
    async fn serve(&mut self, worker: &mut Worker) -> Result<(), Status> {
        let idle = self.shared.idle_timeout;
        // Opening is the first piece of work.
        let mut in_flight = 1;
        let mut closing = false;
        let mut last = Instant::now();
        loop {
            if closing && in_flight == 0 {
                return Ok(());
            }
            tokio::select! {
                // Answers first: they make room, and an error among them is the reason for what follows.
                biased;
                answer = worker.answers.recv() => {
                    let kind = answer.unwrap_or_else(|| Err(Status::internal("the session ended by itself")))?;
                    in_flight -= 1;
                    last = Instant::now();
                    if !self.answer(kind).await? {
                        return Ok(());
                    }
                }
                () = stopped(&mut self.stopping) => return Err(shutting_down()),
                () = self.out.closed() => return Ok(()),
                message = self.inbound.message(), if !closing && in_flight < QUEUE => {
                    last = Instant::now();
                    match message? {
                        None => closing = true,
                        Some(message) => match next_work(message)? {
                            None => closing = true,
                            Some(piece) => {
                                let here = in_flight == 0 && self.shared.is_for_one();
                                match if here { worker.serve_here(piece) } else { Err(piece) } {
                                    Ok(answer) => {
                                        last = Instant::now();
                                        if !self.answer(answer?).await? {
                                            return Ok(());
                                        }
                                        // Others of the network may want this thread.
                                        tokio::task::yield_now().await;
                                    }
                                    Err(piece) => {
                                        // There is room, for fewer than QUEUE are in flight; or the thread
                                        // has ended, and its last answer says why.
                                        closing = worker.work.try_send(piece).is_err();
                                        in_flight += 1;
                                    }
                                }
                            }
                        },
                    }
                }
                () = sleep_until(last + idle), if in_flight == 0 => {
                    return Err(idle_for(idle, "sent nothing"));
                }
            }
        }
    }

    /// Sends an answer; whether the edge is still there.
    async fn answer(&mut self, kind: CloudKind) -> Result<bool, Status> {
        let idle = self.shared.idle_timeout;
        let message = proto::CloudMessage { kind: Some(kind) };
        match timeout(idle, self.out.send(Ok(message))).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(idle_for(idle, "took no answer")),
        }
    }
}

/// What a message asks of the session; none to close it.
fn next_work(message: proto::EdgeMessage) -> Result<Option<Work>, Status> {
    match message.kind {
        Some(FromEdge::Rows(rows)) if rows.frame.is_empty() => Err(Status::invalid_argument(
            "a message of rows has an empty frame",
        )),
        Some(FromEdge::Rows(rows)) => Ok(Some(Work::Rows(rows))),
        Some(FromEdge::Truncate(truncate)) => Ok(Some(Work::Truncate(truncate.len))),
        Some(FromEdge::Close(_)) => Ok(None),
        Some(FromEdge::Open(_)) => Err(Status::invalid_argument("a second Open came")),
        None => Err(Status::invalid_argument(
            "a message of a kind that this server does not know came",
        )),
    }
}

/// Resolves when the server stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server's end is gone, which is a stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn shutting_down() -> Status {
    Status::unavailable("server is shutting down")
}

fn idle_for(idle: Duration, what: &str) -> Status {
    Status::deadline_exceeded(format!(
        "the edge {what} for {} s; the session is closed, open another",
        idle.as_secs_f32()
    ))
}
