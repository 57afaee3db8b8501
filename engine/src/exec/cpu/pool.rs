//! A small thread pool for kernels that take microseconds.
//!
//! Inside a [`Session`] the workers spin between jobs, and a little longer, since the next session
//! often follows at once; then they sleep. A job is a number of
//! items. Each thread begins with a stretch of them that is its own, so that what it reads lies in
//! order, and who is done takes from the end of what others have left: a worker that the system has
//! taken off its core delays nobody for longer than one item. What is computed never depends on who
//! computes it: an item is a range of output values, and no sum crosses items.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::placement::{Place, apart};

/// Items a job may have; callers with more work make larger items.
const MAX_ITEMS: usize = u16::MAX as usize;
/// Empty looks at the job word before a waiting thread lets others run.
const SPINS: u32 = 500;
/// How long a worker looks out for the next session before it sleeps. Waking it costs more, but behind the last
/// layer of a device comes the network, and whoever serves that wants the core.
const LINGER: Duration = Duration::from_micros(3);

/// Borrowed for the length of one `run`; the lifetime is lengthened to let workers see it.
type Job = &'static (dyn Fn(usize) + Sync);

/// Items of a job that are one thread's unless others take them: epoch (32 bits), next item (16),
/// end (16) in one word, so that a claim is one exchange and a thread that was away cannot claim
/// from a job that is over. On lines of its own, since its owner writes it all the time.
#[repr(align(128))]
struct Stretch(AtomicU64);

impl Stretch {
    /// Claims an item: the first that is left, or for others than the owner the last.
    fn claim(&self, own: bool) -> Option<usize> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let (next, end) = ((word >> 16) & 0xffff, word & 0xffff);
            if next >= end {
                return None;
            }
            let (item, left) = if own {
                (next, word + (1 << 16))
            } else {
                (end - 1, word - 1)
            };
            match self
                .0
                .compare_exchange_weak(word, left, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some(item as usize),
                Err(now) => word = now,
            }
        }
    }

    /// Items left.
    fn left(&self) -> u64 {
        let word = self.0.load(Ordering::Relaxed);
        (word & 0xffff).saturating_sub((word >> 16) & 0xffff)
    }
}

struct Shared {
    /// Of each thread.
    stretches: Vec<Stretch>,
    job: UnsafeCell<Option<Job>>,
    done: AtomicUsize,
    panicked: AtomicBool,
    hot: AtomicBool,
    stop: AtomicBool,
    /// Workers that sleep, or are about to. Who changes it holds `sleep`.
    asleep: AtomicUsize,
    /// Of each worker.
    places: Vec<Place>,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the one thread that holds the session, while no item is
// claimable (every item of the job before is done); it is read only after a successful claim,
// which the writer's release stores of the stretches precede.
unsafe impl Sync for Shared {}

impl Shared {
    /// Claims an item of the current job for thread `own`.
    fn claim(&self, own: usize) -> Option<usize> {
        if let Some(item) = self.stretches[own].claim(true) {
            return Some(item);
        }
        // Whoever has most left is slowest. Another thread may be quicker to take that item: then
        // there may still be others.
        loop {
            let slowest = self.stretches.iter().max_by_key(|s| s.left())?;
            if slowest.left() == 0 {
                return None;
            }
            if let Some(item) = slowest.claim(false) {
                return Some(item);
            }
        }
    }

    /// Works as thread `own` until no item is left; says whether there was one.
    fn work(&self, own: usize) -> bool {
        let mut any = false;
        while let Some(item) = self.claim(own) {
            any = true;
            // SAFETY: the claim succeeded, so the job of this epoch is published and stays valid
            // until its last item is counted in `done`.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(|| job(item))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
        any
    }

    fn worker(&self, own: usize) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.work(own) {
                idle = 0;
            }
            if self.hot.load(Ordering::Acquire) {
                relax(&mut idle);
                continue;
            }
            idle = 0;
            let since = Instant::now();
            while !self.awake() && since.elapsed() < LINGER {
                std::hint::spin_loop();
            }
            let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            // In one order with the session's store of `hot` and its look at this: one of the two
            // sees the other, so nobody sleeps through a session.
            self.asleep.fetch_add(1, Ordering::SeqCst);
            while !self.awake() {
                self.places[own - 1].sleeps();
                guard = self
                    .wake
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            self.places[own - 1].wakes();
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Whether workers have to stay awake.
    fn awake(&self) -> bool {
        self.hot.load(Ordering::SeqCst) || self.stop.load(Ordering::Relaxed)
    }
}

fn relax(idle: &mut u32) {
    *idle += 1;
    if *idle < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Worker threads of one executor, and what belongs to whoever has the session.
pub(crate) struct Pool<T = ()> {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    session: Mutex<T>,
}

impl<T> Pool<T> {
    /// A pool that computes with `threads` threads, the caller's among them (at least one); whoever
    /// has its session has `own`.
    pub(crate) fn with(threads: usize, own: T) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stretches: (0..threads.max(1))
                .map(|_| Stretch(AtomicU64::new(0)))
                .collect(),
            job: UnsafeCell::new(None),
            done: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            hot: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            places: (1..threads).map(|_| Place::new()).collect(),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
            session: Mutex::new(own),
        };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("kernel-{i}"))
                .spawn(move || shared.worker(i))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Wakes the workers and keeps them awake until the session is dropped. One at a time: a
    /// second caller waits. While sessions follow each other closely this is the only lock, and
    /// nobody but such a caller asks for it.
    pub(crate) fn session(&self) -> Turn<'_, T> {
        let own = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        if !self.workers.is_empty() {
            shared.hot.store(true, Ordering::SeqCst);
            if shared.asleep.load(Ordering::SeqCst) > 0 {
                // Who has counted itself but does not wait yet holds this.
                drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
                let _sent = apart(&shared.places);
                shared.wake.notify_all();
            }
        }
        Turn {
            session: Session { shared },
            own,
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        let sleep = self
            .shared
            .sleep
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(sleep);
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            // A worker's panic was already handed to the caller of `run`.
            let _ = w.join();
        }
    }
}

/// A session, and what belongs to whoever has it.
pub(crate) struct Turn<'a, T> {
    // Ends before the next may begin.
    session: Session<'a>,
    own: MutexGuard<'a, T>,
}

impl<'a, T> Turn<'a, T> {
    /// Both.
    pub(crate) fn parts(&mut self) -> (&Session<'a>, &mut T) {
        (&self.session, &mut self.own)
    }
}

impl<'a, T> Deref for Turn<'a, T> {
    type Target = Session<'a>;

    fn deref(&self) -> &Session<'a> {
        &self.session
    }
}

/// The right to run jobs.
pub(crate) struct Session<'a> {
    shared: &'a Shared,
}

impl Session<'_> {
    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.shared.stretches.len()
    }

    /// Calls `f(item)` once for each item in `0..items`, on all threads.
    pub(crate) fn run(&self, items: usize, f: &(dyn Fn(usize) + Sync)) {
        if items <= 1 || self.threads() == 1 || items > MAX_ITEMS {
            (0..items).for_each(f);
            return;
        }
        let shared = self.shared;
        // SAFETY: only the lifetime changes; this function returns after the last item is done.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        shared.done.store(0, Ordering::Relaxed);
        // SAFETY: this thread holds the session and every item of the last job is done, so
        // nobody reads the cell.
        unsafe { *shared.job.get() = Some(job) };
        let epoch = (shared.stretches[0].0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        let threads = shared.stretches.len();
        for (t, stretch) in shared.stretches.iter().enumerate() {
            let (next, end) = (t * items / threads, (t + 1) * items / threads);
            let word = epoch << 32 | (next as u64) << 16 | end as u64;
            stretch.0.store(word, Ordering::Release);
        }
        shared.work(0);
        let mut idle = 0;
        while shared.done.load(Ordering::Acquire) < items {
            relax(&mut idle);
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a kernel panicked"));
        }
    }

    /// The length of ranges, at least `grain`, that split `0..n` into about `parts` per thread.
    pub(crate) fn share(&self, n: usize, grain: usize, parts: usize) -> usize {
        let per = n
            .div_ceil(self.threads() * parts)
            .max(grain.max(1))
            .max(n.div_ceil(MAX_ITEMS / 2));
        // Kernels take up to 16 weight rows at a time.
        if per > 4 {
            per.next_multiple_of(16)
        } else {
            per
        }
    }

    /// Splits `0..n` into ranges of at least `grain`, a few per thread, and calls `f` on each.
    pub(crate) fn ranges(
        &self,
        n: usize,
        grain: usize,
        f: &(dyn Fn(std::ops::Range<usize>) + Sync),
    ) {
        // Six items per thread even out a core that is busy with something else.
        let per = self.share(n, grain, 6);
        self.run(n.div_ceil(per), &|i| f(i * per..((i + 1) * per).min(n)));
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.shared.hot.store(false, Ordering::Release);
    }
}

#[cfg(test)]
impl Pool {
    /// A pool with nothing of its own.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        Self::with(threads, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..200 {
                let s = pool.session();
                for n in [0, 1, 2, 7, 100 + round] {
                    let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                    s.run(n, &|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    /// A thread that stays away leaves all but the item it is at to the others.
    #[test]
    fn what_a_slow_thread_has_left_is_taken() {
        let pool = Pool::new(2).unwrap();
        let s = pool.session();
        let (slow, done) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
        let taken = AtomicUsize::new(0);
        s.run(40, &|i| {
            let first = slow.compare_exchange(usize::MAX, i, Ordering::Relaxed, Ordering::Relaxed);
            if first.is_ok() {
                // All others are somebody else's.
                let start = std::time::Instant::now();
                while done.load(Ordering::Acquire) < 39 && start.elapsed().as_secs() < 20 {
                    std::thread::yield_now();
                }
                taken.store(done.load(Ordering::Acquire), Ordering::Relaxed);
            }
            done.fetch_add(1, Ordering::Release);
        });
        assert_eq!((taken.into_inner(), done.into_inner()), (39, 40));
    }

    #[test]
    fn ranges_cover_everything_once() {
        let pool = Pool::new(3).unwrap();
        let s = pool.session();
        for (n, grain) in [(1, 8), (100, 8), (200_000, 1), (7, 0)] {
            let sum = AtomicUsize::new(0);
            s.ranges(n, grain, &|r| {
                sum.fetch_add(r.map(|i| i + 1).sum(), Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), n * (n + 1) / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let s = pool.session();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            s.run(50, &|i| assert!(i != 33));
        }));
        assert!(caught.is_err());
        let n = AtomicUsize::new(0);
        s.run(50, &|_| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n.into_inner(), 50);
    }
}
