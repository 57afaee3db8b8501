//! Kernels in plain Rust: the definition that every other instruction set must equal bit for bit.

mod block32;
mod float;
mod grouped;
mod integer;
mod kv;
mod super256;

use formats::blocks::BlockType;

pub(crate) use integer::products;
pub(crate) use kv::{kv_scores, kv_sums};
pub(crate) use super256::{scale_k3, scale_min_k4};

use super::MAX_ROWS;
use super::lanes::{LANES, Lanes, exp, fold};
use super::matmul::Acts;

/// Weights unpacked at a time.
const PANEL: usize = 256;

/// Up to [`PANEL`] weights as `quant × scale + min`.
struct Panel {
    q: [f32; PANEL],
    scale: [f32; PANEL / 16],
    min: [f32; PANEL / 16],
}

/// How the weights of a type are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    /// Quants that share a scale.
    pub(crate) group: usize,
    /// Whether groups have a minimum.
    pub(crate) min: bool,
}

/// The grouping of `ty`.
pub(crate) fn grouping(ty: BlockType) -> Grouping {
    use BlockType as T;
    let (group, min) = match ty {
        T::Q4_1 | T::Q5_1 | T::Q4_K | T::Q5_K => (32, true),
        T::Q2_K => (16, true),
        T::Q3_K | T::Q6_K | T::IQ1_M | T::IQ2_XS | T::IQ2_S => (16, false),
        T::F32
        | T::F16
        | T::BF16
        | T::Q4_0
        | T::Q5_0
        | T::Q8_0
        | T::IQ4_NL
        | T::IQ1_S
        | T::IQ2_XXS
        | T::IQ3_XXS
        | T::IQ3_S
        | T::IQ4_XS
        | T::TQ1_0
        | T::TQ2_0
        | T::MXFP4 => (32, false),
    };
    Grouping { group, min }
}

/// Unpacks weights `k0..k0 + n` of a row; `n ≤ PANEL`, `k0` a multiple of `PANEL`. The rest of
/// the last group is zero.
fn unpack(ty: BlockType, row: &[u8], k0: usize, n: usize, p: &mut Panel) {
    let block = |b: usize| ty.block_bytes() * (k0 / ty.block_len() + b);
    match ty {
        BlockType::F32 | BlockType::F16 | BlockType::BF16 => {
            p.scale.fill(1.0);
            let bytes = &row[block(0)..block(n)];
            match ty {
                BlockType::F32 => float::f32s(bytes, &mut p.q[..n]),
                BlockType::F16 => float::f16s(bytes, &mut p.q[..n]),
                _ => float::bf16s(bytes, &mut p.q[..n]),
            }
            p.q[n..n.next_multiple_of(32)].fill(0.0);
        }
        BlockType::Q4_0
        | BlockType::Q4_1
        | BlockType::Q5_0
        | BlockType::Q5_1
        | BlockType::Q8_0
        | BlockType::IQ4_NL => {
            for g in 0..n / 32 {
                let q: &mut [f32] = &mut p.q[g * 32..g * 32 + 32];
                let (scale, min) = block32::unpack(ty, &row[block(g)..block(g + 1)], q);
                p.scale[g] = scale;
                p.min[g] = min;
            }
        }
        BlockType::Q2_K | BlockType::Q3_K | BlockType::Q4_K | BlockType::Q5_K | BlockType::Q6_K => {
            let b = &row[block(0)..block(1)];
            super256::unpack(ty, b, &mut p.q, &mut p.scale, &mut p.min);
        }
        BlockType::IQ1_S
        | BlockType::IQ1_M
        | BlockType::IQ2_XXS
        | BlockType::IQ2_XS
        | BlockType::IQ2_S
        | BlockType::IQ3_XXS
        | BlockType::IQ3_S
        | BlockType::IQ4_XS
        | BlockType::TQ1_0
        | BlockType::TQ2_0
        | BlockType::MXFP4 => {
            let bytes = &row[block(0)..block(n / ty.block_len())];
            grouped::unpack(ty, bytes, &mut p.q, &mut p.scale);
        }
    }
}

/// Weight rows `rows` times all activation rows: `out(r, i)` receives row `i` of the weights times
/// row `r` of the activations.
pub(crate) fn matmul(
    ty: BlockType,
    weights: &[u8],
    row_bytes: usize,
    rows: std::ops::Range<usize>,
    x: &Acts<'_>,
    out: &mut dyn FnMut(usize, usize, f32),
) {
    let Grouping { group, min } = grouping(ty);
    let mut panel = Panel {
        q: [0.0; PANEL],
        scale: [0.0; 16],
        min: [0.0; 16],
    };
    let mut acc = [[0.0; LANES]; MAX_ROWS];
    for first in (0..x.rows()).step_by(MAX_ROWS) {
        let acts = first..x.rows().min(first + MAX_ROWS);
        for i in rows.clone() {
            let row = &weights[i * row_bytes..(i + 1) * row_bytes];
            let acc = &mut acc[..acts.len()];
            acc.fill([0.0; LANES]);
            for k0 in (0..x.cols()).step_by(PANEL) {
                let n = PANEL.min(x.cols() - k0);
                unpack(ty, row, k0, n, &mut panel);
                for (r, acc) in acts.clone().zip(&mut *acc) {
                    let xs = &x.padded_row(r)[k0..];
                    for g in 0..n.div_ceil(group) {
                        let q = &panel.q[g * group..(g + 1) * group];
                        let t = group_dot(q, &xs[g * group..]);
                        let s = panel.scale[g];
                        for l in 0..LANES {
                            acc[l] = s.mul_add(t[l], acc[l]);
                        }
                        if min {
                            let sums = x.group_sum(r, k0 / group + g);
                            let m = panel.min[g];
                            for l in 0..LANES {
                                acc[l] = m.mul_add(sums[l], acc[l]);
                            }
                        }
                    }
                }
            }
            for (r, acc) in acts.clone().zip(&*acc) {
                out(r, i, fold(acc));
            }
        }
    }
}

fn group_dot(q: &[f32], x: &[f32]) -> Lanes {
    let mut t = [0.0; LANES];
    for l in 0..LANES {
        t[l] = q[l] * x[l];
    }
    for k in (LANES..q.len()).step_by(LANES) {
        for l in 0..LANES {
            t[l] = q[k + l].mul_add(x[k + l], t[l]);
        }
    }
    t
}

/// Σ x² in lanes.
pub(crate) fn sum_squares(x: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    for c in x.chunks(LANES) {
        for (a, v) in acc.iter_mut().zip(c) {
            *a = v.mul_add(*v, *a);
        }
    }
    fold(&acc)
}

/// eˣ to about one unit in the last place; 0 below −87.
pub(crate) fn exp(x: f32) -> f32 {
    if x.is_nan() || x <= exp::LO {
        return 0.0;
    }
    let x = x.min(exp::HI);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-exp::LN2_HI, x);
    let r = n.mul_add(-exp::LN2_LO, r);
    let mut p = exp::POLY[0];
    for c in &exp::POLY[1..] {
        p = p.mul_add(r, *c);
    }
    let p = p.mul_add(r * r, r) + 1.0;
    p * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// Scores to weights: `s[t] = e^(s[t] − max s)`; returns the maximum, and their sum, in lanes by `t`.
pub(crate) fn softmax(s: &mut [f32]) -> (f32, f32) {
    let max = s
        .iter()
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let mut acc = [0.0; LANES];
    for c in s.chunks_mut(LANES) {
        for (a, v) in acc.iter_mut().zip(c) {
            *v = exp(*v - max);
            *a += *v;
        }
    }
    (max, fold(&acc))
}

/// Joins what two spans came to, `m` the largest score, `l` the sum of weights, `a` the weighted
/// sums: with `m' = max`, `f = e^(m − m')` and `g = e^(other m − m')` (one of them is 1), `l` and each
/// `a` become `g·other + f·own`, the second product rounded, the sum fused.
pub(crate) fn join(so_far: &mut [f32], out: &mut [f32], [m, l]: [f32; 2], sums: &[f32]) {
    let most = so_far[0];
    let (f, g) = if m > most {
        so_far[0] = m;
        (exp(most - m), 1.0)
    } else {
        (1.0, exp(m - most))
    };
    so_far[1] = g.mul_add(l, f * so_far[1]);
    for (o, s) in out.iter_mut().zip(sums) {
        *o = g.mul_add(*s, f * *o);
    }
}

/// `gate[i] = silu(gate[i]) · up[i]`.
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}
