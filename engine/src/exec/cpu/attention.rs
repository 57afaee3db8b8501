//! Causal attention over the cache.

use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::forward::sized;
use super::isa::Isa;
use super::matmul::Out;
use super::pool::Session;

/// Rows from which tiles pay.
const FEW: usize = 4;
/// Positions of a tile.
const TILE: usize = 64;
/// Scores that an item keeps: what the second-level cache holds beside a tile.
const SCORES: usize = 1 << 16;

/// Which parts of a buffer are in use: at most one a thread, and 64.
struct Slots {
    free: AtomicU64,
}

impl Slots {
    fn new(n: usize) -> Self {
        Self {
            free: AtomicU64::new(u64::MAX >> (64 - n.clamp(1, 64))),
        }
    }

    /// A free slot. There are as many as threads that ask, so the wait is for one that is just
    /// being given back, if any.
    fn take(&self) -> Slot<'_> {
        loop {
            let free = self.free.load(Ordering::Acquire);
            if free == 0 {
                std::hint::spin_loop();
                continue;
            }
            let slot = free.trailing_zeros() as usize;
            let bit = 1 << slot;
            if self.free.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                return Slot { slots: self, slot };
            }
        }
    }
}

/// A slot in use, given back when dropped.
struct Slot<'a> {
    slots: &'a Slots,
    slot: usize,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.free.fetch_or(1 << self.slot, Ordering::Release);
    }
}

/// Causal attention of `n` rows that stand at `start..start + n`.
pub(super) struct Attention<'a> {
    pub(super) isa: Isa,
    pub(super) n: usize,
    pub(super) start: usize,
    pub(super) n_head: usize,
    /// Query heads per key head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) kv_width: usize,
    pub(super) q: &'a [f32],
    pub(super) keys: &'a [f16],
    pub(super) values: &'a [f16],
}

impl Attention<'_> {
    /// Writes head after head, row after row, to `mixed`. Which way it goes does not show.
    pub(super) fn run(&self, session: &Session<'_>, mixed: &mut [f32], scores: &mut Vec<f32>) {
        if self.n >= FEW {
            self.tiles(session, mixed, scores);
        } else {
            self.strips(session, mixed, scores);
        }
    }

    /// Many rows: keys and values become floats a tile at a time, for some rows and all heads that
    /// share them. The scores of these rows are kept, never those of all.
    fn tiles(&self, session: &Session<'_>, mixed: &mut [f32], scores: &mut Vec<f32>) {
        let (dim, width) = (self.head_dim, self.n_head * self.head_dim);
        let stride = mixed.len() / self.n.max(1);
        let scale = 1.0 / (dim as f32).sqrt();
        let len = self.start + self.n;
        // Rows that share a tile: as many as keep their scores within a bound, and enough items
        // for all threads.
        let shared = SCORES / (self.group * len).max(1);
        let even = (self.n * self.n_head / self.group).div_ceil(4 * session.threads());
        let rows = shared.min(even).clamp(1, 32).min(self.n);
        let blocks = self.n.div_ceil(rows);
        let items = blocks * (self.n_head / self.group);
        let per_item = rows * self.group * len + TILE * dim;
        let slots = session.threads().min(items).max(1);
        let buffer = sized(scores, slots * per_item);
        let buffer = Out::new(buffer, per_item);
        let free = Slots::new(slots);
        let out = Out::new(mixed, stride);
        session.run(items, &|item| {
            let slot = free.take();
            // SAFETY: the slot was free and is this item's until it is dropped.
            let (scores, tile) = unsafe { buffer.slice(slot.slot, 0, per_item) }
                .split_at_mut(rows * self.group * len);
            // The last rows see most: they go first.
            let block = blocks - 1 - item / (self.n_head / self.group);
            let kv_head = item % (self.n_head / self.group);
            let block = block * rows..((block + 1) * rows).min(self.n);
            let at = kv_head * dim;
            let end = self.start + block.end;
            let heads = kv_head * self.group..(kv_head + 1) * self.group;
            let each = || {
                block
                    .clone()
                    .flat_map(|r| heads.clone().map(move |h| (r, h)))
            };
            for from in (0..end).step_by(TILE) {
                let n = TILE.min(end - from);
                self.floats(self.keys, from, n, at, tile);
                for ((r, h), s) in each().zip(scores.chunks_mut(len)) {
                    // Causal: row `r` sees positions up to its own.
                    let n = n.min((self.start + r + 1).saturating_sub(from));
                    let q = &self.q[r * width + h * dim..r * width + (h + 1) * dim];
                    let s = &mut s[from..from + n];
                    self.isa.scores_f32(q, tile, dim, scale, s);
                }
            }
            let mut sums = [0.0_f32; 1024];
            let mut more = Vec::new();
            let sums = if rows * self.group <= sums.len() {
                &mut sums[..]
            } else {
                more.resize(rows * self.group, 0.0);
                &mut more[..]
            };
            for (((r, h), s), sum) in each().zip(scores.chunks_mut(len)).zip(&mut *sums) {
                *sum = self.isa.softmax(&mut s[..=self.start + r]);
                for d in 0..dim {
                    // SAFETY: head `h` of row `r` belongs to this item alone.
                    unsafe { out.set(r, h * dim + d, 0.0) };
                }
            }
            for from in (0..end).step_by(TILE) {
                let n = TILE.min(end - from);
                self.floats(self.values, from, n, at, tile);
                for ((r, h), s) in each().zip(scores.chunks(len)) {
                    let n = n.min((self.start + r + 1).saturating_sub(from));
                    // SAFETY: head `h` of row `r` belongs to this item alone.
                    let o = unsafe { out.slice(r, h * dim, dim) };
                    self.isa.add_weighted_f32(&s[from..from + n], tile, dim, o);
                }
            }
            for ((r, h), sum) in each().zip(&*sums) {
                let inverse = 1.0 / sum;
                // SAFETY: head `h` of row `r` belongs to this item alone.
                let o = unsafe { out.slice(r, h * dim, dim) };
                for v in o {
                    *v *= inverse;
                }
            }
        });
    }

    /// `n` positions from `from` on of the head at `at`, as floats without gaps.
    fn floats(&self, kv: &[f16], from: usize, n: usize, at: usize, tile: &mut [f32]) {
        for (i, tile) in tile.chunks_mut(self.head_dim).take(n).enumerate() {
            let at = (from + i) * self.kv_width + at;
            kv[at..at + self.head_dim].convert_to_f32_slice(tile);
        }
    }

    /// Few rows: each head of each row for itself.
    fn strips(&self, session: &Session<'_>, mixed: &mut [f32], scores: &mut Vec<f32>) {
        let (dim, width) = (self.head_dim, self.n_head * self.head_dim);
        let stride = mixed.len() / self.n.max(1);
        let scale = 1.0 / (dim as f32).sqrt();
        let items = self.n * self.n_head;
        let per_item = self.start + self.n;
        // One strip of scores per range of items; ranges are never more than this.
        let strips = (session.threads() * 6).min(items).max(1);
        let per_strip = items.div_ceil(strips);
        let scores = sized(scores, strips * per_item);
        let scores = Out::new(scores, per_item);
        let out = Out::new(mixed, stride);
        session.run(items.div_ceil(per_strip), &|strip| {
            // SAFETY: strip `strip` of the buffer belongs to this item alone.
            let buffer = unsafe { scores.slice(strip, 0, per_item) };
            let mut head_out = [0.0_f32; 512];
            let mut large = Vec::new();
            let head_out = if dim <= head_out.len() {
                &mut head_out[..dim]
            } else {
                large.resize(dim, 0.0);
                &mut large[..]
            };
            for item in strip * per_strip..((strip + 1) * per_strip).min(items) {
                let (r, h) = (item / self.n_head, item % self.n_head);
                let len = self.start + r + 1;
                let q = &self.q[r * width + h * dim..r * width + (h + 1) * dim];
                let at = h / self.group * dim;
                let s = &mut buffer[..len];
                self.isa
                    .scores(q, &self.keys[at..], self.kv_width, scale, s);
                let sum = self.isa.softmax(s);
                self.isa
                    .weighted_sum(s, &self.values[at..], self.kv_width, head_out);
                let inverse = 1.0 / sum;
                for (d, v) in head_out.iter().enumerate() {
                    // SAFETY: head `h` of row `r` belongs to this item alone.
                    unsafe { out.set(r, h * dim + d, v * inverse) };
                }
            }
        });
    }
}
