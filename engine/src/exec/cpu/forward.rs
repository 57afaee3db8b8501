//! One pass of a few rows through the layers.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use super::clock::Phase;
use super::isa::Isa;
use super::matmul::{ActBuf, Out, matmul, matmuls};
use super::observe::{Observer, Rows, Site};
use super::pool::Session;
use super::{CpuExecutor, KvCache};
use crate::model::LayerTensors;

/// Buffers of a pass, kept for the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) normed: ActBuf,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: ActBuf,
    out: Vec<f32>,
    gate: ActBuf,
    up: Vec<f32>,
    turns: Vec<(f32, f32)>,
    scores: Vec<f32>,
}

/// A buffer of `n` values; what they hold does not matter, each is overwritten.
fn sized(v: &mut Vec<f32>, n: usize) -> &mut [f32] {
    v.resize(n, 0.0);
    &mut v[..n]
}

/// RMS norm of each row: `x · weight / √(mean x² + eps)`.
pub(super) fn norm(
    session: &Session<'_>,
    isa: Isa,
    rows: &[f32],
    width: usize,
    weight: &[f32],
    eps: f32,
    out: &mut ActBuf,
) {
    let n = rows.len() / width;
    let values = out.reset(n, width);
    let len = values.len();
    let target = Out::new(values, len / n.max(1));
    session.ranges(n, 8, &|range| {
        for r in range {
            let x = &rows[r * width..(r + 1) * width];
            let mean = isa.sum_squares(x) / width as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for (i, (x, w)) in x.iter().zip(weight).enumerate() {
                // SAFETY: row `r` belongs to this task alone.
                unsafe { target.set(r, i, x * scale * w) };
            }
        }
    });
}

/// Layers to run: `blocks` are layers `first..` of the model.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) first: usize,
    pub(super) blocks: &'a [LayerTensors],
}

/// Runs the layers of `span` over `rows` in place and advances `cache`, which covers just them;
/// `seen` looks on.
pub(super) fn run(
    exec: &CpuExecutor,
    span: Span<'_>,
    session: &Session<'_>,
    s: &mut Scratch,
    cache: &mut KvCache,
    rows: &mut [f32],
    seen: &mut impl Observer,
) {
    let hp = &exec.part.hparams;
    let (isa, math) = (exec.isa, exec.math());
    let (width, q_width, kv_width) = (hp.n_embd, hp.q_width(), hp.kv_width());
    let n = rows.len() / width;
    let start = cache.len();
    s.turns.clear();
    for p in start..start + n {
        exec.rope.fill(p, &mut s.turns);
    }
    let pairs = s.turns.len() / n.max(1);
    let mut lap = exec.clock.lap();
    for (l, w) in span.blocks.iter().enumerate() {
        let layer = span.first + l;
        norm(
            session,
            isa,
            rows,
            width,
            &w.attn_norm,
            hp.rms_eps,
            &mut s.normed,
        );
        lap.mark(Phase::Norm);
        seen.input(layer, Site::AttnIn, Rows::of(&s.normed));
        let q = sized(&mut s.q, n * q_width);
        let k = sized(&mut s.k, n * kv_width);
        let v = sized(&mut s.v, n * kv_width);
        matmuls(
            session,
            math,
            &mut s.normed,
            &mut [
                (&w.attn_q, &mut *q, q_width),
                (&w.attn_k, &mut *k, kv_width),
                (&w.attn_v, &mut *v, kv_width),
            ],
        );
        add_bias(q, w.attn_q_bias.as_deref());
        add_bias(k, w.attn_k_bias.as_deref());
        add_bias(v, w.attn_v_bias.as_deref());
        lap.mark(Phase::Qkv);

        let (keys, values) = cache.layer_mut(l);
        for r in 0..n {
            let turns = &s.turns[r * pairs..(r + 1) * pairs];
            let q = &mut q[r * q_width..(r + 1) * q_width];
            exec.rope.rotate(q, hp.head_dim, turns);
            let k = &mut k[r * kv_width..(r + 1) * kv_width];
            exec.rope.rotate(k, hp.head_dim, turns);
            let at = (start + r) * kv_width..(start + r + 1) * kv_width;
            keys[at.clone()].convert_from_f32_slice(k);
            values[at].convert_from_f32_slice(&v[r * kv_width..(r + 1) * kv_width]);
        }

        lap.mark(Phase::Rope);
        let mixed = s.mixed.reset(n, q_width);
        let attention = Attention {
            isa,
            n,
            start,
            n_head: hp.n_head,
            group: hp.n_head / hp.n_head_kv,
            head_dim: hp.head_dim,
            kv_width,
            q,
            keys,
            values,
        };
        attention.run(session, mixed, &mut s.scores);
        lap.mark(Phase::Attention);
        seen.input(layer, Site::AttnOutput, Rows::of(&s.mixed));

        let out = sized(&mut s.out, n * width);
        matmul(session, math, &w.attn_output, &mut s.mixed, out, width);
        rows.iter_mut().zip(&*out).for_each(|(x, o)| *x += o);
        lap.mark(Phase::AttnOutput);

        norm(
            session,
            isa,
            rows,
            width,
            &w.ffn_norm,
            hp.rms_eps,
            &mut s.normed,
        );
        lap.mark(Phase::Norm);
        seen.input(layer, Site::FfnIn, Rows::of(&s.normed));
        s.gate.reset(n, hp.n_ff);
        let stride = s.gate.stride();
        let up = sized(&mut s.up, n * stride);
        matmuls(
            session,
            math,
            &mut s.normed,
            &mut [
                (&w.ffn_gate, s.gate.values_mut(), stride),
                (&w.ffn_up, &mut *up, stride),
            ],
        );
        lap.mark(Phase::GateUp);
        swiglu(session, isa, s.gate.values_mut(), up, hp.n_ff, stride);
        lap.mark(Phase::Swiglu);
        seen.input(layer, Site::FfnDown, Rows::of(&s.gate));
        let out = sized(&mut s.out, n * width);
        matmul(session, math, &w.ffn_down, &mut s.gate, out, width);
        rows.iter_mut().zip(&*out).for_each(|(x, o)| *x += o);
        lap.mark(Phase::Down);
        seen.hidden(layer + 1, start, Rows::packed(rows, width));
    }
    cache.advance(n);
}

/// Adds the bias of a product to each of its rows.
fn add_bias(rows: &mut [f32], bias: Option<&[f32]>) {
    let Some(bias) = bias else { return };
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

fn swiglu(
    session: &Session<'_>,
    isa: Isa,
    gate: &mut [f32],
    up: &[f32],
    n_ff: usize,
    stride: usize,
) {
    let rows: Vec<std::sync::Mutex<&mut [f32]>> =
        gate.chunks_mut(stride).map(std::sync::Mutex::new).collect();
    session.run(rows.len(), &|r| {
        let mut gate = rows[r]
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        isa.swiglu(&mut gate[..n_ff], &up[r * stride..r * stride + n_ff]);
    });
}

/// Causal attention of `n` rows that stand at `start..start + n`.
struct Attention<'a> {
    isa: Isa,
    n: usize,
    start: usize,
    n_head: usize,
    /// Query heads per key head.
    group: usize,
    head_dim: usize,
    kv_width: usize,
    q: &'a [f32],
    keys: &'a [f16],
    values: &'a [f16],
}

impl Attention<'_> {
    fn run(&self, session: &Session<'_>, mixed: &mut [f32], scores: &mut Vec<f32>) {
        let (dim, width) = (self.head_dim, self.n_head * self.head_dim);
        let stride = mixed.len() / self.n.max(1);
        let scale = 1.0 / (dim as f32).sqrt();
        let items = self.n * self.n_head;
        let per_item = self.start + self.n;
        // One strip of scores per range of items; ranges are never more than this.
        let strips = (session.threads() * 6).min(items).max(1);
        let per_strip = items.div_ceil(strips);
        let scores = sized(scores, strips * per_item);
        let scores = Strips {
            values: Out::new(scores, per_item),
            ptr: scores.as_mut_ptr(),
        };
        let out = Out::new(mixed, stride);
        session.run(items.div_ceil(per_strip), &|strip| {
            // SAFETY: strip `strip` of the buffer belongs to this item alone.
            let buffer = unsafe { scores.strip(strip, per_item) };
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

/// A buffer that tasks share in strips.
struct Strips {
    values: Out,
    ptr: *mut f32,
}

// SAFETY: strips are disjoint and each is used by one task.
unsafe impl Sync for Strips {}

impl Strips {
    /// Strip `i` of `len` values.
    ///
    /// # Safety
    /// Each strip may be taken by one task at a time, while the buffer is borrowed.
    #[allow(clippy::mut_from_ref)] // the point of the type
    unsafe fn strip(&self, i: usize, len: usize) -> &mut [f32] {
        assert!((i + 1) * len <= self.values.len());
        // SAFETY: in range by the assertion; exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * len), len) }
    }
}
