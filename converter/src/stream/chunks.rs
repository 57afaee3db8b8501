//! Tensors in pieces, encoded by all cores, handed over in order.
//!
//! Only a window of pieces is in memory at a time: whoever takes the pieces sets the pace.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use formats::blocks::{BlockType, dequantize_row, quantize_row};

use super::StreamError;

/// Weights in a piece, unless one row has more.
const CHUNK_WEIGHTS: usize = 1 << 18;

/// A tensor of the source and what it becomes.
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    /// The file it comes from.
    pub(super) path: &'a Path,
    pub(super) data: &'a [u8],
    pub(super) row_len: usize,
    pub(super) rows: usize,
    pub(super) from: BlockType,
    pub(super) to: BlockType,
    pub(super) encode: bool,
}

impl Job<'_> {
    fn rows_per_chunk(&self) -> usize {
        (CHUNK_WEIGHTS / self.row_len.max(1)).clamp(1, self.rows.max(1))
    }
}

/// Rows of one job.
pub(super) struct Chunk {
    pub(super) job: usize,
    rows: Range<usize>,
    /// The bytes of the source that these rows are.
    pub(super) source: Range<usize>,
    /// Whether the job ends here.
    pub(super) last: bool,
}

/// Cuts jobs into pieces.
pub(super) fn cut(jobs: &[Job<'_>]) -> Result<Vec<Chunk>, StreamError> {
    let mut chunks = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let row_bytes = job.from.row_bytes(job.row_len);
        let row_bytes = row_bytes.ok_or(StreamError::Internal("a row of broken blocks"))?;
        if row_bytes.checked_mul(job.rows) != Some(job.data.len()) || job.rows == 0 {
            return Err(StreamError::Internal("a tensor of another size"));
        }
        let step = job.rows_per_chunk();
        for first in (0..job.rows).step_by(step) {
            let end = (first + step).min(job.rows);
            chunks.push(Chunk {
                job: index,
                rows: first..end,
                source: first * row_bytes..end * row_bytes,
                last: end == job.rows,
            });
        }
    }
    Ok(chunks)
}

/// What the workers and the taker share.
struct State {
    /// The next piece to be encoded.
    next: usize,
    /// Pieces taken.
    taken: usize,
    /// Encoded and not yet taken.
    ready: BTreeMap<usize, Result<Vec<u8>, StreamError>>,
    /// No more work: done, failed, or a worker died.
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Something is ready, or all is over.
    ready: Condvar,
    /// The window has moved, or all is over.
    room: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.ready.notify_all();
        self.room.notify_all();
    }
}

/// Stops everybody when a worker or the taker leaves by panic, so that nobody waits for it.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// Encodes `chunks` on `threads` threads and gives each to `take`, in order. A piece that is
/// copied comes as the source's bytes.
pub(super) fn run(
    jobs: &[Job<'_>],
    chunks: &[Chunk],
    threads: usize,
    mut take: impl FnMut(&Chunk, &[u8]) -> Result<(), StreamError>,
) -> Result<(), StreamError> {
    let encoded: Vec<usize> = (0..chunks.len())
        .filter(|i| jobs[chunks[*i].job].encode)
        .collect();
    let threads = threads.clamp(1, encoded.len().max(1));
    let window = threads * 4;
    let shared = Shared {
        state: Mutex::new(State {
            next: 0,
            taken: 0,
            ready: BTreeMap::new(),
            stop: false,
        }),
        ready: Condvar::new(),
        room: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let _alarm = Alarm(&shared);
        let mut workers = Vec::new();
        if !encoded.is_empty() {
            for _ in 0..threads {
                let (shared, encoded) = (&shared, &encoded);
                let body = move || work(jobs, chunks, encoded, shared, window);
                let worker = std::thread::Builder::new().spawn_scoped(scope, body);
                match worker {
                    Ok(w) => workers.push(w),
                    // Fewer than asked for will do.
                    Err(_) if !workers.is_empty() => break,
                    Err(e) => return Err(StreamError::Threads(e)),
                }
            }
        }
        let mut result = Ok(());
        let mut number = 0;
        for chunk in chunks {
            let job = &jobs[chunk.job];
            result = if job.encode {
                let bytes = collect(&shared, number);
                number += 1;
                bytes.and_then(|b| take(chunk, &b))
            } else {
                take(chunk, &job.data[chunk.source.clone()])
            };
            if result.is_err() {
                break;
            }
        }
        shared.stop();
        for worker in workers {
            // Joined by hand so that a panic becomes an error here instead of spreading.
            if worker.join().is_err() && result.is_ok() {
                result = Err(StreamError::Internal("a worker thread died"));
            }
        }
        result
    })
}

/// Waits for the `number`th encoded piece.
fn collect(shared: &Shared, number: usize) -> Result<Vec<u8>, StreamError> {
    let mut state = shared.lock();
    loop {
        if let Some(bytes) = state.ready.remove(&number) {
            state.taken = number + 1;
            shared.room.notify_all();
            return bytes;
        }
        if state.stop {
            return Err(StreamError::Internal("a worker thread died"));
        }
        state = shared
            .ready
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

fn work(jobs: &[Job<'_>], chunks: &[Chunk], encoded: &[usize], shared: &Shared, window: usize) {
    let _alarm = Alarm(shared);
    let mut floats = Vec::new();
    loop {
        let mut state = shared.lock();
        while !state.stop && state.next >= state.taken + window {
            state = shared
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let number = state.next;
        let Some(chunk) = encoded.get(number).filter(|_| !state.stop) else {
            return;
        };
        state.next += 1;
        drop(state);
        let chunk = &chunks[*chunk];
        let bytes = encode(&jobs[chunk.job], chunk, &mut floats);
        shared.lock().ready.insert(number, bytes);
        shared.ready.notify_one();
    }
}

fn encode(job: &Job<'_>, chunk: &Chunk, floats: &mut Vec<f32>) -> Result<Vec<u8>, StreamError> {
    let internal = |_| StreamError::Internal("a row of another size");
    let source = &job.data[chunk.source.clone()];
    let rows = chunk.rows.len();
    let from_bytes = source.len() / rows;
    let to_bytes = job.to.row_bytes(job.row_len);
    let to_bytes = to_bytes.ok_or(StreamError::Internal("a row of broken blocks"))?;
    floats.resize(job.row_len, 0.0);
    let mut out = vec![0; rows * to_bytes];
    let pairs = source
        .chunks_exact(from_bytes)
        .zip(out.chunks_exact_mut(to_bytes));
    for (row, (from, to)) in chunk.rows.clone().zip(pairs) {
        dequantize_row(job.from, from, floats).map_err(internal)?;
        check(job, row, floats)?;
        quantize_row(job.to, floats, None, to).map_err(internal)?;
    }
    Ok(out)
}

/// Largest value that F16 holds without becoming infinite (its largest is 65504).
const F16_LIMIT: f32 = 65_520.0;

/// A value that the new type cannot hold would spoil its whole block in silence.
fn check(job: &Job<'_>, row: usize, values: &[f32]) -> Result<(), StreamError> {
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(StreamError::NotFinite {
            path: job.path.to_owned(),
            tensor: job.name.to_owned(),
            row,
            value: *bad,
        });
    }
    if job.to == BlockType::F16
        && let Some(bad) = values.iter().find(|v| v.abs() >= F16_LIMIT)
    {
        return Err(StreamError::TooLarge {
            path: job.path.to_owned(),
            tensor: job.name.to_owned(),
            row,
            value: *bad,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A taker that dies must not leave the workers waiting for room.
    #[test]
    fn a_taker_that_panics_ends_the_run() {
        let (row_len, rows) = (256, 64 * 1024);
        let data = vec![0; row_len * rows * 2];
        let (done, ended) = std::sync::mpsc::channel();
        // Its own thread, so that a hang is a failure after a while and not a hang of the test.
        std::thread::spawn(move || {
            let jobs = [Job {
                name: "t",
                path: Path::new("m.gguf"),
                data: &data,
                row_len,
                rows,
                from: BlockType::F16,
                to: BlockType::Q8_0,
                encode: true,
            }];
            let chunks = cut(&jobs).unwrap();
            assert!(chunks.len() > 16, "more than the window holds");
            let run = std::panic::AssertUnwindSafe(|| {
                run(&jobs, &chunks, 2, |_, _| panic!("the taker dies"))
            });
            done.send(std::panic::catch_unwind(run).is_err()).unwrap();
        });
        let wait = std::time::Duration::from_secs(30);
        assert_eq!(ended.recv_timeout(wait), Ok(true));
    }
}
