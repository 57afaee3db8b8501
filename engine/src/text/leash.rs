//! A thread for work that a file dictates: with room for deep nesting, and bounded in time.
//!
//! A template engine's own limits count instructions; a list that holds itself twice, sixty times
//! over, takes few of them and is exponential to write out. And a parser that nests without limit
//! needs stack for all that its source can nest. A thread cannot be killed, so work that takes too
//! long is let go: it goes on until the program ends, which for a template that cannot be rendered
//! is soon. A [`Leash`] that has let go lets no further work start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Stack of such a thread; virtual, taken as it is touched. What 64 KiB of source can nest fits
/// several times over.
const STACK: usize = 256 << 20;

/// Why work on a [`Leash`] has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It, or other work on the same leash before, took too long.
    Time,
    /// It panicked.
    Panic,
    /// The system gave no thread.
    NoThread,
}

/// Lets work run within bounds until one piece of it exceeds them.
#[derive(Clone, Debug, Default)]
pub(super) struct Leash {
    let_go: Arc<AtomicBool>,
}

impl Leash {
    /// Runs `work` on its own thread, for at most `time`.
    ///
    /// # Errors
    /// It took too long (and goes on), panicked, or earlier work took too long.
    pub(super) fn run<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        if self.let_go.load(Ordering::Relaxed) {
            return Err(Stopped::Time);
        }
        let (tx, rx) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("template".into())
            .stack_size(STACK)
            .spawn(move || {
                // The other side may have let go.
                let _ = tx.send(work());
            })
            .map_err(|_| Stopped::NoThread)?;
        rx.recv_timeout(time).map_err(|e| match e {
            RecvTimeoutError::Disconnected => Stopped::Panic,
            RecvTimeoutError::Timeout => {
                self.let_go.store(true, Ordering::Relaxed);
                Stopped::Time
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_let_go_or_found_to_have_panicked() {
        let leash = Leash::default();
        let long = Duration::from_secs(20);
        assert_eq!(leash.run(long, || 7), Ok(7));
        assert_eq!(
            leash.run(long, || std::panic::panic_any(1)),
            Err::<(), _>(Stopped::Panic)
        );
        let slow = || thread::sleep(Duration::from_secs(2));
        assert_eq!(
            leash.run(Duration::from_millis(50), slow),
            Err(Stopped::Time)
        );
        assert_eq!(leash.run(long, || 7), Err(Stopped::Time));
        assert_eq!(Leash::default().run(long, || 7), Ok(7));
    }

    #[test]
    fn the_stack_is_deep() {
        fn deep(n: u64) -> u64 {
            if n == 0 {
                0
            } else {
                1 + deep(std::hint::black_box(n - 1))
            }
        }
        let long = Duration::from_secs(20);
        assert_eq!(Leash::default().run(long, || deep(500_000)), Ok(500_000));
    }
}
