//! How fast this machine's threads read memory together.

use std::time::Instant;

use super::pool::Pool;

/// Bytes that are read: more than caches hold.
const BYTES: usize = 256 << 20;
/// What a thread reads at once.
const PIECE: usize = 1 << 20;
/// The best of so many counts: the rest were disturbed.
const RUNS: usize = 5;

/// GB (10⁹ bytes) a second that `pool`'s threads read in order; `None` without the memory for it. On Linux
/// from pages as large as those that weights lie in, if all goes well: from small ones it is a fifth less.
pub(super) fn read_gb_per_s<T>(pool: &Pool<T>) -> Option<f64> {
    let mut memory = memmap2::MmapMut::map_anon(BYTES).ok()?;
    #[cfg(target_os = "linux")]
    // Small pages will do.
    let _ = memory.advise(memmap2::Advice::HugePage);
    // Written, so that each page is its own.
    memory.fill(1);
    let words: &[u64] = bytemuck::cast_slice(&memory);
    let session = pool.session();
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        session.run(BYTES / PIECE, &|i| {
            let piece = &words[i * (PIECE / 8)..(i + 1) * (PIECE / 8)];
            let mut sums = [0_u64; 32];
            for words in piece.as_chunks::<32>().0 {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            std::hint::black_box(sums);
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    Some(BYTES as f64 / best / 1e9)
}
