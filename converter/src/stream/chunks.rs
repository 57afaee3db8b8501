//! Tensors in pieces. Whoever takes a piece does all of it: reads, decodes, encodes, hashes and
//! writes it to its place. No piece waits for another, no byte passes through one thread alone,
//! and a thread holds one piece in memory, whatever the size of the model.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use formats::blocks::{BlockType, Effort, dequantize_row, quantize_row};
use formats::pair::Digest;

use super::StreamError;
use super::tree::{self, Tree};
use crate::at;
use crate::importance::Weighing;
use crate::source::Rows;

/// Weights in a piece, unless one row has more. In all its forms it fits a core's own cache.
const CHUNK_WEIGHTS: usize = 1 << 18;

/// A tensor of the source and what it becomes.
pub(super) struct Job<'a> {
    /// Its place in the plan.
    pub(super) index: usize,
    pub(super) name: &'a str,
    pub(super) data: Rows<'a>,
    pub(super) row_len: usize,
    pub(super) rows: usize,
    pub(super) from: BlockType,
    pub(super) to: BlockType,
    pub(super) encode: bool,
    /// The file it goes to, and its name for errors.
    pub(super) file: &'a File,
    pub(super) file_path: &'a Path,
    /// Its first byte there, and how many they are.
    pub(super) start: u64,
    pub(super) bytes: usize,
    pub(super) effort: Effort,
    /// What an error in a weight costs.
    pub(super) weighing: &'a Weighing,
}

impl Job<'_> {
    fn rows_per_chunk(&self) -> usize {
        (CHUNK_WEIGHTS / self.row_len.max(1)).clamp(1, self.rows.max(1))
    }

    fn source_row_bytes(&self) -> usize {
        self.data.len() / self.rows
    }

    fn row_bytes(&self) -> usize {
        self.bytes / self.rows
    }
}

/// Rows of one job.
pub(super) struct Chunk {
    /// Its place in the list of jobs.
    job: usize,
    rows: Range<usize>,
}

/// Cuts jobs into pieces.
pub(super) fn cut(jobs: &[Job<'_>]) -> Result<Vec<Chunk>, StreamError> {
    let mut chunks = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let size = |ty: BlockType| ty.row_bytes(job.row_len)?.checked_mul(job.rows);
        if job.rows == 0
            || size(job.from) != Some(job.data.len())
            || size(job.to) != Some(job.bytes)
            || (!job.encode && job.from != job.to)
        {
            return Err(StreamError::Internal("a tensor of another size"));
        }
        let step = job.rows_per_chunk();
        for first in (0..job.rows).step_by(step) {
            chunks.push(Chunk {
                job: index,
                rows: first..(first + step).min(job.rows),
            });
        }
    }
    Ok(chunks)
}

/// A piece that is in its place.
pub(super) struct Step {
    /// The tensor's place in the plan.
    pub(super) tensor: usize,
    /// Bytes read.
    pub(super) read: u64,
    /// Bytes written.
    pub(super) written: u64,
    /// What it took.
    pub(super) time: Duration,
    /// The digests of the tensor in the source and in the half, with its last piece.
    pub(super) done: Option<[Digest; 2]>,
}

/// What a thread works with; grows to one piece.
#[derive(Default)]
pub(super) struct Scratch {
    source: Vec<u8>,
    floats: Vec<f32>,
    out: Vec<u8>,
}

/// What is known of a tensor that is being worked on.
struct Sums {
    source: Tree,
    /// `None` when it is copied: then both are the same.
    written: Option<Tree>,
    /// Rows that are not in their place yet.
    left: usize,
}

/// The state of all jobs.
pub(super) struct Work<'a> {
    jobs: &'a [Job<'a>],
    chunks: Vec<Chunk>,
    /// Made with a tensor's first piece, gone with its last.
    sums: Vec<Mutex<Option<Sums>>>,
}

impl<'a> Work<'a> {
    pub(super) fn new(jobs: &'a [Job<'a>]) -> Result<Self, StreamError> {
        Ok(Self {
            jobs,
            chunks: cut(jobs)?,
            sums: jobs.iter().map(|_| Mutex::default()).collect(),
        })
    }

    /// How many pieces there are.
    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Does the piece `number`.
    pub(super) fn step(&self, own: &mut Scratch, number: usize) -> Result<Step, StreamError> {
        let begun = Instant::now();
        let chunk = &self.chunks[number];
        let (job, rows) = (&self.jobs[chunk.job], &chunk.rows);
        let Scratch {
            source,
            floats,
            out,
        } = own;
        let read = job.data.read(rows.clone(), source);
        read.map_err(|e| StreamError::Read {
            path: job.data.path().to_owned(),
            tensor: job.name.to_owned(),
            source: e,
        })?;
        let read = tree::part(job.data.len(), rows.start * job.source_row_bytes(), source);
        let at = rows.start * job.row_bytes();
        let (bytes, wrote): (&[u8], _) = if job.encode {
            out.resize(rows.len() * job.row_bytes(), 0);
            encode(job, rows.clone(), source, floats, out)?;
            (out, Some(tree::part(job.bytes, at, out)))
        } else {
            (source, None)
        };
        at::write(job.file, bytes, job.start + at as u64)
            .map_err(|e| StreamError::write(job.file_path, e.into()))?;
        let done = self.add(chunk, &read, wrote.as_ref());
        Ok(Step {
            tensor: job.index,
            read: source.len() as u64,
            written: bytes.len() as u64,
            time: begun.elapsed(),
            done,
        })
    }

    /// Notes what is known of a piece; the digests when it was the last one.
    fn add(
        &self,
        chunk: &Chunk,
        read: &tree::Part<'_>,
        wrote: Option<&tree::Part<'_>>,
    ) -> Option<[Digest; 2]> {
        let job = &self.jobs[chunk.job];
        let mut slot = self.sums[chunk.job]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let sums = slot.get_or_insert_with(|| Sums {
            source: Tree::new(job.data.len()),
            written: wrote.map(|_| Tree::new(job.bytes)),
            left: job.rows,
        });
        sums.source.add(read);
        if let (Some(tree), Some(part)) = (&mut sums.written, wrote) {
            tree.add(part);
        }
        sums.left -= chunk.rows.len();
        if sums.left > 0 {
            return None;
        }
        let sums = slot.take()?;
        let source = sums.source.digest()?;
        let written = match sums.written {
            Some(tree) => tree.digest()?,
            None => source,
        };
        Some([source, written])
    }
}

/// Encodes `rows`, whose bytes in the source are `source`, into `out`.
fn encode(
    job: &Job<'_>,
    rows: Range<usize>,
    source: &[u8],
    floats: &mut Vec<f32>,
    out: &mut [u8],
) -> Result<(), StreamError> {
    let internal = |_| StreamError::Internal("a row of another size");
    floats.resize(job.row_len, 0.0);
    let mut weights = Vec::new();
    let pairs = source
        .chunks_exact(job.source_row_bytes())
        .zip(out.chunks_exact_mut(job.row_bytes()));
    for (row, (from, to)) in rows.zip(pairs) {
        dequantize_row(job.from, from, floats).map_err(internal)?;
        check(job, row, floats)?;
        let weights = job.weighing.of(floats, &mut weights);
        quantize_row(job.to, floats, weights, job.effort, to).map_err(internal)?;
    }
    Ok(())
}

/// Largest value that F16 holds without becoming infinite (its largest is 65504).
const F16_LIMIT: f32 = 65_520.0;

/// What no value may reach that is to become `ty`.
fn limit(ty: BlockType) -> f32 {
    match ty {
        // A half float itself, as are the lowest value of the last two and ±1 times the scale.
        BlockType::F16
        | BlockType::TQ1_0
        | BlockType::TQ2_0
        | BlockType::Q4_1
        | BlockType::Q5_1 => F16_LIMIT,
        BlockType::F32 | BlockType::BF16 | BlockType::MXFP4 => f32::INFINITY,
        // A half float times a code; the smallest range of codes, Q4_0's, ends at 8.
        _ => 8.0 * 65_504.0,
    }
}

/// A value that the new type cannot hold would spoil its whole block in silence.
fn check(job: &Job<'_>, row: usize, values: &[f32]) -> Result<(), StreamError> {
    // One look at all of them that a compiler turns into vector code; the exact one comes after.
    let limit = limit(job.to);
    if values.iter().fold(true, |fine, v| fine & (v.abs() < limit)) {
        return Ok(());
    }
    let (path, tensor) = (job.data.path().to_owned(), job.name.to_owned());
    if let Some(value) = values.iter().copied().find(|v| !v.is_finite()) {
        return Err(StreamError::NotFinite {
            path,
            tensor,
            row,
            value,
        });
    }
    match values.iter().copied().find(|v| v.abs() >= limit) {
        Some(value) => Err(StreamError::TooLarge {
            path,
            tensor,
            row,
            value,
            to: job.to,
        }),
        None => Ok(()),
    }
}
