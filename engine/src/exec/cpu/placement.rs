//! Which processor a worker wakes up on.
//!
//! In a virtual machine a processor that has slept for a while counts as taken away by the host, and
//! the system does not look at it when it wakes a thread. Workers are then woken on the processor of
//! whoever wakes them and wait there, for milliseconds, until the load is balanced: after each pause
//! for the network a token was computed by one thread alone. So whoever wakes the workers sends each
//! to a processor of its own, which it may leave again as soon as it is awake.

#[cfg(target_os = "linux")]
pub(super) use linux::{Place, apart};

#[cfg(not(target_os = "linux"))]
pub(super) use elsewhere::{Place, apart};

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

    use arrayvec::ArrayVec;
    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// Of a thread that does not sleep.
    const AWAKE: usize = usize::MAX;
    /// Threads that are sent elsewhere at one time, at most.
    const MOST: usize = 32;

    /// Where a worker sleeps.
    #[derive(Debug)]
    pub(in super::super) struct Place {
        thread: AtomicI32,
        processor: AtomicUsize,
    }

    impl Place {
        /// Of a worker that is awake.
        pub(in super::super) const fn new() -> Self {
            Self {
                thread: AtomicI32::new(0),
                processor: AtomicUsize::new(AWAKE),
            }
        }

        /// The calling thread is about to sleep.
        pub(in super::super) fn sleeps(&self) {
            self.thread
                .store(gettid().as_raw_pid(), Ordering::Relaxed);
            self.processor.store(sched_getcpu(), Ordering::Release);
        }

        /// The calling thread is awake again.
        pub(in super::super) fn wakes(&self) {
            self.processor.store(AWAKE, Ordering::Release);
        }

        fn asleep(&self) -> Option<(Pid, usize)> {
            let processor = self.processor.load(Ordering::Acquire);
            let thread = Pid::from_raw(self.thread.load(Ordering::Relaxed))?;
            (processor < CpuSet::MAX_CPU).then_some((thread, processor))
        }
    }

    /// Threads that have been sent somewhere. When it is dropped they may run wherever the thread may that
    /// sent them, and stay where they are until the system finds a better place.
    #[derive(Debug)]
    pub(in super::super) struct Sent {
        allowed: CpuSet,
        pub(in super::super) threads: ArrayVec<Pid, MOST>,
    }

    impl Drop for Sent {
        fn drop(&mut self) {
            for thread in &self.threads {
                // One that has ended needs none.
                let _ = sched_setaffinity(Some(*thread), &self.allowed);
            }
        }
    }

    /// Sends sleeping workers each to a processor of its own, other than the caller's: to that on which it ran
    /// last if it can. To be dropped when they have been woken. Where the system forbids it, or there
    /// are not enough processors, they stay.
    pub(in super::super) fn apart(places: &[Place]) -> Sent {
        let mut sent = Sent {
            allowed: CpuSet::new(),
            threads: ArrayVec::new(),
        };
        let here = sched_getcpu();
        let Ok(mut free) = sched_getaffinity(None) else {
            return sent;
        };
        sent.allowed = free;
        if here < CpuSet::MAX_CPU {
            free.unset(here);
        }
        let mut next = 0;
        for (thread, last) in places.iter().filter_map(Place::asleep).take(MOST) {
            let found = if free.is_set(last) {
                Some(last)
            } else {
                (next..CpuSet::MAX_CPU).find(|p| free.is_set(*p))
            };
            let Some(found) = found else {
                break;
            };
            if found != last {
                next = found;
            }
            free.unset(found);
            let mut only = CpuSet::new();
            only.set(found);
            if sched_setaffinity(Some(thread), &only).is_ok() {
                // It takes as many as have been looked at.
                sent.threads.push(thread);
            }
        }
        sent
    }
}

/// Other systems place threads themselves.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    /// Where a worker sleeps.
    #[derive(Debug)]
    pub(in super::super) struct Place;

    impl Place {
        pub(in super::super) const fn new() -> Self {
            Self
        }

        pub(in super::super) fn sleeps(&self) {}

        pub(in super::super) fn wakes(&self) {}
    }

    /// Nothing.
    pub(in super::super) fn apart(_: &[Place]) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::Barrier;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    use super::*;

    /// Whoever sleeps where the caller runs is sent elsewhere, and may run everywhere afterwards.
    #[test]
    fn whoever_sleeps_here_wakes_elsewhere() {
        let all = sched_getaffinity(None).unwrap();
        let Some(other) = (0..CpuSet::MAX_CPU).find(|p| all.is_set(*p)) else {
            unreachable!("this thread runs somewhere");
        };
        if all.count() == 1 {
            return; // Nowhere to go.
        }
        let mut only = CpuSet::new();
        only.set(other);
        let place = Place::new();
        assert!(apart(std::slice::from_ref(&place)).threads.is_empty());
        let (asleep, sent) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|s| {
            let sleeper = s.spawn(|| {
                sched_setaffinity(None, &only).unwrap();
                place.sleeps();
                asleep.wait();
                sent.wait();
                let away = sched_getcpu();
                place.wakes();
                away
            });
            asleep.wait();
            // The caller may run everywhere, and is on the sleeper's processor for now.
            while sched_getcpu() != other {
                sched_setaffinity(None, &only).unwrap();
                sched_setaffinity(None, &all).unwrap();
            }
            let moved = apart(std::slice::from_ref(&place));
            let threads = moved.threads.clone();
            sent.wait();
            let away = sleeper.join().unwrap();
            assert_eq!(threads.len(), 1);
            assert_ne!(away, other);
        });
    }
}
