//! Threads that share a list of items, and one place where their results arrive.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::StreamError;

/// How long a wish to stop may go unheard while no item is finished.
const PATIENCE: Duration = Duration::from_millis(50);

/// Stops the others when a thread leaves by panic.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Calls `work` for each of `0..count` on `threads` threads, each with a state of its own, and
/// gives what comes out to `take` on this one, in the order in which it comes.
///
/// Items are begun in order. After an error or a wish to stop none is begun, but what was begun
/// is finished and taken. Of several errors the one of the first item counts, so that the answer
/// does not depend on who was faster.
pub(super) fn run<S, T: Send>(
    count: usize,
    threads: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<T, StreamError> + Sync,
    mut take: impl FnMut(T) -> Result<(), StreamError>,
    stopped: impl Fn() -> bool,
) -> Result<(), StreamError> {
    let threads = threads.clamp(1, count.max(1));
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let body = |send: std::sync::mpsc::SyncSender<_>| {
        let _alarm = Alarm(&stop);
        let mut state = state();
        while !stop.load(Ordering::Relaxed) {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= count {
                break;
            }
            let result = work(&mut state, item);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            // Nobody listens when the taker died.
            if send.send((item, result)).is_err() {
                break;
            }
        }
    };
    let body = &body;
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(threads * 4);
        let mut workers = Vec::new();
        for _ in 0..threads {
            let send = send.clone();
            match std::thread::Builder::new().spawn_scoped(scope, move || body(send)) {
                Ok(worker) => workers.push(worker),
                // Fewer than asked for will do.
                Err(_) if !workers.is_empty() => break,
                Err(e) => return Err(StreamError::Threads(e)),
            }
        }
        drop(send);
        let mut refused: Option<StreamError> = None;
        let mut failed: Option<(usize, StreamError)> = None;
        let mut interrupted = false;
        loop {
            match receive.recv_timeout(PATIENCE) {
                Ok((_, Ok(result))) if refused.is_none() => refused = take(result).err(),
                Ok((item, Err(e))) if failed.as_ref().is_none_or(|(i, _)| item < *i) => {
                    failed = Some((item, e));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            interrupted = interrupted || stopped();
            if interrupted || refused.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let mut died = false;
        for worker in workers {
            // Joined by hand so that a panic becomes an error here instead of spreading.
            died |= worker.join().is_err();
        }
        match refused.or(failed.map(|(_, e)| e)) {
            Some(e) => Err(e),
            None if died => Err(StreamError::Internal("a worker thread died")),
            None if interrupted => Err(StreamError::Interrupted),
            None => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails instead of hanging.
    fn within_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(body()));
        ended.recv_timeout(Duration::from_secs(30)).unwrap()
    }

    #[test]
    fn every_item_once() {
        let mut seen = vec![0; 1000];
        let take = |i: usize| {
            seen[i] += 1;
            Ok(())
        };
        run(1000, 3, || (), |(), i| Ok(i), take, || false).unwrap();
        assert!(seen.iter().all(|n| *n == 1));
    }

    #[test]
    fn the_first_error_counts() {
        for _ in 0..50 {
            let work = |(): &mut (), i: usize| match i {
                7..=9 => Err(StreamError::Internal(["7", "8", "9"][i - 7])),
                _ => Ok(i),
            };
            let e = run(100, 4, || (), work, |_| Ok(()), || false).unwrap_err();
            assert!(matches!(e, StreamError::Internal("7")), "{e}");
        }
    }

    /// A taker that refuses or dies, a worker that dies, a wish to stop: all of it ends.
    #[test]
    fn it_ends() {
        let e = within_time(|| {
            let refuse = |_| Err(StreamError::Internal("no"));
            run(10_000, 2, || (), |(), i| Ok(i), refuse, || false).unwrap_err()
        });
        assert!(matches!(e, StreamError::Internal("no")));
        let died = within_time(|| {
            let die = std::panic::AssertUnwindSafe(|| {
                run(
                    10_000,
                    2,
                    || (),
                    |(), i| Ok(i),
                    |_| panic!("the taker dies"),
                    || false,
                )
            });
            std::panic::catch_unwind(die).is_err()
        });
        assert!(died);
        let e = within_time(|| {
            let work = |(): &mut (), i| {
                assert!(i < 100, "a worker dies");
                Ok(i)
            };
            run(10_000, 2, || (), work, |_| Ok(()), || false).unwrap_err()
        });
        assert!(matches!(e, StreamError::Internal(_)));
        let e = within_time(|| run(usize::MAX, 2, || (), |(), i| Ok(i), |_| Ok(()), || true));
        assert!(matches!(e, Err(StreamError::Interrupted)));
    }
}
