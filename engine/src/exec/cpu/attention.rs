//! Causal attention over the cache.
//!
//! Positions are taken in *spans* of [`SPAN`] that begin at multiples of it, whoever asks. Of each
//! span a row and head get the largest score `m`, `l = Σ e^(s − m)` and `a = Σ e^(s − m)·v`, and
//! spans are joined in ascending order ([`Isa::join`]). So the spans of a long context can go to
//! many threads, scores are kept for one span only, and which way it went does not show.

use std::sync::atomic::{AtomicU64, Ordering};

use formats::model::{KV_BLOCK, KV_PAGE, KvType};

use super::forward::sized;
use super::integer::{CodeBlock, SPAN};
use super::isa::Isa;
use super::kv_floats::{Kept, Queries, Seen, TILE};
use super::matmul::Out;
use super::pool::Session;
use crate::cache::{KvShape, LayerKv, Side, columns, floats};

/// Rows from which an item takes rows and all their spans, not one span.
const FEW: usize = 4;
/// Rows and heads of an item, at most, unless one row has more heads.
const TOGETHER: usize = 96;

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

/// Buffers of attention, kept for the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Of items, a slot each.
    items: Vec<f32>,
    /// What spans came to.
    spans: Vec<f32>,
    /// Queries as codes.
    codes: Vec<CodeBlock>,
}

/// Causal attention of `n` rows that stand at `start..start + n`.
pub(super) struct Attention<'a> {
    pub(super) isa: Isa,
    /// Whether q8_0 and q4_0 are multiplied in whole numbers.
    pub(super) whole: bool,
    pub(super) n: usize,
    pub(super) start: usize,
    /// Query heads per key head.
    pub(super) group: usize,
    pub(super) q: &'a [f32],
    pub(super) kv: LayerKv<'a>,
}

/// Some rows, and the heads that share keys, of one item.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    rows: usize,
    kv_head: usize,
}

/// An item's buffers. Row after row, in a row head after head.
struct Buffers<'a> {
    scores: &'a mut [f32],
    sums: &'a mut [f32],
    /// Largest score and sum of weights, of this span.
    weights: &'a mut [f32],
    tile: &'a mut [f32],
}

impl Buffers<'_> {
    /// Scores of a span and weights, of each of `pairs` pairs.
    fn by_pair(&mut self, pairs: usize) -> impl Iterator<Item = (&mut [f32], &mut [f32])> {
        let each = self.scores.chunks_mut(SPAN).zip(self.weights.chunks_mut(2));
        each.take(pairs)
    }
}

impl Attention<'_> {
    /// Writes head after head, row after row, to `mixed`.
    pub(super) fn run(&self, session: &Session<'_>, mixed: &mut [f32], scratch: &mut Scratch) {
        let Scratch {
            items,
            spans,
            codes,
        } = scratch;
        if self.whole {
            self.encode(session, codes);
        }
        if self.n < FEW {
            self.by_spans(session, mixed, items, spans, codes);
        } else {
            self.by_rows(session, mixed, items, codes);
        }
    }

    fn shape(&self) -> KvShape {
        self.kv.shape()
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape().head_dim as f32).sqrt()
    }

    /// Scaled queries as codes: key head after key head, in it row after row, in a row the heads
    /// that share it.
    fn encode(&self, session: &Session<'_>, codes: &mut Vec<CodeBlock>) {
        let KvShape {
            heads, head_dim, ..
        } = self.shape();
        let (group, n) = (self.group, self.n);
        // Weights are powers of two.
        let scale = self.scale() * std::f32::consts::LOG2_E;
        let per_head = head_dim / KV_BLOCK;
        let per_row = group * per_head;
        let out = CodeBlock::shared(codes, heads * n * per_row);
        session.ranges(n, 8, &|range| {
            let mut x = [0.0; KV_BLOCK];
            for r in range {
                for (kv_head, q) in self.q[r * heads * group * head_dim..]
                    .chunks_exact(group * head_dim)
                    .take(heads)
                    .enumerate()
                {
                    let at = (kv_head * n + r) * per_row;
                    for (b, q) in q.as_chunks::<KV_BLOCK>().0.iter().enumerate() {
                        x.iter_mut().zip(q).for_each(|(x, q)| *x = q * scale);
                        self.isa.encode(&x, &mut |_, block| {
                            // SAFETY: row `r` belongs to this task alone, and each row has its
                            // own blocks.
                            unsafe { out.set(at + b, block) }
                        });
                    }
                }
            }
        });
    }

    /// Floats of a slot for `rows` rows.
    fn slot_len(&self, rows: usize) -> usize {
        let dim = self.shape().head_dim;
        rows * self.group * (SPAN + dim + 2) + TILE * dim
    }

    fn buffers<'b>(&self, rows: usize, slot: &'b mut [f32]) -> Buffers<'b> {
        let pairs = rows * self.group;
        let (scores, slot) = slot.split_at_mut(pairs * SPAN);
        let (sums, slot) = slot.split_at_mut(pairs * self.shape().head_dim);
        let (weights, tile) = slot.split_at_mut(2 * pairs);
        Buffers {
            scores,
            sums,
            weights,
            tile,
        }
    }

    /// One span, from position `from` on, of some rows that all see its first position. Leaves
    /// its sums and weights in `b`.
    ///
    /// Behind it the span of key head and position `then` will come.
    fn span(
        &self,
        some: Part,
        from: usize,
        then: (usize, usize),
        codes: &[CodeBlock],
        b: &mut Buffers<'_>,
    ) {
        let KvShape {
            heads,
            head_dim: dim,
            ..
        } = self.shape();
        let (group, isa) = (self.group, self.isa);
        let pairs = some.rows * group;
        let end = (self.start + some.first + some.rows).min(from + SPAN);
        let n = end - from;
        // Causal: a row sees positions up to its own.
        let seen = Seen::new(n, self.start + some.first + 1 - from, group);
        let (keys, values) = (self.kv.keys(some.kv_head), self.kv.values(some.kv_head));
        let row = self.shape().kv_type.bytes(dim);
        let place = |all: &[u8]| all.as_ptr().wrapping_add(then.1 * row);
        let next = [place(self.kv.keys(then.0)), place(self.kv.values(then.0))];
        if self.whole {
            let per_pair = dim / KV_BLOCK;
            let at = (some.kv_head * self.n + some.first) * group * per_pair;
            let q = &codes[at..at + pairs * per_pair];
            isa.kv_scores(self.shape(), keys, from, n, q, next[0], b.scores);
            for (pair, (s, w)) in b.by_pair(pairs).enumerate() {
                isa.ask(next[0], SPAN * row, pair, pairs);
                w.copy_from_slice(&isa.soften(s, seen.of(pair)));
            }
            let (weights, sums) = (&*b.scores, &mut b.sums[..pairs * dim]);
            let seen = |pair: usize| seen.of(pair);
            isa.kv_sums(self.shape(), values, from, n, &seen, weights, next, sums);
            return;
        }
        let q = Queries {
            q: &self.q[(some.first * heads + some.kv_head) * group * dim..],
            dim,
            group,
            stride: heads * group * dim,
            n: pairs,
        };
        let (scale, none) = (self.scale(), std::ptr::null());
        // While keys are multiplied the values are asked for, and with the values the next keys.
        let own = values.as_ptr().wrapping_add(from * row);
        // A few rows read what is kept as it is; for more it pays to make floats of it once.
        let direct = self.shape().kv_type == KvType::F16 && some.rows < FEW;
        if direct {
            let keys = Kept::Halves(&keys[from * row..]);
            isa.float_scores(&q, keys, seen, scale, own, b.scores);
        } else {
            for at in (0..n).step_by(TILE) {
                let n = TILE.min(n - at);
                self.key_tile(keys, from + at, n, b.tile);
                let (keys, seen) = (Kept::Tile(b.tile), seen.piece(at, n));
                isa.float_scores(&q, keys, seen, scale, none, &mut b.scores[at..]);
            }
        }
        for (pair, (s, w)) in b.by_pair(pairs).enumerate() {
            let (most, sum) = isa.softmax(&mut s[..seen.of(pair)]);
            w.copy_from_slice(&[most, sum]);
        }
        let (shape, sums) = ((pairs, dim), &mut b.sums[..pairs * dim]);
        sums.fill(0.0);
        if direct {
            let values = Kept::Halves(&values[from * row..]);
            isa.float_sums(b.scores, values, shape, seen, next[0], sums);
            return;
        }
        for at in (0..n).step_by(TILE) {
            let n = TILE.min(n - at);
            floats(values, self.shape(), Side::Values, from + at, n, b.tile);
            let (values, seen) = (Kept::Tile(b.tile), seen.piece(at, n));
            isa.float_sums(&b.scores[at..], values, shape, seen, none, sums);
        }
    }

    /// Keys of `n` positions from `from` on, which begins a page, as a tile.
    fn key_tile(&self, keys: &[u8], from: usize, n: usize, tile: &mut [f32]) {
        let KvShape {
            kv_type, head_dim, ..
        } = self.shape();
        if kv_type == KvType::F16 {
            let keys = &keys[from * kv_type.bytes(head_dim)..];
            let n = n.next_multiple_of(KV_PAGE);
            self.isa.key_tile(keys, n, head_dim, tile);
        } else {
            columns(keys, self.shape(), from, n, TILE, tile);
        }
    }

    /// Many rows: an item has some of them, and goes through all their spans.
    fn by_rows(
        &self,
        session: &Session<'_>,
        mixed: &mut [f32],
        items: &mut Vec<f32>,
        codes: &[CodeBlock],
    ) {
        let KvShape {
            heads,
            head_dim: dim,
            ..
        } = self.shape();
        let group = self.group;
        let stride = mixed.len() / self.n.max(1);
        // Rows that share floats: as many as their scores allow, and enough items for all threads.
        let even = (self.n * heads).div_ceil(4 * session.threads());
        let rows = (TOGETHER / group).min(even).clamp(1, 32).min(self.n);
        let blocks = self.n.div_ceil(rows);
        let per_item = self.slot_len(rows) + 2 * rows * group;
        let slots = session.threads().min(blocks * heads).max(1);
        let buffer = Out::new(sized(items, slots * per_item), per_item);
        let free = Slots::new(slots);
        let out = Out::new(mixed, stride);
        session.run(blocks * heads, &|item| {
            let slot = free.take();
            // SAFETY: the slot was free and is this item's until it is dropped.
            let (so_far, slot) =
                unsafe { buffer.slice(slot.slot, 0, per_item) }.split_at_mut(2 * rows * group);
            // The last rows see most: they go first.
            let first = (blocks - 1 - item / heads) * rows;
            let some = Part {
                first,
                rows: rows.min(self.n - first),
                kv_head: item % heads,
            };
            let mut b = self.buffers(rows, slot);
            // SAFETY: these heads of these rows belong to this item alone.
            let place = |pair: usize| unsafe {
                let head = some.kv_head * group + pair % group;
                out.slice(first + pair / group, head * dim, dim)
            };
            let end = self.start + first + some.rows;
            for from in (0..end).step_by(SPAN) {
                // Rows before the span see nothing of it.
                let late = from.saturating_sub(self.start + first);
                let now = Part {
                    first: first + late,
                    rows: some.rows - late,
                    ..some
                };
                // Behind the last span the next item begins, most likely on this thread.
                let then = if from + SPAN < end {
                    (some.kv_head, from + SPAN)
                } else {
                    ((item + 1) % heads, 0)
                };
                self.span(now, from, then, codes, &mut b);
                for pair in 0..now.rows * group {
                    let all = late * group + pair;
                    let so_far = &mut so_far[2 * all..2 * all + 2];
                    let weights = [b.weights[2 * pair], b.weights[2 * pair + 1]];
                    let sums = &b.sums[pair * dim..(pair + 1) * dim];
                    if from == 0 {
                        so_far.copy_from_slice(&weights);
                        place(all).copy_from_slice(sums);
                    } else {
                        self.isa.join(so_far, place(all), weights, sums);
                    }
                }
            }
            for pair in 0..some.rows * group {
                let inverse = 1.0 / so_far[2 * pair + 1];
                for v in place(pair).iter_mut() {
                    *v *= inverse;
                }
            }
        });
    }

    /// Few rows: an item has one span of all of them.
    fn by_spans(
        &self,
        session: &Session<'_>,
        mixed: &mut [f32],
        items: &mut Vec<f32>,
        spans: &mut Vec<f32>,
        codes: &[CodeBlock],
    ) {
        let KvShape {
            heads,
            head_dim: dim,
            ..
        } = self.shape();
        let group = self.group;
        let stride = mixed.len() / self.n.max(1);
        let per_item = self.slot_len(self.n);
        let n_spans = (self.start + self.n).div_ceil(SPAN);
        let slots = session.threads().min(n_spans * heads).max(1);
        let buffer = Out::new(sized(items, slots * per_item), per_item);
        let free = Slots::new(slots);
        // Of each key head and span: sums of all pairs, then their weights.
        let pairs = self.n * group;
        let per_span = pairs * (dim + 2);
        let spans = sized(spans, n_spans * heads * per_span);
        let parts = Out::new(spans, per_span);
        // An item has some spans one behind the other, for the memory's sake.
        let all = n_spans * heads;
        let together = all.div_ceil(8 * session.threads());
        session.run(all.div_ceil(together), &|item| {
            let slot = free.take();
            // SAFETY: the slot was free and is this item's until it is dropped.
            let slot = unsafe { buffer.slice(slot.slot, 0, per_item) };
            let mut b = self.buffers(self.n, slot);
            for at in item * together..((item + 1) * together).min(all) {
                // SAFETY: this part is this item's.
                let part = unsafe { parts.slice(at, 0, per_span) };
                let (sums, weights) = part.split_at_mut(pairs * dim);
                let place = |at: usize| (at / n_spans, at % n_spans * SPAN);
                let (kv_head, from) = place(at);
                let then = place((at + 1).min(all - 1));
                let late = from.saturating_sub(self.start);
                let some = Part {
                    first: late,
                    rows: self.n - late,
                    kv_head,
                };
                self.span(some, from, then, codes, &mut b);
                let now = some.rows * group;
                sums[late * group * dim..].copy_from_slice(&b.sums[..now * dim]);
                weights[2 * late * group..].copy_from_slice(&b.weights[..2 * now]);
            }
        });
        for (r, row) in mixed.chunks_mut(stride.max(1)).enumerate() {
            for (h, out) in row.chunks_exact_mut(dim).take(heads * group).enumerate() {
                let pair = r * group + h % group;
                let mut so_far = [0.0; 2];
                for span in 0..=(self.start + r) / SPAN {
                    let part = &spans[(h / group * n_spans + span) * per_span..][..per_span];
                    let (sums, weights) = part.split_at(pairs * dim);
                    let weights = [weights[2 * pair], weights[2 * pair + 1]];
                    let sums = &sums[pair * dim..(pair + 1) * dim];
                    if span == 0 {
                        so_far = weights;
                        out.copy_from_slice(sums);
                    } else {
                        self.isa.join(&mut so_far, out, weights, sums);
                    }
                }
                let inverse = 1.0 / so_far[1];
                for v in out.iter_mut() {
                    *v *= inverse;
                }
            }
        }
    }
}
