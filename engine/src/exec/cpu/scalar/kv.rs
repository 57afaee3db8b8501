//! Attention over q8_0 and q4_0 in whole numbers: the definition. `integer/kv.rs` says why it is
//! so.

use formats::model::{KV_BLOCK, KV_PAGE};
use half::f16;

use super::super::integer::{CodeBlock, Codes16, Factors, SPAN};
use crate::cache::{KvShape, Page, Side, code};

/// The scale of block `b` of position `t`, and the codes of that block of its page.
fn block(shape: KvShape, head: &[u8], t: usize, b: usize) -> (f32, &[u8]) {
    let page = Page::of(shape.kv_type, shape.head_dim);
    let head = &head[t / KV_PAGE * page.bytes()..][..page.bytes()];
    let kept = &head[b * Page::SCALES + t % KV_PAGE * 2..];
    let codes = &head[page.codes_at(b)..][..page.codes];
    (f16::from_le_bytes([kept[0], kept[1]]).to_f32(), codes)
}

/// `scores[r·SPAN + t]` = query `r` · key `from + t`.
pub(crate) fn kv_scores(
    shape: KvShape,
    head: &[u8],
    from: usize,
    n: usize,
    q: &[CodeBlock],
    scores: &mut [f32],
) {
    let rows = q.chunks_exact(shape.head_dim / KV_BLOCK);
    for (q, scores) in rows.zip(scores.chunks_exact_mut(SPAN)) {
        for (t, score) in (from..from + n).zip(scores) {
            *score = 0.0;
            for (b, x) in q.iter().enumerate() {
                let (scale, codes) = block(shape, head, t, b);
                let products = x.codes.iter().enumerate().map(|(d, c)| {
                    let k = code(codes, shape.kv_type, Side::Keys, t % KV_PAGE, d);
                    i32::from(k) * i32::from(*c)
                });
                let i: i32 = products.sum();
                *score = (scale * x.scale).mul_add(i as f32, *score);
            }
        }
    }
}

/// `sums[r·D + d] = Σ weights[r·SPAN + t] · values[from + t][d]` over the first `seen(r)` positions.
pub(crate) fn kv_sums(
    shape: KvShape,
    head: &[u8],
    from: usize,
    seen: &dyn Fn(usize) -> usize,
    weights: &[f32],
    sums: &mut [f32],
) {
    let mut w = Codes16::ZERO;
    let rows = sums
        .chunks_exact_mut(shape.head_dim)
        .zip(weights.chunks_exact(SPAN));
    for (r, (sums, weights)) in rows.enumerate() {
        let n = seen(r);
        for (b, sums) in sums.chunks_exact_mut(KV_BLOCK).enumerate() {
            let mut scales = [0.0; SPAN];
            for (t, s) in scales.iter_mut().enumerate().take(n) {
                *s = block(shape, head, from + t, b).0;
            }
            let mut factors = Factors::NONE;
            factors.fill(&scales, n, true);
            factors.codes(weights, &mut w);
            for (d, sum) in sums.iter_mut().enumerate() {
                let mut i = 0_i32;
                for (t, c) in w.0[..n].iter().enumerate() {
                    let t = from + t;
                    let (_, codes) = block(shape, head, t, b);
                    let v = code(codes, shape.kv_type, Side::Values, t % KV_PAGE, d);
                    i += i32::from(*c) * i32::from(v);
                }
                *sum = factors.step * i as f32;
            }
        }
    }
}
