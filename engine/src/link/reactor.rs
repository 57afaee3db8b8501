//! Waiting on the edge's side: for an answer, a deadline, or the user's Ctrl-C.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, interval, sleep_until};

use super::error::LinkError;

/// How often an [`Interrupt`] is asked. Fast enough to feel immediate, rare enough to cost nothing.
const POLL: Duration = Duration::from_millis(50);

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

/// One thread that serves the socket and answers pings, also while the edge computes.
pub(super) struct Reactor {
    runtime: Option<Runtime>,
    interrupt: Option<Interrupt>,
}

impl Reactor {
    pub(super) fn new(interrupt: Option<Interrupt>) -> Result<Self, LinkError> {
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
            .map(|runtime| Self {
                runtime: Some(runtime),
                interrupt,
            })
            .map_err(|e| LinkError::Runtime(e.to_string()))
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
        // The runtime is there until drop; an absent one would never answer either.
        let Some(runtime) = self.runtime.as_ref() else {
            return Waited::Late;
        };
        runtime.block_on(async {
            tokio::select! {
                biased;
                done = future => Waited::Done(done),
                () = fired(interrupt) => Waited::Interrupted,
                () = sleep_until(deadline) => Waited::Late,
            }
        })
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
        if let Some(runtime) = self.runtime.take() {
            // A name lookup may still hang in a thread of its own.
            runtime.shutdown_background();
        }
    }
}
