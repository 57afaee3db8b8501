//! Waiting on the edge's side: for an answer, a deadline, or the user's Ctrl-C.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::time::{Instant, interval, sleep_until};

use super::error::LinkError;

/// How often an [`Interrupt`] is asked. Fast enough to feel immediate, rare enough to cost nothing.
const POLL: Duration = Duration::from_millis(50);

/// How long nobody may serve the socket before the keeper does. (In tests so long that they see whether it was told to.)
const NAP: Duration = Duration::from_millis(if cfg!(test) { 5000 } else { 50 });
/// The least that this is shortened to for the sake of pings.
const LEAST_NAP: Duration = Duration::from_millis(1);

/// Whether the user wants the link to stop waiting: a flag that a signal handler sets, most likely.
/// It is asked every 50 ms, and only while the link waits.
#[derive(Clone)]
pub struct Interrupt(Arc<dyn Fn() -> bool + Send + Sync>);

impl Interrupt {
    /// `fired` says whether to stop; it must return at once.
    pub fn new(fired: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(fired))
    }

    /// Whether to stop.
    pub fn fired(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupt({})", self.fired())
    }
}

/// How a wait ended.
pub(super) enum Waited<T> {
    /// With what was waited for.
    Done(T),
    /// The deadline passed first.
    Late,
    /// The user had enough.
    Interrupted,
}

/// Serves the socket: the thread that waits does it itself, so that no other must be woken for a message
/// to leave or to be taken in, and while nobody waits the [`keeper`](keep) does.
pub(super) struct Reactor {
    shared: Arc<Shared>,
    interrupt: Option<Interrupt>,
}

/// What the waiting threads and the keeper have in common.
struct Shared {
    runtime: Unwaited,
    /// Threads that wait, and so serve the socket.
    inside: AtomicUsize,
    /// When the last one left, in microseconds after `start`.
    left: AtomicU64,
    start: Instant,
    /// Whether the keeper serves the socket.
    keeping: AtomicBool,
    /// Tells the keeper that somebody came.
    back: Notify,
    orders: Mutex<Orders>,
    /// New orders.
    bell: Condvar,
}

/// What the keeper is told.
#[derive(Default)]
struct Orders {
    /// Serve at once: there is more to send, and whoever sent it computes on.
    begin: bool,
    /// Leave for ever.
    over: bool,
}

impl Reactor {
    /// Pings must be answered well within `keepalive`.
    pub(super) fn new(
        interrupt: Option<Interrupt>,
        keepalive: Duration,
    ) -> Result<Self, LinkError> {
        if Handle::try_current().is_ok() {
            return Err(LinkError::Runtime(
                "an EdgeLink blocks and cannot be used inside an asynchronous task".to_owned(),
            ));
        }
        let failed = |e: std::io::Error| LinkError::Runtime(e.to_string());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let shared = Arc::new(Shared {
            runtime: Unwaited(Some(runtime)),
            inside: AtomicUsize::new(0),
            left: AtomicU64::new(0),
            start: Instant::now(),
            keeping: AtomicBool::new(false),
            back: Notify::new(),
            orders: Mutex::default(),
            bell: Condvar::new(),
        });
        let this = Self {
            shared: Arc::clone(&shared),
            interrupt,
        };
        thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || keep(&shared, NAP.min(keepalive / 4).max(LEAST_NAP)))
            .map_err(failed)?;
        Ok(this)
    }

    /// Whether the user wants to stop.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::fired)
    }

    /// Waits on this thread for `future`, at most to `deadline`. What is there already is taken
    /// even if it is late or the user wants to stop. Who is `leaving` has been interrupted and
    /// waits on all the same.
    pub(super) fn until<T>(
        &self,
        deadline: Instant,
        leaving: bool,
        future: impl Future<Output = T>,
    ) -> Waited<T> {
        let interrupt = self.interrupt.as_ref().filter(|_| !leaving);
        self.shared.serve(async {
            tokio::select! {
                biased;
                done = future => Waited::Done(done),
                () = fired(interrupt) => Waited::Interrupted,
                () = sleep_until(deadline) => Waited::Late,
            }
        })
    }

    /// Queues something to send and lets the queue go out, as a rule at once as far as the network takes it. The
    /// rest goes when somebody [waits](Self::until), or from now on if the sender is `off`, not to wait soon.
    pub(super) fn send<T>(&self, off: bool, queue: impl FnOnce() -> T) -> T {
        // In here, so that those who send it need not be woken.
        let queued = self.shared.serve(async {
            let queued = queue();
            tokio::task::yield_now().await;
            queued
        });
        if off {
            self.attend();
        }
        queued
    }

    /// Lets the keeper serve the socket from now on, until somebody waits; where another thread of this link waits
    /// already, from a nap after it on.
    pub(super) fn attend(&self) {
        self.shared.order(|orders| orders.begin = true);
    }
}

impl Shared {
    /// Serves the socket on this thread until `future` is ready.
    fn serve<T>(&self, future: impl Future<Output = T>) -> T {
        let _visit = Visit::new(self);
        // The keeper says that it serves before it looks whether somebody is here: one of both sees.
        if self.keeping.load(Ordering::SeqCst) {
            self.back.notify_one();
        }
        self.runtime.block_on(future)
    }

    /// How long the keeper need not look; nothing if nobody has served the socket for `nap`.
    fn pause(&self, nap: Duration) -> Option<Duration> {
        // Before `left`, which whoever leaves writes first.
        if self.inside.load(Ordering::SeqCst) > 0 {
            return Some(nap);
        }
        let away = self.now().saturating_sub(self.left.load(Ordering::Relaxed));
        Some(nap.saturating_sub(Duration::from_micros(away))).filter(|rest| !rest.is_zero())
    }

    /// Microseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, give: impl FnOnce(&mut Orders)) {
        give(&mut self.orders());
        self.bell.notify_one();
    }
}

/// A thread that waits. It leaves even if what it waits for panics.
struct Visit<'a>(&'a Shared);

impl<'a> Visit<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.inside.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.left.store(self.0.now(), Ordering::Relaxed);
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A runtime whose end nobody waits for: a name lookup may still hang in a thread of its own.
struct Unwaited(Option<Runtime>);

impl Unwaited {
    /// Serves until `future` is ready.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match &self.0 {
            Some(runtime) => runtime.block_on(future),
            None => unreachable!("it is there until it is dropped"),
        }
    }
}

impl Drop for Unwaited {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves the socket while nobody waits, so that pings are answered and what is queued goes out. It begins
/// when nobody has come for `nap`, or when told to; it stops when somebody comes. Two threads that take turns token after
/// token would cost a wake-up each; most tokens are made within a nap.
fn keep(shared: &Shared, nap: Duration) {
    loop {
        let mut orders = shared.orders();
        while !orders.begin && !orders.over {
            let Some(pause) = shared.pause(nap) else {
                break;
            };
            (orders, _) =
                (shared.bell.wait_timeout(orders, pause)).unwrap_or_else(PoisonError::into_inner);
        }
        if orders.over {
            return;
        }
        orders.begin = false;
        drop(orders);
        shared.keeping.store(true, Ordering::SeqCst);
        shared.runtime.block_on(async {
            while shared.inside.load(Ordering::SeqCst) == 0 && !shared.orders().over {
                shared.back.notified().await;
            }
        });
        shared.keeping.store(false, Ordering::SeqCst);
    }
}

/// Resolves when the user wants to stop.
async fn fired(interrupt: Option<&Interrupt>) {
    let Some(interrupt) = interrupt else {
        return std::future::pending().await;
    };
    let mut ticks = interval(POLL);
    while !interrupt.fired() {
        ticks.tick().await;
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.shared.order(|orders| orders.over = true);
        self.shared.back.notify_one();
    }
}
