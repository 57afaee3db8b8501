//! The machine: its name, its memory, and whether others use it.
//!
//! What is read from `/proc` is missing on other systems; a profile says so.

use std::time::Instant;

/// Processor time of others, as a share of the machine, from which figures are not trusted.
const LOADED: f64 = 0.05;
/// A number of the system's clock ticks in a second (`USER_HZ`, 100 on every Linux).
const TICKS: f64 = 100.0;

/// The processor and its number of threads.
pub(super) fn name() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{model}, {cores} threads, {}", std::env::consts::OS)
}

/// The program: name, version, how it was built.
pub(super) fn build() -> String {
    let profile = if cfg!(debug_assertions) {
        "with debug assertions"
    } else {
        "release"
    };
    format!(
        "splitrun {} ({profile}, {})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    )
}

/// A number of kilobytes under `key` in a file of `/proc`, in bytes.
fn kilobytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    let number: u64 = line
        .trim_start_matches(':')
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    number.checked_mul(1024)
}

/// Memory of the machine.
pub fn memory_bytes() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemTotal")
}

/// Resident memory of this process.
pub fn resident_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmRSS")
}

/// Processor time, in seconds: of the whole machine (busy), and of this process.
fn processor_seconds() -> Option<(f64, f64)> {
    let all = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<f64> = all
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let at = |i: usize| fields.get(i).copied().unwrap_or(0.0);
    let busy = at(0) + at(1) + at(2) + at(5) + at(6) + at(7);
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold spaces; what follows its bracket does not.
    let own: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| own.get(i)?.parse::<f64>().ok();
    Some((busy / TICKS, (ticks(11)? + ticks(12)?) / TICKS))
}

/// Watches what others take of the machine.
pub(super) struct Watch {
    start: Instant,
    before: Option<(f64, f64)>,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self {
            start: Instant::now(),
            before: processor_seconds(),
        }
    }

    /// Whether others took so much that figures are not to be trusted, and what to say of it.
    pub(super) fn others(&self) -> (bool, Option<String>) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let wall = self.start.elapsed().as_secs_f64() * cores;
        let (Some(before), Some(after)) = (self.before, processor_seconds()) else {
            let note = "whether the machine did other work is not known on this system";
            return (false, Some(note.to_owned()));
        };
        let others = ((after.0 - before.0) - (after.1 - before.1)).max(0.0) / wall.max(1e-9);
        let loaded = others > LOADED;
        let note = loaded.then(|| {
            format!(
                "other work took {:.0} % of the machine meanwhile: measure again when it is quiet",
                others * 100.0
            )
        });
        (loaded, note)
    }
}

/// What the memory delivers to `threads` readers, in 10⁹ bytes a second: the best of a few runs
/// over more than caches hold.
pub(super) fn read_gb_per_s(threads: usize) -> f64 {
    const BYTES: usize = 256 << 20;
    const RUNS: usize = 5;
    let data = vec![1_u64; BYTES / 8];
    let per = data.len().div_ceil(threads.max(1));
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        let start = Instant::now();
        std::thread::scope(|s| {
            for share in data.chunks(per) {
                s.spawn(move || {
                    let mut sums = [0_u64; 32];
                    for chunk in share.as_chunks::<32>().0 {
                        for (sum, v) in sums.iter_mut().zip(chunk) {
                            *sum = sum.wrapping_add(*v);
                        }
                    }
                    std::hint::black_box(sums);
                });
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    BYTES as f64 / best / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_work_is_noticed() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        // A machine on which others used all but ten seconds of a processor's time.
        let watch = Watch {
            start: Instant::now(),
            before: processor_seconds().map(|(all, own)| (all - 10.0 * cores, own)),
        };
        std::thread::sleep(std::time::Duration::from_millis(20));
        if watch.before.is_some() {
            let (loaded, note) = watch.others();
            assert!(loaded && note.is_some_and(|n| n.contains("other work")));
        }
    }

    #[test]
    fn memory_has_a_size_and_a_speed() {
        assert!(read_gb_per_s(1) > 0.01);
        if cfg!(target_os = "linux") {
            let (all, own) = (memory_bytes().unwrap(), resident_bytes().unwrap());
            assert!(own > 1 << 16 && own < all);
        }
        assert!(name().contains("threads"));
    }
}
