//! Attention over keys and values in q8_0 and q4_0, in whole numbers.
//!
//! Scores: queries (times log₂ e / √D) are codes of 8 bits in blocks of 32, keys as they are kept;
//! one score is a chain over the blocks, as in [`super`]: `acc = (s·d)·i + acc`, `i = Σ k·c` exact.
//! Lanes are positions. Weights are powers of two.
//!
//! Sums: for a block of 32 dimensions and a span, the step is the largest scale `s[t]` of the
//! positions that the row sees, by 32767; with weights `e[t] ≤ 1`:
//!
//! ```text
//! c[t] = round(e[t]·(s[t] / step))    (16 bits)
//! i    = Σ c[t]·v[t]                  (exact: |i| ≤ 256·32767·127 < 2^31)
//! sum  = step·i                       (i rounded to a float, the product rounded)
//! ```
//!
//! Lanes are dimensions, nothing is folded, and every instruction set gives the same bits.

// As in `tile`.
#![allow(clippy::inline_always)]

use std::ops::Range;

use formats::model::{KV_BLOCK, KV_PAGE, KvType};

use super::{CodeBlock, Codes16, Factors, SPAN, UNTIL_SOFTENED, Vector, WITH_SCORES};
use crate::cache::{KvShape, Page};

/// Bytes that will be read next, and are asked for piece by piece.
struct Ahead {
    at: *const u8,
    /// Where pieces end, as far as they have been asked for, and how many bytes each has.
    done: usize,
    each: usize,
}

impl Ahead {
    /// 64ths `part` of `bytes` at `at`, which may be any address, in `n` pieces.
    fn new(at: *const u8, bytes: usize, part: Range<usize>, n: usize) -> Self {
        let done = bytes * part.start / 64;
        Self {
            at,
            done,
            each: (bytes * part.end / 64 - done).div_ceil(n.max(1)),
        }
    }

    /// Asks for the next piece.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn ask<V: Vector>(&mut self) {
        let from = self.done.next_multiple_of(64);
        self.done += self.each;
        for line in (from..self.done).step_by(64) {
            // SAFETY: by the contract; a prefetch may go anywhere.
            unsafe { V::prefetch::<true>(self.at.wrapping_add(line)) };
        }
    }
}

/// Pages of a head from position `from` on (a multiple of a page), for `n` positions.
fn pages(shape: KvShape, head: &[u8], from: usize, n: usize) -> (Page, &[u8]) {
    let page = Page::of(shape.kv_type, shape.head_dim);
    let first = from / KV_PAGE * page.bytes();
    (
        page,
        &head[first..first + n.div_ceil(KV_PAGE) * page.bytes()],
    )
}

/// `scores[r·SPAN + t]` = query `r` · key `from + t` for `t` in `0..n` and up to the end of the last
/// page; `q` are the blocks of all queries, row after row. At `next` are the keys of the span that comes next.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
pub(in super::super) unsafe fn scores<V: Vector>(
    shape: KvShape,
    head: &[u8],
    from: usize,
    n: usize,
    q: &[CodeBlock],
    next: *const u8,
    scores: &mut [f32],
) {
    let (page, head) = pages(shape, head, from, n);
    assert!(n <= SPAN && q.len().is_multiple_of(page.blocks));
    assert!(scores.len() >= q.len() / page.blocks * SPAN);
    // SAFETY: by the contract; the pages are there, and each row of scores has room for them.
    unsafe {
        match shape.kv_type {
            KvType::Q8_0 => scores_of::<V, false>(page, head, q, next, scores.as_mut_ptr()),
            KvType::Q4_0 => scores_of::<V, true>(page, head, q, next, scores.as_mut_ptr()),
            // Attention asks for codes only where the cache has them; another answer would be a
            // wrong score that nobody sees.
            KvType::F16 => unreachable!("keys in f16 have no codes"),
        }
    }
}

/// # Safety
/// `V`'s instruction set; `head` is whole pages; a span of scores for each query.
#[inline(always)]
unsafe fn scores_of<V: Vector, const FOUR: bool>(
    page: Page,
    head: &[u8],
    q: &[CodeBlock],
    next: *const u8,
    scores: *mut f32,
) {
    let lane_bytes = 4 * V::LANES;
    let pages = SPAN / KV_PAGE;
    let mut ahead = Ahead::new(next, pages * page.bytes(), 0..WITH_SCORES, pages);
    for (p, bytes) in head.chunks_exact(page.bytes()).enumerate() {
        // SAFETY: by the contract.
        unsafe { ahead.ask::<V>() };
        for part in 0..KV_PAGE / V::LANES {
            let out = scores.wrapping_add(p * KV_PAGE + part * V::LANES);
            for b in 0..page.blocks {
                // SAFETY: by the contract.
                unsafe {
                    let scales = bytes.as_ptr().add(b * Page::SCALES + part * 2 * V::LANES);
                    let scales = V::halves(scales);
                    let codes = bytes.as_ptr().add(page.codes_at(b) + part * lane_bytes);
                    let word = |w: usize| V::at(codes.add(w * 4 * KV_PAGE));
                    let words = if FOUR {
                        super::block32::nibbles(&[word(0), word(1), word(2), word(3)])
                    } else {
                        [
                            word(0),
                            word(1),
                            word(2),
                            word(3),
                            word(4),
                            word(5),
                            word(6),
                            word(7),
                        ]
                    };
                    for (r, q) in q.chunks_exact(page.blocks).enumerate() {
                        let x = &q[b];
                        let i = if FOUR {
                            let init = V::lanes(x.minus[0]).shl(3);
                            V::dot::<8, 15>(init, &words, x.codes.as_ptr())
                        } else {
                            let init = if V::SIGNED {
                                V::lanes(0)
                            } else {
                                V::lanes(x.minus[0]).shl(7)
                            };
                            V::dot::<8, 255>(init, &words, x.codes.as_ptr())
                        };
                        let out = out.wrapping_add(r * SPAN);
                        let acc = if b == 0 { V::splat(0.0) } else { V::get(out) };
                        V::put(
                            out,
                            V::fma(V::mul(scales, V::splat(x.scale)), i.float(), acc),
                        );
                    }
                }
            }
        }
    }
}

/// Rows that share values in registers.
const ROWS: usize = 4;

/// `sums[r·D + d] = Σ weights[r·SPAN + t] · values[from + t][d]` over the first `seen(r)` of `n`
/// positions. `next` are the keys and values of the span that comes next.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a kernel's
pub(in super::super) unsafe fn sums<V: Vector>(
    shape: KvShape,
    head: &[u8],
    from: usize,
    n: usize,
    seen: &dyn Fn(usize) -> usize,
    weights: &[f32],
    next: [*const u8; 2],
    sums: &mut [f32],
) {
    let (page, head) = pages(shape, head, from, n);
    let dim = shape.head_dim;
    let rows = sums.len() / dim;
    assert!(n <= SPAN && weights.len() >= rows * SPAN);
    let bytes = SPAN / KV_PAGE * page.bytes();
    let with_codes = UNTIL_SOFTENED..64;
    let mut keys = Ahead::new(next[0], bytes, with_codes, page.blocks * rows);
    // Once is enough: with the first rows of each block.
    let pieces = page.blocks * (SPAN / KV_PAGE);
    let mut values = Ahead::new(next[1], bytes, 0..64, pieces);
    let mut nothing = Ahead::new(std::ptr::null(), 0, 0..64, pieces);
    let mut codes = [Codes16::ZERO; ROWS];
    let mut steps = [0.0; ROWS];
    let mut scales = [0.0; SPAN];
    let mut factors = Factors::NONE;
    for b in 0..page.blocks {
        for (p, bytes) in head.chunks_exact(page.bytes()).enumerate() {
            for part in 0..KV_PAGE / V::LANES {
                // SAFETY: by the contract; there are scales of all positions of a page.
                unsafe {
                    let from = bytes.as_ptr().add(b * Page::SCALES + part * 2 * V::LANES);
                    let at = p * KV_PAGE + part * V::LANES;
                    V::put(scales.as_mut_ptr().add(at), V::halves(from));
                }
            }
        }
        let together = V::LANES / 4;
        for first in (0..rows).step_by(together) {
            let now = together.min(rows - first);
            for i in 0..now {
                let r = first + i;
                // SAFETY: by the contract.
                unsafe { keys.ask::<V>() };
                factors.fill(&scales, seen(r), r == 0);
                factors.codes(&weights[r * SPAN..(r + 1) * SPAN], &mut codes[i]);
                steps[i] = factors.step;
            }
            let ahead = if first == 0 {
                &mut values
            } else {
                &mut nothing
            };
            // SAFETY: by the contract; there are `now` rows of sums from `first` on.
            unsafe {
                let out = sums.as_mut_ptr().add(first * dim + b * KV_BLOCK);
                macro_rules! rows {
                    ($n:literal) => {
                        match shape.kv_type {
                            KvType::Q4_0 => {
                                add::<V, true, $n>(page, head, b, &codes, &steps, ahead, out, dim)
                            }
                            _ => {
                                add::<V, false, $n>(page, head, b, &codes, &steps, ahead, out, dim)
                            }
                        }
                    };
                }
                match now {
                    1 => rows!(1),
                    2 => rows!(2),
                    3 => rows!(3),
                    _ => rows!(4),
                }
            }
        }
    }
}

/// Block `b` of the sums of `R` rows, each `stride` after the other.
///
/// # Safety
/// `V`'s instruction set; `head` is whole pages, a span at most; a block of sums writable in each
/// row.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a kernel's
unsafe fn add<V: Vector, const FOUR: bool, const R: usize>(
    page: Page,
    head: &[u8],
    b: usize,
    weights: &[Codes16; ROWS],
    steps: &[f32; ROWS],
    ahead: &mut Ahead,
    sums: *mut f32,
    stride: usize,
) {
    // 16 lanes need two vectors for a block, eight need four.
    let vectors = KV_BLOCK / V::LANES;
    // SAFETY: by the contract; a page has eight pairs of positions.
    unsafe {
        let mut acc = [[V::lanes(0); 4]; R];
        for (p, bytes) in head.chunks_exact(page.bytes()).enumerate() {
            ahead.ask::<V>();
            let codes = bytes.as_ptr().add(page.codes_at(b));
            for pair in 0..KV_PAGE / 2 {
                let mut v = [V::lanes(0); 4];
                if FOUR {
                    for j in 0..vectors / 2 {
                        let both = V::widen(codes.add(pair * KV_BLOCK + j * 2 * V::LANES));
                        v[j] = both.signed::<12>();
                        v[vectors / 2 + j] = both.sar16::<4>();
                    }
                } else {
                    for (j, v) in v.iter_mut().enumerate().take(vectors) {
                        *v = V::widen(codes.add(2 * pair * KV_BLOCK + j * 2 * V::LANES));
                    }
                }
                for (acc, w) in acc.iter_mut().zip(weights) {
                    let c = w.0.as_ptr().add(p * KV_PAGE + 2 * pair);
                    for j in 0..vectors {
                        acc[j] = V::pairs(acc[j], v[j], c);
                    }
                }
            }
        }
        for (r, (acc, step)) in acc.iter().zip(steps).enumerate() {
            for (j, acc) in acc.iter().enumerate().take(vectors) {
                let out = sums.add(r * stride + j * V::LANES);
                V::put(out, V::mul(V::splat(*step), acc.float()));
            }
        }
    }
}
