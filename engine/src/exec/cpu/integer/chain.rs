//! The chains of sums along K that `super` describes, for vectors: lanes are rows of weights.

// As in `tile`.
#![allow(clippy::inline_always)]

use std::ops::Range;

use super::panel::Panel;
use super::super256::{Scales, high_byte};
use super::tile::{Blocks, PANEL};
use super::vector::Vector;
use super::{BLOCK, Begin, CodeBlock, Codes};

/// Sums of a tile's products, and those of the super-block that is under way, which nothing has been put to
/// before its first block.
#[derive(Clone, Copy)]
pub(in super::super) struct Sums {
    pub(super) acc: Places,
    pub(super) inner: Places,
}

/// `V::LANES` floats for each activation row.
#[derive(Clone, Copy)]
pub(in super::super) struct Places(pub(super) *mut f32);

impl Places {
    /// Those of activation row `t`.
    ///
    /// # Safety
    /// `V`'s instruction set; there is such a row, and something has been put there.
    #[inline(always)]
    pub(super) unsafe fn get<V: Vector>(self, t: usize) -> V::F {
        // SAFETY: by the contract.
        unsafe { V::get(self.0.add(t * V::LANES)) }
    }

    /// Those of activation row `t` from now on.
    ///
    /// # Safety
    /// `V`'s instruction set; there is such a row.
    #[inline(always)]
    pub(super) unsafe fn put<V: Vector>(self, t: usize, v: V::F) {
        // SAFETY: by the contract.
        unsafe { V::put(self.0.add(t * V::LANES), v) };
    }
}

/// A block of activation rows, and what their sums begin with, if the weights have an offset.
#[derive(Clone, Copy)]
pub(in super::super) struct Acts<'a> {
    pub(super) codes: &'a [CodeBlock],
    pub(super) begins: &'a [Begin],
}

impl<'a> Acts<'a> {
    /// Block `b` of rows `acts` of `x`, for weights whose offset is `offset`.
    ///
    /// # Safety
    /// There are such a block and such rows.
    #[inline(always)]
    pub(super) unsafe fn of(x: &'a Codes, offset: u32, b: usize, acts: &Range<usize>) -> Self {
        let begins = x.begins(offset, b).get(acts.clone());
        Self {
            // SAFETY: by the contract.
            codes: unsafe { x.of(b).get_unchecked(acts.clone()) },
            begins: begins.unwrap_or_default(),
        }
    }

    /// What the sum of row `t` begins with in the first half of the block (1) or the last (2).
    ///
    /// # Safety
    /// `V`'s instruction set; there is such a row.
    #[inline(always)]
    unsafe fn begin<V: Vector, T: Blocks<V>>(&self, t: usize, part: usize) -> V {
        // SAFETY: by the contract.
        unsafe {
            V::lanes(if takes::<V, T>() {
                self.begins.get_unchecked(t)[part - 1]
            } else {
                0
            })
        }
    }
}

/// Types whose groups are whole blocks of 32: scales, and minima if there are any.
pub(in super::super) trait Whole<V: Vector>: Blocks<V> {
    /// Scale and minimum of block `b` of the panel.
    ///
    /// # Safety
    /// `V`'s instruction set; `p` is readable, and `head` is of it.
    unsafe fn scales(p: impl Panel<V>, head: &Self::Head, b: usize) -> (V::F, V::F);
}

/// Types of super-blocks whose groups are halves of a block of 32.
pub(in super::super) trait Halved<V: Vector>: Blocks<V, Head = Scales<V>> {
    /// The scale of group `g` of the panel, a whole number of 8 bits.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn size(head: &Scales<V>, g: usize) -> V {
        // SAFETY: by the contract.
        unsafe { high_byte(&head.sizes, g) }
    }

    /// The minimum of group `g` of the panel, if groups have one.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn min(_: &Scales<V>, _: usize) -> V::F {
        // SAFETY: by the contract.
        unsafe { V::splat(0.0) }
    }
}

/// How products of blocks are summed: `[acc, inner]` are the sums so far.
pub(in super::super) trait Chain<V: Vector, T: Blocks<V>> {
    /// Whether two blocks of many activation rows are taken together.
    const TWO: bool = false;

    /// The sums with block `b` of a panel, whose quants are `q`, and one activation row.
    ///
    /// # Safety
    /// `V`'s instruction set; the panel `p` is readable, and `head` is of it.
    unsafe fn one(
        p: impl Panel<V>,
        head: &T::Head,
        b: usize,
        q: &[V; 8],
        x: &CodeBlock,
        s: [V::F; 2],
    ) -> [V::F; 2];

    /// The sums of one activation row at the end of a panel.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn end(_: &T::Head, s: [V::F; 2]) -> [V::F; 2] {
        s
    }

    /// [`one`](Self::one) for all activation rows and the `N` blocks from `b` on of a panel; at its last
    /// block with [`end`](Self::end). So a sum goes to memory and back once for `N` blocks.
    ///
    /// # Safety
    /// As there; `sums` are of as many rows as each of `x`, and if the weights have an offset, so are
    /// its `begins`; the blocks of a panel come one after the other, from the first on.
    unsafe fn many<const N: usize>(
        p: impl Panel<V>,
        head: &T::Head,
        b: usize,
        q: &[[V; 8]; N],
        x: [Acts<'_>; N],
        sums: Sums,
    );
}

/// Whether sums begin with what the weights' offset takes off.
#[inline(always)]
const fn takes<V: Vector, T: Blocks<V>>() -> bool {
    T::OFFSET > 0 && !(V::SIGNED && T::MAX == 255)
}

/// What the sum of a part of a block begins with.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn begin<V: Vector, T: Blocks<V>>(x: &CodeBlock, part: usize) -> V {
    // SAFETY: by the contract.
    unsafe {
        if takes::<V, T>() {
            V::lanes(x.minus[part]).shl(T::OFFSET.trailing_zeros() as usize)
        } else {
            V::lanes(0)
        }
    }
}

/// `init` plus the product of a group, whose words `w` are those from `at` on of a block, and
/// activations `x`.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn dot<V: Vector, T: Blocks<V>, const N: usize>(
    init: V,
    x: &CodeBlock,
    w: &[V; N],
    at: usize,
) -> V {
    // SAFETY: by the contract.
    unsafe {
        let codes = x.codes.as_ptr().add(4 * at);
        if T::MAX == 255 {
            V::dot::<N, 255>(init, w, codes)
        } else if T::MAX > 31 {
            V::dot::<N, 63>(init, w, codes)
        } else if T::MAX > 15 {
            V::dot::<N, 31>(init, w, codes)
        } else {
            V::dot::<N, 15>(init, w, codes)
        }
    }
}

/// [`dot`] for two activation rows.
///
/// # Safety
/// `V`'s instruction set.
#[inline(always)]
unsafe fn dot_pair<V: Vector, T: Blocks<V>, const N: usize>(
    init: [V; 2],
    x: &[CodeBlock],
    w: &[V; N],
    at: usize,
) -> [V; 2] {
    // SAFETY: by the contract.
    unsafe {
        let codes = [
            x[0].codes.as_ptr().add(4 * at),
            x[1].codes.as_ptr().add(4 * at),
        ];
        if T::MAX == 255 {
            V::dot_pair::<N, 255>(init, w, codes)
        } else if T::MAX > 31 {
            V::dot_pair::<N, 63>(init, w, codes)
        } else if T::MAX > 15 {
            V::dot_pair::<N, 31>(init, w, codes)
        } else {
            V::dot_pair::<N, 15>(init, w, codes)
        }
    }
}

/// The two halves of a block's words.
#[inline(always)]
fn halves<V: Copy>(q: &[V; 8]) -> [[V; 4]; 2] {
    [[q[0], q[1], q[2], q[3]], [q[4], q[5], q[6], q[7]]]
}

/// Of `n` activation rows those that are taken by two, where that is cheaper.
#[inline(always)]
fn by_two<V: Vector>(n: usize) -> usize {
    if V::PAIRS { n / 2 * 2 } else { 0 }
}

/// Block after block, scaled one by one.
pub(in super::super) struct Wholes;

impl Wholes {
    /// `acc` plus `i`, the products of a block, scaled.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn add<V: Vector, T: Blocks<V>>(
        x: &CodeBlock,
        i: V,
        (scale, min): (V::F, V::F),
        acc: V::F,
    ) -> V::F {
        // SAFETY: by the contract.
        unsafe {
            let acc = V::fma(V::mul(scale, V::splat(x.scale)), i.float(), acc);
            if T::MIN {
                V::fma(min, V::splat(x.sum[0]), acc)
            } else {
                acc
            }
        }
    }
}

impl<V: Vector, T: Whole<V>> Chain<V, T> for Wholes {
    #[inline(always)]
    unsafe fn one(
        p: impl Panel<V>,
        head: &T::Head,
        b: usize,
        q: &[V; 8],
        x: &CodeBlock,
        [acc, inner]: [V::F; 2],
    ) -> [V::F; 2] {
        // SAFETY: by the contract.
        unsafe {
            let scales = T::scales(p, head, b);
            let i = dot::<V, T, 8>(begin::<V, T>(x, 0), x, q, 0);
            [V::now(Self::add::<V, T>(x, i, scales, acc)), inner]
        }
    }

    #[inline(always)]
    unsafe fn many<const N: usize>(
        p: impl Panel<V>,
        head: &T::Head,
        b: usize,
        q: &[[V; 8]; N],
        x: [Acts<'_>; N],
        sums: Sums,
    ) {
        let rows = x[0].codes.len();
        let pairs = by_two::<V>(rows);
        // SAFETY: by the contract.
        unsafe {
            let mut scales = [(V::splat(0.0), V::splat(0.0)); N];
            for (n, s) in scales.iter_mut().enumerate() {
                *s = T::scales(p, head, b + n);
            }
            for t in (0..pairs).step_by(2) {
                let mut acc = [sums.acc.get::<V>(t), sums.acc.get::<V>(t + 1)];
                for n in 0..N {
                    let codes = x[n].codes.get_unchecked(t..t + 2);
                    let init = [begin::<V, T>(&codes[0], 0), begin::<V, T>(&codes[1], 0)];
                    let [i, j] = dot_pair::<V, T, 8>(init, codes, &q[n], 0);
                    acc[0] = Self::add::<V, T>(&codes[0], i, scales[n], acc[0]);
                    acc[1] = Self::add::<V, T>(&codes[1], j, scales[n], acc[1]);
                }
                sums.acc.put::<V>(t, acc[0]);
                sums.acc.put::<V>(t + 1, acc[1]);
            }
            for t in pairs..rows {
                let mut acc = sums.acc.get::<V>(t);
                for n in 0..N {
                    let codes = x[n].codes.get_unchecked(t);
                    let i = dot::<V, T, 8>(begin::<V, T>(codes, 0), codes, &q[n], 0);
                    acc = Self::add::<V, T>(codes, i, scales[n], acc);
                }
                sums.acc.put::<V>(t, acc);
            }
        }
    }
}

/// Super-blocks of halved blocks: the two groups of a block are weighed as whole numbers.
pub(in super::super) struct Halves;

/// What two groups are weighed with, and their minima.
#[derive(Clone, Copy)]
struct Weights<V: Vector> {
    sizes: [V; 2],
    floats: [V::F; 2],
    mins: [V::F; 2],
}

impl Halves {
    /// Whether the products of a group fit into 16 bits, whatever has been taken off.
    const fn small(max: u8) -> bool {
        (max as i32) * 127 * (BLOCK as i32 / 2) < 1 << 15
    }

    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn weights<V: Vector, T: Halved<V>>(head: &T::Head, b: usize) -> Weights<V> {
        // SAFETY: by the contract.
        unsafe {
            let sizes = [T::size(head, 2 * b), T::size(head, 2 * b + 1)];
            Weights {
                sizes: V::couple(sizes),
                floats: [sizes[0].float(), sizes[1].float()],
                mins: [T::min(head, 2 * b), T::min(head, 2 * b + 1)],
            }
        }
    }

    /// The sums with a block, of whose groups the products are `i` and `j`.
    ///
    /// # Safety
    /// `V`'s instruction set.
    #[inline(always)]
    unsafe fn add<V: Vector, T: Halved<V>>(
        x: &CodeBlock,
        [i, j]: [V; 2],
        w: &Weights<V>,
        [mut acc, inner]: [V::F; 2],
    ) -> [V::F; 2] {
        // SAFETY: by the contract.
        unsafe {
            // Below 2²⁴ either way, and so the same number.
            let t = if Self::small(T::MAX) {
                V::weigh(i, j, &w.sizes).float()
            } else {
                V::fma(j.float(), w.floats[1], V::mul(i.float(), w.floats[0]))
            };
            if T::MIN {
                acc = V::fma(w.mins[0], V::splat(x.sum[1]), acc);
                acc = V::fma(w.mins[1], V::splat(x.sum[2]), acc);
            }
            [acc, V::fma(t, V::splat(x.scale), inner)]
        }
    }

    /// The sums of row `t` before the blocks that come; `FIRST` if a super-block begins with them, `LAST` if one
    /// ends.
    ///
    /// # Safety
    /// `V`'s instruction set; there is such a row.
    #[inline(always)]
    unsafe fn start<V: Vector, T: Halved<V>, const FIRST: bool, const LAST: bool>(
        sums: Sums,
        t: usize,
    ) -> [V::F; 2] {
        // SAFETY: by the contract.
        unsafe {
            let zero = V::splat(0.0);
            [
                if T::MIN || LAST {
                    sums.acc.get::<V>(t)
                } else {
                    zero
                },
                if FIRST { zero } else { sums.inner.get::<V>(t) },
            ]
        }
    }

    /// Keeps the sums of row `t`.
    ///
    /// # Safety
    /// As [`start`](Self::start).
    #[inline(always)]
    unsafe fn keep<V: Vector, T: Halved<V>, const LAST: bool>(
        head: &T::Head,
        s: [V::F; 2],
        sums: Sums,
        t: usize,
    ) {
        // SAFETY: by the contract.
        unsafe {
            if LAST {
                let [acc, _] = <Self as Chain<V, T>>::end(head, s);
                sums.acc.put::<V>(t, acc);
            } else {
                if T::MIN {
                    sums.acc.put::<V>(t, s[0]);
                }
                sums.inner.put::<V>(t, s[1]);
            }
        }
    }

    /// [`many`](Chain::many) where it is known whether a super-block begins or ends.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn part<V, T, const N: usize, const FIRST: bool, const LAST: bool>(
        head: &T::Head,
        b: usize,
        q: &[[V; 8]; N],
        x: [Acts<'_>; N],
        sums: Sums,
    ) where
        V: Vector,
        T: Halved<V>,
    {
        let rows = x[0].codes.len();
        let pairs = by_two::<V>(rows);
        // SAFETY: by the contract.
        unsafe {
            let mut w = [Self::weights::<V, T>(head, b); N];
            for (n, w) in w.iter_mut().enumerate().skip(1) {
                *w = Self::weights::<V, T>(head, b + n);
            }
            for t in (0..pairs).step_by(2) {
                let mut s = [
                    Self::start::<V, T, FIRST, LAST>(sums, t),
                    Self::start::<V, T, FIRST, LAST>(sums, t + 1),
                ];
                for n in 0..N {
                    let [first, last] = halves(&q[n]);
                    let codes = x[n].codes.get_unchecked(t..t + 2);
                    let init = [x[n].begin::<V, T>(t, 1), x[n].begin::<V, T>(t + 1, 1)];
                    let [i, k] = dot_pair::<V, T, 4>(init, codes, &first, 0);
                    let init = [x[n].begin::<V, T>(t, 2), x[n].begin::<V, T>(t + 1, 2)];
                    let [j, l] = dot_pair::<V, T, 4>(init, codes, &last, 4);
                    s[0] = Self::add::<V, T>(&codes[0], [i, j], &w[n], s[0]);
                    s[1] = Self::add::<V, T>(&codes[1], [k, l], &w[n], s[1]);
                }
                Self::keep::<V, T, LAST>(head, s[0], sums, t);
                Self::keep::<V, T, LAST>(head, s[1], sums, t + 1);
            }
            for t in pairs..rows {
                let mut s = Self::start::<V, T, FIRST, LAST>(sums, t);
                for n in 0..N {
                    let [first, last] = halves(&q[n]);
                    let codes = x[n].codes.get_unchecked(t);
                    let i = dot::<V, T, 4>(x[n].begin::<V, T>(t, 1), codes, &first, 0);
                    let j = dot::<V, T, 4>(x[n].begin::<V, T>(t, 2), codes, &last, 4);
                    s = Self::add::<V, T>(codes, [i, j], &w[n], s);
                }
                Self::keep::<V, T, LAST>(head, s, sums, t);
            }
        }
    }
}

impl<V: Vector, T: Halved<V>> Chain<V, T> for Halves {
    const TWO: bool = V::TWO;

    #[inline(always)]
    unsafe fn one(
        _: impl Panel<V>,
        head: &T::Head,
        b: usize,
        q: &[V; 8],
        x: &CodeBlock,
        s: [V::F; 2],
    ) -> [V::F; 2] {
        let [first, last] = halves(q);
        // SAFETY: by the contract.
        unsafe {
            let products = [
                dot::<V, T, 4>(begin::<V, T>(x, 1), x, &first, 0),
                dot::<V, T, 4>(begin::<V, T>(x, 2), x, &last, 4),
            ];
            let [acc, inner] = Self::add::<V, T>(x, products, &Self::weights::<V, T>(head, b), s);
            [acc, V::now(inner)]
        }
    }

    #[inline(always)]
    unsafe fn end(head: &T::Head, [acc, inner]: [V::F; 2]) -> [V::F; 2] {
        // SAFETY: by the contract.
        unsafe { [V::fma(head.d, inner, acc), V::splat(0.0)] }
    }

    #[inline(always)]
    unsafe fn many<const N: usize>(
        _: impl Panel<V>,
        head: &T::Head,
        b: usize,
        q: &[[V; 8]; N],
        x: [Acts<'_>; N],
        sums: Sums,
    ) {
        // SAFETY: by the contract.
        unsafe {
            if b == 0 {
                Self::part::<V, T, N, true, false>(head, b, q, x, sums);
            } else if b + N < PANEL {
                Self::part::<V, T, N, false, false>(head, b, q, x, sums);
            } else {
                Self::part::<V, T, N, false, true>(head, b, q, x, sums);
            }
        }
    }
}
