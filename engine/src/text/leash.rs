//! A thread for work that a file dictates: bounded in time, memory and stack.
//!
//! A template engine's own limits count instructions; a list that holds itself twice, sixty times
//! over, takes few of them and is exponential to write out. A thread cannot be killed, and an
//! allocation that fails aborts the process. So the process' allocator watches the threads started
//! here: one that takes too much (memory, stack, or time) is stopped inside its next allocation,
//! for good. It costs no processor time then; what it had taken stays taken, and so a
//! [`Leash`] lets no further work start.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Stack of such a thread; virtual, taken as it is touched. What 64 KiB of source can nest, and
/// what the engine's instruction limit can nest at run time, fit several times over.
const STACK: usize = 256 << 20;
/// Stack kept free for calls that allocate nothing.
const STACK_RESERVE: usize = 64 << 20;
/// How often the waiting side looks whether the thread was stopped.
const LOOK: Duration = Duration::from_millis(20);

/// Why work on a [`Leash`] has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It, or other work on the same leash before, took too much memory or stack.
    Space,
    /// It took too long.
    Time,
    /// It panicked.
    Panic,
    /// The system gave no thread.
    NoThread,
}

/// Lets work run within bounds until one piece of it exceeds them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leash {
    // static: a stopped thread may look at it for as long as the process lives
    stopped: &'static AtomicBool,
}

#[derive(Clone, Copy)]
struct Bounds {
    stopped: &'static AtomicBool,
    deadline: Instant,
    /// Address of a variable near the stack's start.
    base: usize,
}

thread_local! {
    static BOUNDS: Cell<Option<Bounds>> = const { Cell::new(None) };
    static LEFT: Cell<isize> = const { Cell::new(0) };
}

impl Leash {
    /// A new one; each costs a byte for as long as the process lives.
    pub(super) fn new() -> Self {
        Self {
            stopped: Box::leak(Box::new(AtomicBool::new(false))),
        }
    }

    /// Runs `work` on its own thread, with at most `memory` bytes and for at most `time`.
    ///
    /// # Errors
    /// It exceeded its bounds (it may go on until its next allocation), panicked, or an earlier
    /// one exceeded them.
    pub(super) fn run<T: Send + 'static>(
        self,
        memory: usize,
        time: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Stopped::Space);
        }
        let deadline = Instant::now() + time;
        let (tx, rx) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("template".into())
            .stack_size(STACK)
            .spawn(move || {
                let here = 0_u8;
                LEFT.set(isize::try_from(memory).unwrap_or(isize::MAX));
                BOUNDS.set(Some(Bounds {
                    stopped: self.stopped,
                    deadline,
                    base: (&raw const here).addr(),
                }));
                let done = work();
                BOUNDS.set(None);
                // the other side may have given up
                let _ = tx.send(done);
            })
            .map_err(|_| Stopped::NoThread)?;
        loop {
            match rx.recv_timeout(LOOK) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Panic),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    self.stopped.store(true, Ordering::Relaxed);
                    return Err(Stopped::Time);
                }
                Err(RecvTimeoutError::Timeout) if self.stopped.load(Ordering::Relaxed) => {
                    return Err(Stopped::Space);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Charges this thread, if it is on a leash, and stops it for good when it took too much.
fn charge(bytes: usize) {
    // no thread-local any more: the thread is ending, and not in `work`
    let Ok(Some(bounds)) = BOUNDS.try_with(Cell::get) else {
        return;
    };
    // a panic is reported under locks that other threads need
    if thread::panicking() {
        return;
    }
    let left = LEFT.get().saturating_sub_unsigned(bytes);
    LEFT.set(left);
    let here = 0_u8;
    let depth = bounds.base.abs_diff((&raw const here).addr());
    if left < 0 || depth > STACK - STACK_RESERVE || Instant::now() >= bounds.deadline {
        bounds.stopped.store(true, Ordering::Relaxed);
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

fn refund(bytes: usize) {
    // a failed look-up means the thread is ending
    let _ = LEFT.try_with(|left| left.set(left.get().saturating_add_unsigned(bytes)));
}

/// The system's allocator, watching the threads that chat templates run on.
///
/// A program that renders templates of files it does not trust makes this its global allocator;
/// without, their time is bounded, but neither their memory nor the depth of what they nest at run
/// time.
#[derive(Clone, Copy, Debug)]
pub struct Watching;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Watching = Watching;

// SAFETY: every call goes to `System` with the arguments it came with; `charge` and `refund` touch
// only thread-locals that need neither allocation nor destructor, do not unwind, and where `charge`
// does not return, no memory is handed out.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        charge(new_size);
        refund(layout.size());
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        refund(layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn work_within_bounds_returns() {
        let leash = Leash::new();
        for _ in 0..3 {
            // what was freed counts no more
            let sum = leash.run(1 << 20, LONG, || {
                (0..100_u8)
                    .map(|i| {
                        vec![i; 64 << 10]
                            .iter()
                            .map(|b| usize::from(*b))
                            .sum::<usize>()
                    })
                    .sum::<usize>()
            });
            assert_eq!(sum, Ok(4950 * (64 << 10)));
        }
    }

    #[test]
    fn too_much_of_anything_stops() {
        let leash = Leash::new();
        assert_eq!(
            leash.run(1 << 20, LONG, || vec![1_u8; 2 << 20].len()),
            Err(Stopped::Space)
        );
        assert_eq!(leash.run(1 << 20, LONG, || 1), Err(Stopped::Space));
        assert_eq!(
            Leash::new().run(1 << 20, Duration::from_millis(100), || {
                thread::sleep(LONG);
            }),
            Err(Stopped::Time)
        );
        fn deep(n: u64) -> u64 {
            // the boxes must be real, and so must the frames
            let boxed = std::hint::black_box(Box::new(n));
            if *boxed == u64::MAX {
                return 0;
            }
            deep(*boxed + 1) ^ *std::hint::black_box(boxed)
        }
        assert_eq!(
            Leash::new().run(1 << 30, LONG, || deep(0)),
            Err(Stopped::Space)
        );
        assert_eq!(
            Leash::new().run(1 << 20, LONG, || std::panic::panic_any(1)),
            Err::<(), _>(Stopped::Panic)
        );
    }
}
