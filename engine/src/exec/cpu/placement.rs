//! Which processor a worker wakes up on.
//!
//! In a virtual machine a processor that has slept for a while counts as taken away by the host, and
//! the system does not look at it when it wakes a thread. Workers are then woken on the processor of
//! whoever wakes them and wait there, for milliseconds, until the load is balanced: after each pause
//! for the network a token was computed by one thread alone. So whoever wakes the workers keeps them off
//! its own processor and each other's while they are woken; afterwards they may go where they like.

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
            self.thread.store(gettid().as_raw_pid(), Ordering::Relaxed);
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

    /// Keeps sleeping workers off the caller's processor, and gives those that would meet there or on
    /// each other's last one a processor of their own. To be dropped when they have been woken. Where the
    /// system forbids it, or there are not enough processors, they stay.
    pub(in super::super) fn apart(places: &[Place]) -> Sent {
        match sched_getaffinity(None) {
            Ok(allowed) => send(places, sched_getcpu(), allowed),
            Err(_) => Sent {
                allowed: CpuSet::new(),
                threads: ArrayVec::new(),
            },
        }
    }

    /// [`apart`] for a caller on the processor `here` that may run on those `allowed`.
    pub(in super::super) fn send(places: &[Place], here: usize, allowed: CpuSet) -> Sent {
        let mut sent = Sent {
            allowed,
            threads: ArrayVec::new(),
        };
        let mut others = allowed;
        if here < CpuSet::MAX_CPU {
            others.unset(here);
        }
        let asleep = || places.iter().filter_map(Place::asleep).take(MOST);
        // Who can stays where it was, or goes where the system finds it better.
        let mut free = others;
        let mut stay = ArrayVec::<bool, MOST>::new();
        for (_, last) in asleep() {
            stay.push(free.is_set(last));
            free.unset(last);
        }
        let mut next = here + 1;
        for ((thread, _), stays) in asleep().zip(stay) {
            let places = if stays {
                others
            } else {
                let ring = (next..CpuSet::MAX_CPU).chain(0..next.min(CpuSet::MAX_CPU));
                let Some(found) = ring.into_iter().find(|p| free.is_set(*p)) else {
                    continue;
                };
                free.unset(found);
                next = found + 1;
                let mut only = CpuSet::new();
                only.set(found);
                only
            };
            if sched_setaffinity(Some(thread), &places).is_ok() {
                // There is room for as many as have been looked at; a worker that begins to sleep only now is
                // none of them.
                let _ = sent.threads.try_push(thread);
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

    /// Threads that have been sent somewhere: none.
    #[derive(Debug)]
    pub(in super::super) struct Sent;

    #[allow(clippy::unused_self)] // as on Linux
    impl Place {
        pub(in super::super) const fn new() -> Self {
            Self
        }

        pub(in super::super) fn sleeps(&self) {}

        pub(in super::super) fn wakes(&self) {}
    }

    /// Sends nobody.
    pub(in super::super) fn apart(_: &[Place]) -> Sent {
        Sent
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::Barrier;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    use super::linux::send;
    use super::*;

    /// Whoever sleeps where the caller runs is sent elsewhere, and may run everywhere afterwards.
    #[test]
    fn whoever_sleeps_here_wakes_elsewhere() {
        let all = sched_getaffinity(None).unwrap();
        let here = (0..CpuSet::MAX_CPU).find(|p| all.is_set(*p)).unwrap();
        if all.count() == 1 {
            return; // Nowhere to go.
        }
        let mut only = CpuSet::new();
        only.set(here);
        let place = Place::new();
        let places = std::slice::from_ref(&place);
        assert!(send(places, here, all).threads.is_empty(), "it is awake");
        let [asleep, sent, back] = [(); 3].map(|()| Barrier::new(2));
        std::thread::scope(|s| {
            let sleeper = s.spawn(|| {
                sched_setaffinity(None, &only).unwrap();
                place.sleeps();
                asleep.wait();
                sent.wait();
                let away = (sched_getcpu(), sched_getaffinity(None).unwrap());
                back.wait();
                back.wait();
                (away, sched_getaffinity(None).unwrap())
            });
            asleep.wait();
            let moved = send(places, here, all);
            let n = moved.threads.len();
            sent.wait();
            back.wait();
            drop(moved);
            back.wait();
            let ((away, allowed), afterwards) = sleeper.join().unwrap();
            assert_eq!(n, 1);
            assert!(away != here && allowed.is_set(away) && !allowed.is_set(here));
            assert_eq!(afterwards, all);
        });
    }

    /// Two that slept on one processor do not meet there again.
    #[test]
    fn two_do_not_meet() {
        let all = sched_getaffinity(None).unwrap();
        let mut some = (0..CpuSet::MAX_CPU).filter(|p| all.is_set(*p));
        let (Some(first), Some(second)) = (some.next(), some.next()) else {
            return;
        };
        // The caller is on none of them: both processors are free.
        let elsewhere = CpuSet::MAX_CPU - 1;
        let mut only = CpuSet::new();
        only.set(first);
        let mut two = only;
        two.set(second);
        let places = [Place::new(), Place::new()];
        let [asleep, sent] = [(); 2].map(|()| Barrier::new(3));
        std::thread::scope(|s| {
            let sleepers = [0, 1].map(|i| {
                let (places, asleep, sent, only) = (&places, &asleep, &sent, &only);
                s.spawn(move || {
                    sched_setaffinity(None, only).unwrap();
                    places[i].sleeps();
                    asleep.wait();
                    sent.wait();
                    sched_getaffinity(None).unwrap()
                })
            });
            asleep.wait();
            let moved = send(&places, elsewhere, two);
            sent.wait();
            let [a, b] = sleepers.map(|t| t.join().unwrap());
            drop(moved);
            // The first may stay, the second has the other one.
            assert_eq!(a, two);
            assert!(b.is_set(second) && !b.is_set(first));
        });
    }
}
