//! Attention in floats: over keys and values in f16 as they lie, and over tiles of floats.
//!
//! A score is one chain over the dimensions, a sum one over the positions:
//!
//! ```text
//! acc = q[d]·k[t][d] + acc      (fused, d ascending, from 0 on);  score = acc·scale
//! acc = w[t]·v[t][d] + acc      (fused, t ascending)
//! ```
//!
//! Lanes are positions of scores and dimensions of sums, so that nothing is folded, and every
//! instruction set gives the same bits. Keys lie for that dimension after dimension, in pages of 16
//! positions or a tile, values position after position. Queries are taken together: what is loaded
//! serves them all.

// Pieces without a target feature of their own must be inlined into entry points that have it.
#![allow(clippy::inline_always)]

use formats::model::KV_PAGE;

use super::integer::SPAN;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::integer::Vector;
use crate::cache::half_of_key;

/// Positions of a tile.
pub(super) const TILE: usize = 64;

/// Queries of rows and of the heads that share keys: all heads of a row, then those of the next.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    /// The first of them; the others behind it, with gaps.
    pub(super) q: &'a [f32],
    /// Values of a head.
    pub(super) dim: usize,
    /// Heads of a row.
    pub(super) group: usize,
    /// Values from a row to the next.
    pub(super) stride: usize,
    /// How many queries there are.
    pub(super) n: usize,
}

impl Queries<'_> {
    /// Query `i`.
    #[inline]
    pub(super) fn get(&self, i: usize) -> &[f32] {
        let at = i / self.group * self.stride + i % self.group * self.dim;
        &self.q[at..at + self.dim]
    }
}

/// How many positions of a span, or of a piece of it, queries see.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// Positions that are there.
    n: usize,
    /// What the first row sees of them, each other one more than the one before; below 0 as many
    /// rows see none.
    first: isize,
    group: usize,
}

impl Seen {
    /// Of `n` positions, when the first row sees `first` and a row has `group` queries.
    pub(super) fn new(n: usize, first: usize, group: usize) -> Self {
        Self {
            n,
            first: first as isize,
            group,
        }
    }

    /// Of the piece of `n` positions from `at` on.
    pub(super) fn piece(self, at: usize, n: usize) -> Self {
        Self {
            n,
            first: self.first - at as isize,
            ..self
        }
    }

    /// What query `i` sees; none sees fewer than those before.
    #[inline]
    pub(super) fn of(self, i: usize) -> usize {
        (self.first + (i / self.group) as isize).clamp(0, self.n as isize) as usize
    }
}

/// Keys or values of a head.
#[derive(Clone, Copy)]
pub(super) enum Kept<'a> {
    /// In f16 as the cache has them, from the first position of a span on.
    Halves(&'a [u8]),
    /// In floats: keys as `[dimension][TILE]`, values as `[position][dimension]`.
    Tile(&'a [f32]),
}

/// Keys or values in vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
trait Source<V: Vector>: Copy {
    /// Keys: dimension `d` of positions from `t` on, which begins a vector of a page. Values: dimensions
    /// from `d` on of position `t`.
    ///
    /// # Safety
    /// `V`'s instruction set; they are there.
    unsafe fn get(self, t: usize, d: usize) -> V::F;
}

/// Keys in pages of f16, and their dimensions.
#[derive(Clone, Copy)]
struct Pages(*const u8, usize);
/// Keys in a tile.
#[derive(Clone, Copy)]
struct Columns(*const f32);
/// Values in f16, and their dimensions.
#[derive(Clone, Copy)]
struct HalfRows(*const u8, usize);
/// Values in floats, and their dimensions.
#[derive(Clone, Copy)]
struct Rows(*const f32, usize);

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod sources {
    use super::{Columns, HalfRows, Pages, Rows, Source, TILE, Vector, half_of_key};

    impl<V: Vector> Source<V> for Pages {
        #[inline(always)]
        unsafe fn get(self, t: usize, d: usize) -> V::F {
            // SAFETY: by the contract.
            unsafe { V::halves(self.0.add(2 * half_of_key(t, d, self.1))) }
        }
    }

    impl<V: Vector> Source<V> for Columns {
        #[inline(always)]
        unsafe fn get(self, t: usize, d: usize) -> V::F {
            // SAFETY: by the contract.
            unsafe { V::get(self.0.add(d * TILE + t)) }
        }
    }

    impl<V: Vector> Source<V> for HalfRows {
        #[inline(always)]
        unsafe fn get(self, t: usize, d: usize) -> V::F {
            // SAFETY: by the contract.
            unsafe { V::halves(self.0.add(2 * (t * self.1 + d))) }
        }
    }

    impl<V: Vector> Source<V> for Rows {
        #[inline(always)]
        unsafe fn get(self, t: usize, d: usize) -> V::F {
            // SAFETY: by the contract.
            unsafe { V::get(self.0.add(t * self.1 + d)) }
        }
    }
}

/// Queries that are taken together by processors of `lanes`: as many as registers allow.
const fn together(left: usize, lanes: usize) -> usize {
    let most = if lanes == 16 { 6 } else { 4 };
    match left {
        5 => 3,
        n if n < most => n,
        _ => most,
    }
}

/// Asks for the lines of `bytes` at `at`, which may be any address.
///
/// # Safety
/// `V`'s instruction set.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn ask<V: Vector>(at: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: by the contract; a prefetch may go anywhere.
        unsafe { V::prefetch::<true>(at.wrapping_add(line)) };
    }
}

/// `G` vectors of scores, from position `t` on, of `R` queries.
///
/// # Safety
/// `V`'s instruction set; the keys are there, `dim` floats at each `q`, the scores writable.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a kernel's
unsafe fn some_scores<V: Vector, S: Source<V>, const R: usize, const G: usize>(
    keys: S,
    t: usize,
    q: &[*const f32; R],
    dim: usize,
    scale: f32,
    next: *const u8,
    out: *mut f32,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut acc = [[V::splat(0.0); G]; R];
        let share = 2 * G * V::LANES;
        for d in 0..dim {
            if !next.is_null() {
                // A little each time: what is asked for at once has to wait.
                ask::<V>(next.wrapping_add(2 * t * dim + d * share), share);
            }
            let mut k = [V::splat(0.0); G];
            for (g, k) in k.iter_mut().enumerate() {
                *k = keys.get(t + g * V::LANES, d);
            }
            for (acc, q) in acc.iter_mut().zip(q) {
                let q = V::splat(*q.add(d));
                for (acc, k) in acc.iter_mut().zip(k) {
                    *acc = V::fma(q, k, *acc);
                }
            }
        }
        let scale = V::splat(scale);
        for (r, acc) in acc.iter().enumerate() {
            for (g, acc) in acc.iter().enumerate() {
                let out = out.add(r * SPAN + t + g * V::LANES);
                V::put(out, V::mul(*acc, scale));
            }
        }
    }
}

/// Scores of `R` queries from `first` on.
///
/// # Safety
/// As [`scores`], whose arguments these are.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn scores_of<V: Vector, S: Source<V>, const R: usize>(
    keys: S,
    first: usize,
    q: &Queries<'_>,
    (n, scale): (usize, f32),
    next: *const u8,
    scores: *mut f32,
) {
    let dim = q.dim;
    let mut at = [std::ptr::null(); R];
    for (r, at) in at.iter_mut().enumerate() {
        *at = q.get(first + r).as_ptr();
    }
    let mut t = 0;
    // SAFETY: by the contract.
    unsafe {
        let out = scores.add(first * SPAN);
        macro_rules! by {
            ($g:literal) => {
                while t + $g * V::LANES <= n.next_multiple_of(V::LANES) {
                    some_scores::<V, S, R, $g>(keys, t, &at, dim, scale, next, out);
                    t += $g * V::LANES;
                }
            };
        }
        if V::LANES == 16 {
            by!(4);
        } else {
            by!(2);
        }
        by!(1);
    }
}

/// `scores[i·SPAN + t] = (q[i] · k[t]) · scale` for the positions `t` that query `i` sees; behind
/// them more may be written, up to the end of a page. What is at `next`, any address, will be read next.
///
/// # Safety
/// `V`'s instruction set.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) unsafe fn scores<V: Vector>(
    q: &Queries<'_>,
    keys: Kept<'_>,
    seen: Seen,
    scale: f32,
    next: *const u8,
    scores: &mut [f32],
) {
    let Some(last) = q.n.checked_sub(1) else {
        return;
    };
    let all = seen.of(last).next_multiple_of(KV_PAGE);
    assert!(scores.len() >= last * SPAN + all);
    match keys {
        Kept::Halves(bytes) => assert!(bytes.len() >= 2 * all * q.dim),
        Kept::Tile(floats) => assert!(all <= TILE && floats.len() >= q.dim * TILE),
    }
    let mut first = 0;
    while first < q.n {
        let now = together(q.n - first, V::LANES);
        let what = (seen.of(first + now - 1), scale);
        // Once is enough.
        let next = if first == 0 { next } else { std::ptr::null() };
        macro_rules! queries {
            ($r:literal) => {
                match keys {
                    Kept::Halves(bytes) => {
                        let keys = Pages(bytes.as_ptr(), q.dim);
                        scores_of::<V, _, $r>(keys, first, q, what, next, scores.as_mut_ptr());
                    }
                    Kept::Tile(floats) => {
                        let (keys, none) = (Columns(floats.as_ptr()), std::ptr::null());
                        scores_of::<V, _, $r>(keys, first, q, what, none, scores.as_mut_ptr());
                    }
                }
            };
        }
        // SAFETY: by the contract and the assertions.
        unsafe {
            match now {
                1 => queries!(1),
                2 => queries!(2),
                3 => queries!(3),
                4 => queries!(4),
                _ => queries!(6),
            }
        }
        first += now;
    }
}

/// The keys of `n` positions of pages of f16, `n` a multiple of a page, as a tile.
///
/// # Safety
/// `V`'s instruction set.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) unsafe fn key_tile<V: Vector>(keys: &[u8], n: usize, dim: usize, tile: &mut [f32]) {
    assert!(n <= TILE && n.is_multiple_of(KV_PAGE));
    assert!(keys.len() >= 2 * n * dim && tile.len() >= dim * TILE);
    for t in (0..n).step_by(V::LANES) {
        for d in 0..dim {
            // SAFETY: by the contract and the assertions.
            unsafe {
                let k = Source::<V>::get(Pages(keys.as_ptr(), dim), t, d);
                V::put(tile.as_mut_ptr().add(d * TILE + t), k);
            }
        }
    }
}

/// `W` vectors of sums, from dimension `d` on, of `R` queries: those so far and positions `range`.
///
/// # Safety
/// `V`'s instruction set; the values are there, a weight for each at `w[r]`, the sums in reach.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn some_sums<V: Vector, S: Source<V>, const R: usize, const W: usize>(
    values: S,
    range: std::ops::Range<usize>,
    d: usize,
    w: *const f32,
    (out, dim): (*mut f32, usize),
    next: *const u8,
) {
    // SAFETY: by the contract.
    unsafe {
        let mut acc = [[V::splat(0.0); W]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = V::get(out.add(r * dim + d + i * V::LANES));
            }
        }
        for t in range {
            if !next.is_null() {
                ask::<V>(next.wrapping_add(2 * t * dim), 2 * dim);
            }
            let mut v = [V::splat(0.0); W];
            for (i, v) in v.iter_mut().enumerate() {
                *v = values.get(t, d + i * V::LANES);
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let w = V::splat(*w.add(r * SPAN + t));
                for (acc, v) in acc.iter_mut().zip(v) {
                    *acc = V::fma(w, v, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (i, acc) in acc.iter().enumerate() {
                V::put(out.add(r * dim + d + i * V::LANES), *acc);
            }
        }
    }
}

/// Adds positions `range` to the sums of `R` queries. Returns the dimensions that are done.
///
/// # Safety
/// As [`some_sums`].
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn sums_of<V: Vector, S: Source<V>, const R: usize>(
    values: S,
    range: std::ops::Range<usize>,
    w: *const f32,
    out: (*mut f32, usize),
    next: *const u8,
) -> usize {
    let dim = out.1;
    let mut d = 0;
    // Once is enough.
    let mut next = next;
    macro_rules! by {
        ($w:literal) => {
            while d + $w * V::LANES <= dim {
                // SAFETY: by the contract.
                unsafe { some_sums::<V, S, R, $w>(values, range.clone(), d, w, out, next) };
                d += $w * V::LANES;
                next = std::ptr::null();
            }
        };
    }
    if V::LANES == 16 {
        by!(4);
    } else {
        by!(2);
    }
    by!(1);
    d
}

/// `sums[i·D + d] += Σ weights[i·SPAN + t] · v[t][d]` over the positions `t` that query `i` sees of `n`
/// queries. What is at `next`, any address, will be read next.
///
/// # Safety
/// `V`'s instruction set.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) unsafe fn add_sums<V: Vector>(
    weights: &[f32],
    values: Kept<'_>,
    (n, dim): (usize, usize),
    seen: Seen,
    next: *const u8,
    sums: &mut [f32],
) {
    let Some(last) = n.checked_sub(1) else {
        return;
    };
    let all = seen.of(last);
    assert!(weights.len() >= last * SPAN + all && sums.len() >= n * dim);
    match values {
        Kept::Halves(bytes) => assert!(bytes.len() >= 2 * all * dim),
        Kept::Tile(floats) => assert!(floats.len() >= all * dim),
    }
    let mut first = 0;
    while first < n {
        let now = together(n - first, V::LANES);
        let common = seen.of(first);
        let next = if first == 0 { next } else { std::ptr::null() };
        macro_rules! queries {
            ($r:literal, $first:expr, $range:expr, $next:expr) => {{
                let w = weights.as_ptr().add($first * SPAN);
                let out = (sums.as_mut_ptr().add($first * dim), dim);
                match values {
                    Kept::Halves(bytes) => {
                        let values = HalfRows(bytes.as_ptr(), dim);
                        sums_of::<V, _, $r>(values, $range, w, out, $next)
                    }
                    Kept::Tile(floats) => {
                        let values = Rows(floats.as_ptr(), dim);
                        sums_of::<V, _, $r>(values, $range, w, out, std::ptr::null())
                    }
                }
            }};
        }
        // SAFETY: by the contract and the assertions.
        let done = unsafe {
            match now {
                1 => queries!(1, first, 0..common, next),
                2 => queries!(2, first, 0..common, next),
                3 => queries!(3, first, 0..common, next),
                4 => queries!(4, first, 0..common, next),
                _ => queries!(6, first, 0..common, next),
            }
        };
        for i in first..first + now {
            let rest = common..seen.of(i);
            if !rest.is_empty() {
                // SAFETY: as above.
                unsafe { queries!(1, i, rest, std::ptr::null()) };
            }
            if done < dim {
                let out = &mut sums[i * dim + done..(i + 1) * dim];
                add_plainly(&weights[i * SPAN..], values, (done, dim), seen.of(i), out);
            }
        }
        first += now;
    }
}

/// Dimensions from `from` on of a sum over `n` positions.
#[inline(always)]
fn add_plainly(
    w: &[f32],
    values: Kept<'_>,
    (from, dim): (usize, usize),
    n: usize,
    sums: &mut [f32],
) {
    for (t, w) in w.iter().enumerate().take(n) {
        for (d, sum) in (t * dim + from..).zip(sums.iter_mut()) {
            let v = match values {
                Kept::Halves(bytes) => half(bytes, d),
                Kept::Tile(floats) => floats[d],
            };
            *sum = w.mul_add(v, *sum);
        }
    }
}

#[inline(always)]
fn half(bytes: &[u8], i: usize) -> f32 {
    half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32()
}

/// What [`scores`] are.
pub(super) fn plain_scores(
    q: &Queries<'_>,
    keys: Kept<'_>,
    seen: Seen,
    scale: f32,
    scores: &mut [f32],
) {
    for (i, scores) in scores.chunks_mut(SPAN).enumerate().take(q.n) {
        for (t, score) in scores.iter_mut().enumerate().take(seen.of(i)) {
            let own = q.get(i).iter().enumerate();
            let dot = own.fold(0.0_f32, |acc, (d, own)| {
                let k = match keys {
                    Kept::Halves(bytes) => half(bytes, half_of_key(t, d, q.dim)),
                    Kept::Tile(floats) => floats[d * TILE + t],
                };
                own.mul_add(k, acc)
            });
            *score = dot * scale;
        }
    }
}

/// What [`add_sums`] adds.
pub(super) fn add_plain_sums(
    weights: &[f32],
    values: Kept<'_>,
    (n, dim): (usize, usize),
    seen: Seen,
    sums: &mut [f32],
) {
    let each = weights.chunks(SPAN).zip(sums.chunks_exact_mut(dim));
    for (i, (w, sums)) in each.enumerate().take(n) {
        add_plainly(w, values, (0, dim), seen.of(i), sums);
    }
}

/// What [`key_tile`] is.
pub(super) fn plain_key_tile(keys: &[u8], n: usize, dim: usize, tile: &mut [f32]) {
    for (d, tile) in tile.chunks_exact_mut(TILE).enumerate().take(dim) {
        for (t, k) in tile.iter_mut().enumerate().take(n) {
            *k = half(keys, half_of_key(t, d, dim));
        }
    }
}
