//! One pass of a few rows, of one sequence or of several, through the layers.

use formats::model::KvType;

use super::attention::{self, Attention};
use super::clock::Phase;
use super::hadamard;
use super::isa::Isa;
use super::matmul::{ActBuf, Activations, Out, matmul, matmuls};
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
    attention: attention::Scratch,
    /// Rows of several sequences, one behind the other.
    pub(super) batch: Vec<f32>,
}

/// A buffer of `n` values; what they hold does not matter, each is overwritten.
pub(super) fn sized(v: &mut Vec<f32>, n: usize) -> &mut [f32] {
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
            // SAFETY: row `r` belongs to this task alone.
            let out = unsafe { target.slice(r, 0, width) };
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
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

/// The next `n` rows of a pass are those of the sequence whose keys and values `cache` holds.
pub(super) struct Part<'a> {
    pub(super) cache: &'a mut KvCache,
    pub(super) n: usize,
}

/// Runs the layers of `span` over `rows` in place and advances the caches of `parts`, which cover
/// just them and to which the rows belong in order; `seen` looks on. All but attention sees rows
/// only, so that weights are read once for all sequences.
pub(super) fn run(
    exec: &CpuExecutor,
    span: Span<'_>,
    session: &Session<'_>,
    s: &mut Scratch,
    parts: &mut [Part<'_>],
    rows: &mut [f32],
    seen: &mut impl Observer,
) {
    let hp = &exec.part.hparams;
    let (isa, math) = (exec.isa, exec.math());
    let (width, q_width, kv_width) = (hp.n_embd, hp.q_width(), hp.kv_width());
    let n = rows.len() / width;
    s.turns.clear();
    for part in &*parts {
        let start = part.cache.len();
        for p in start..start + part.n {
            exec.rope.fill(p, &mut s.turns);
        }
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
            [
                (&w.attn_q, &mut *q, q_width),
                (&w.attn_k, &mut *k, kv_width),
                (&w.attn_v, &mut *v, kv_width),
            ],
        );
        add_bias(q, w.attn_q_bias.as_deref());
        add_bias(k, w.attn_k_bias.as_deref());
        add_bias(v, w.attn_v_bias.as_deref());
        lap.mark(Phase::Qkv);

        let mut at = 0;
        for part in &mut *parts {
            let start = part.cache.len();
            let Some(mut kv) = part.cache.layer_mut(l) else {
                // The caller has checked.
                return;
            };
            let thin = kv.shape().kv_type != KvType::F16;
            let own = |width: usize| at * width..(at + part.n) * width;
            let (k, v) = (&mut k[own(kv_width)], &mut v[own(kv_width)]);
            let outs = [
                (Out::new(&mut q[own(q_width)], q_width), q_width, true),
                (Out::new(k, kv_width), kv_width, true),
                (Out::new(v, kv_width), kv_width, false),
            ];
            let turns = &s.turns[own(pairs)];
            session.ranges(part.n, 8, &|range| {
                for r in range {
                    let turns = &turns[r * pairs..(r + 1) * pairs];
                    for (out, width, rope) in &outs {
                        // SAFETY: row `r` belongs to this task alone.
                        let x = unsafe { out.slice(r, 0, *width) };
                        if *rope {
                            exec.rope.rotate(x, hp.head_dim, turns);
                        }
                        if thin {
                            hadamard::turn(x, hp.head_dim);
                        }
                    }
                }
            });
            let both = k.chunks_exact(kv_width).zip(v.chunks_exact(kv_width));
            for (r, (k, v)) in both.enumerate() {
                kv.put(start + r, k, v);
            }
            at += part.n;
        }
        lap.mark(Phase::Rope);

        let mixed = s.mixed.reset(n, q_width);
        let stride = mixed.len() / n.max(1);
        let (mut q, mut mixed) = (&*q, mixed);
        for part in &mut *parts {
            let start = part.cache.len();
            let Some(kv) = part.cache.layer_mut(l) else {
                return;
            };
            let thin = kv.shape().kv_type != KvType::F16;
            let (own, others) = q.split_at(part.n * q_width);
            let (to, rest) = mixed.split_at_mut(part.n * stride);
            (q, mixed) = (others, rest);
            let attention = Attention {
                isa,
                whole: thin && math.activations == Activations::Int8,
                n: part.n,
                start,
                group: hp.n_head / hp.n_head_kv,
                q: own,
                kv,
            };
            attention.run(session, to, &mut s.attention);
            if thin {
                turn_back(session, to, stride, q_width, hp.head_dim);
            }
        }
        lap.mark(Phase::Attention);
        seen.input(layer, Site::AttnOutput, Rows::of(&s.mixed));

        let out = sized(&mut s.out, n * width);
        matmul(session, math, &w.attn_output, &mut s.mixed, out, width);
        add(session, rows, out, width);
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
            [
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
        add(session, rows, out, width);
        lap.mark(Phase::Down);
        let mut rest = &*rows;
        for part in &*parts {
            let (own, others) = rest.split_at(part.n * width);
            seen.hidden(layer + 1, part.cache.len(), Rows::packed(own, width));
            rest = others;
        }
    }
    for part in parts {
        part.cache.advance(part.n);
    }
}

/// Adds `more` to `rows`, row by row of `width`.
fn add(session: &Session<'_>, rows: &mut [f32], more: &[f32], width: usize) {
    let n = rows.len() / width;
    let out = Out::new(rows, width);
    session.ranges(n, 8, &|range| {
        for r in range {
            // SAFETY: row `r` belongs to this task alone.
            let row = unsafe { out.slice(r, 0, width) };
            let more = &more[r * width..(r + 1) * width];
            row.iter_mut().zip(more).for_each(|(x, o)| *x += o);
        }
    });
}

/// Turns sums of values, which were turned before they were kept, back: `width` values of each row
/// of `stride`.
fn turn_back(
    session: &Session<'_>,
    rows: &mut [f32],
    stride: usize,
    width: usize,
    head_dim: usize,
) {
    let n = rows.len() / stride.max(1);
    let out = Out::new(rows, stride);
    session.ranges(n, 8, &|range| {
        for r in range {
            // SAFETY: row `r` belongs to this task alone.
            hadamard::turn(unsafe { out.slice(r, 0, width) }, head_dim);
        }
    });
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
    let n = gate.len() / stride.max(1);
    let out = Out::new(gate, stride);
    session.ranges(n, 1, &|range| {
        for r in range {
            // SAFETY: row `r` belongs to this task alone.
            let gate = unsafe { out.slice(r, 0, n_ff) };
            isa.swiglu(gate, &up[r * stride..r * stride + n_ff]);
        }
    });
}
