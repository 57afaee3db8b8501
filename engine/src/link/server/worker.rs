//! Where one session computes: on a thread of its own, or, when what is asked is soon done and nobody else
//! is served, where the message came in.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::super::backend::{Backend, Opened, Sampled, Session};
use super::super::request::OpenRequest;
use super::super::{MAX_MESSAGE_BYTES, PROTOCOL, SERVER_NAME, proto};
use proto::cloud_message::Kind;

/// What a session is told to do.
pub(super) enum Work {
    /// Run rows.
    Rows(proto::Rows),
    /// Forget positions.
    Truncate(u32),
}

/// The session's side of its thread: work goes in, one answer each comes out. Dropping it ends the
/// thread after the work it is at.
pub(super) struct Worker {
    pub(super) work: mpsc::Sender<Work>,
    pub(super) answers: mpsc::UnboundedReceiver<Result<Kind, Status>>,
    place: Arc<Place>,
}

/// The session, for whoever serves it; none before it is open and after its end.
type Place = Mutex<Option<Seat>>;

/// How long a thread of the network may compute, as far as one can tell. Two wake-ups are saved, some 0.1 ms, so more is not
/// worth it. (Tests share their machine.)
const QUICK: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5 });
/// After so long nothing can be told: memory may have gone to others.
const FRESH: Duration = Duration::from_secs(1);

impl Worker {
    /// Does `piece` on this thread, if the session has nothing else to do and it is a row after a row that
    /// took no longer than [`QUICK`]; gives it back otherwise.
    pub(super) fn serve_here(&self, piece: Work) -> Result<Result<Kind, Status>, Work> {
        let Ok(mut place) = self.place.try_lock() else {
            return Err(piece);
        };
        let Some(seat) = place.as_mut() else {
            return Err(piece);
        };
        match guarded("looking at work of", || Ok(seat.is_quick(&piece))) {
            Ok(false) => Err(piece),
            Ok(true) => Ok(guarded("running", || seat.serve(piece))),
            Err(status) => Ok(Err(status)),
        }
    }
}

/// Starts a thread that opens a session and serves it. The first answer is `Accepted`; an error is
/// the last one. `slot` is given back when the session is dropped. At most `queue` pieces of work
/// wait; the answers need no bound, for there is one for each.
pub(super) fn start(
    backend: Arc<dyn Backend>,
    request: OpenRequest,
    slot: OwnedSemaphorePermit,
    max_sessions: u32,
    queue: usize,
) -> Result<Worker, Status> {
    let (work, work_rx) = mpsc::channel(queue);
    let (answers_tx, answers) = mpsc::unbounded_channel();
    let place = Arc::new(Place::default());
    let own = Arc::clone(&place);
    thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            run(
                &*backend,
                &request,
                max_sessions,
                work_rx,
                &answers_tx,
                &own,
            );
            drop(slot);
        })
        .map_err(|e| Status::resource_exhausted(format!("no thread for the session: {e}")))?;
    Ok(Worker {
        work,
        answers,
        place,
    })
}

fn run(
    backend: &dyn Backend,
    request: &OpenRequest,
    max_sessions: u32,
    mut work: mpsc::Receiver<Work>,
    answers: &mpsc::UnboundedSender<Result<Kind, Status>>,
    place: &Place,
) {
    // Send fails when the stream has ended; there is then nobody to tell.
    let opened = guarded("opening", || backend.open(request).map_err(Status::from));
    let Opened {
        session,
        n_ctx,
        max_rows_per_message,
    } = match opened {
        Ok(opened) => opened,
        Err(status) => {
            let _ = answers.send(Err(status));
            return;
        }
    };
    // Nobody serves a session in which something panicked, so what the lock holds is whole.
    let seat =
        || -> MutexGuard<'_, Option<Seat>> { place.lock().unwrap_or_else(PoisonError::into_inner) };
    *seat() = Some(Seat {
        session,
        len: 0,
        n_ctx,
        spent: Duration::ZERO,
        last: None,
    });
    let _ = answers.send(Ok(Kind::Accepted(proto::Accepted {
        protocol: PROTOCOL,
        server: SERVER_NAME.to_owned(),
        n_ctx,
        max_rows_per_message,
        max_message_bytes: MAX_MESSAGE_BYTES as u32,
        max_sessions,
    })));
    while let Some(piece) = work.blocking_recv() {
        // Nobody waits for the answer: do not compute what is queued.
        if answers.is_closed() {
            break;
        }
        let mut held = seat();
        // It leaves its place at the end alone.
        let Some(seat) = held.as_mut() else { break };
        let answer = guarded("running", || seat.serve(piece));
        drop(held);
        let failed = answer.is_err();
        if answers.send(answer).is_err() || failed {
            break;
        }
    }
    // A session that panics in its drop must not lose the slot.
    let seat = seat().take();
    let _ = guarded("closing", || {
        drop(seat);
        Ok(())
    });
}

/// A session and where it stands.
struct Seat {
    session: Box<dyn Session>,
    /// Positions held.
    len: u32,
    n_ctx: u32,
    /// Compute since the last token.
    spent: Duration,
    /// If the last piece was one row that wanted a token: when it was done, and how long it took.
    last: Option<(Instant, Duration)>,
}

impl Seat {
    /// Whether `piece` asks for a token that is probably as soon done as the last one.
    fn is_quick(&self, piece: &Work) -> bool {
        let quick = |(at, took): (Instant, Duration)| took <= QUICK && at.elapsed() <= FRESH;
        self.last.is_some_and(quick) && self.is_token(piece)
    }

    /// Whether `piece` is one row that wants a token.
    fn is_token(&self, piece: &Work) -> bool {
        matches!(piece, Work::Rows(rows) if rows.want_token && self.session.is_single(&rows.frame))
    }

    fn serve(&mut self, piece: Work) -> Result<Kind, Status> {
        let is_token = self.is_token(&piece);
        self.last = None;
        match piece {
            Work::Truncate(len) => {
                if len > self.len {
                    return Err(Status::invalid_argument(format!(
                        "cannot keep {len} positions, the session holds {}",
                        self.len
                    )));
                }
                self.session.truncate(len)?;
                self.len = len;
                Ok(Kind::Progress(proto::Progress { len }))
            }
            Work::Rows(rows) => {
                let start = Instant::now();
                let answer = self.rows(&rows)?;
                let end = Instant::now();
                self.last = is_token.then_some((end, end - start));
                Ok(answer)
            }
        }
    }

    fn rows(&mut self, message: &proto::Rows) -> Result<Kind, Status> {
        if message.first_position != self.len {
            return Err(Status::invalid_argument(format!(
                "rows for position {} came, the session is at {}",
                message.first_position, self.len
            )));
        }
        if self.len >= self.n_ctx {
            return Err(Status::out_of_range(format!(
                "the context is full: all {} positions are used; raise it with -c, at the cloud too",
                self.n_ctx
            )));
        }
        let start = Instant::now();
        let done = self.session.rows(&message.frame, message.want_token)?;
        self.spent += start.elapsed();
        self.len = self.len.saturating_add(done.rows);
        match (message.want_token, done.token) {
            (true, Some(token)) => Ok(Kind::Token(self.token(token))),
            (true, None) => Err(Status::internal("the half gave no token")),
            (false, _) => Ok(Kind::Progress(proto::Progress { len: self.len })),
        }
    }

    fn token(&mut self, token: Sampled) -> proto::Token {
        let spent = std::mem::take(&mut self.spent);
        proto::Token {
            id: token.id,
            position: self.len,
            logprob: token.logprob,
            top_logprobs: token
                .top_logprobs
                .into_iter()
                .map(|(id, logprob)| proto::Logprob { id, logprob })
                .collect(),
            cloud_us: u64::try_from(spent.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// Runs `f`; a panic in it becomes an error of this session alone.
fn guarded<T>(doing: &str, f: impl FnOnce() -> Result<T, Status>) -> Result<T, Status> {
    // A session that panicked is dropped and not used again.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        tracing::error!(reason = %words(&*panic), "a session panicked while {doing}");
        Err(Status::internal(format!(
            "the server failed while {doing} this session; its log says why"
        )))
    })
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
