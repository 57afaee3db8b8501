//! Products in whole numbers: activations as codes of 8 bits.
//!
//! An activation row is cut along K into blocks of 32. A block with the largest magnitude `a` has
//! the scale `d = a / 127` and the codes `c = round(x · 127 / a)`, ties to even. Weights are, as
//! everywhere, groups of 16 or 32 quants `q` with a scale `s` and maybe a minimum `m`. One product
//! is one chain along K, group after group:
//!
//! ```text
//! i   = Σ q·c                       (exact: whole numbers below 2^24)
//! acc = (s·d)·i + acc               (s·d rounded, then fused)
//! acc = m·(d·Σc) + acc              (d·Σc rounded, then fused)
//! ```
//!
//! Of groups of 16 two share a block's step, and their scales are whole numbers `z` times the
//! super-block's `u`. Weighed as whole numbers they cost less:
//!
//! ```text
//! t   = z·i + z'·i'                 (exact: whole numbers below 2^24)
//! sum = d·t + sum                   (fused; from 0 on over the blocks of a super-block)
//! acc = m·(d·Σc) + acc              (for either group, as above)
//! acc = u·sum + acc                 (fused; at the end of the super-block)
//! ```
//!
//! So the lanes of a vector are rows of weights, nothing is ever folded, and every instruction set
//! gives the same bits whatever its width: scalar code follows the same chain. A row's codes depend
//! on that row alone, so batches, chunks and threads change nothing.
//!
//! The minimum meets the sum of the *codes*, not of the activations: then a rounding error is
//! multiplied with the weight `s·q + m`, not with the larger `s·q`.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod block32;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod chain;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod entries;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod kv;
mod order;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod panel;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod super256;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
mod weights;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::borrow::Cow;

use formats::blocks::BlockType;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use entries::{entries, entry};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use kv::{scores as kv_scores, sums as kv_sums};
pub(super) use order::lay_tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use vector::{Rows, Vector};
pub(super) use weights::{Codes16, Factors, SPAN, soften};

use super::isa::Isa;
use super::pool::Session;

/// Columns of a block.
pub(super) const BLOCK: usize = 32;
/// Of the keys of the next span, 64ths that are asked for while scores are computed, and until they are
/// softened; the rest comes while weights become codes, and the values with the products. So requests are
/// spread over all that is computed as its parts take time: memory should never wait for the processor, and
/// the processor has but a few requests under way.
pub(super) const WITH_SCORES: usize = 27;
pub(super) const UNTIL_SOFTENED: usize = 40;
/// Below this magnitude a block counts as zero: 127 by it would overflow.
pub(super) const TINY: f32 = 1e-30;

/// Whether products with weights of type `ty` can run in whole numbers; the others stay in floats.
pub(super) fn covers(ty: BlockType) -> bool {
    use BlockType as T;
    match ty {
        T::Q4_0
        | T::Q4_1
        | T::Q5_0
        | T::Q5_1
        | T::Q8_0
        | T::IQ4_NL
        | T::IQ4_XS
        | T::MXFP4
        | T::Q2_K
        | T::Q3_K
        | T::Q4_K
        | T::Q5_K
        | T::Q6_K => true,
        T::F32
        | T::F16
        | T::BF16
        | T::IQ1_S
        | T::IQ1_M
        | T::IQ2_XXS
        | T::IQ2_XS
        | T::IQ2_S
        | T::IQ3_XXS
        | T::IQ3_S
        | T::TQ1_0
        | T::TQ2_0 => false,
    }
}

/// A weight matrix as kernels read it.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) block_type: BlockType,
    pub(super) bytes: &'a [u8],
    /// Bytes of a row.
    pub(super) row_bytes: usize,
    /// The rows of a tile, where they lie in tiles (`order` says how); otherwise they lie one behind the other.
    pub(super) tiled: Option<usize>,
}

/// What is taken off the quants of types of groups of 16, powers of two. In blocks of one group it is
/// one sum in eight products, and no trip to memory pays.
const OFFSETS: [u32; 2] = [4, 32];

/// Which of [`OFFSETS`] type `ty` has.
fn offset(ty: BlockType) -> Option<usize> {
    match ty {
        BlockType::Q3_K => Some(0),
        BlockType::Q6_K => Some(1),
        _ => None,
    }
}

/// 32 activations of one row as codes: one line of the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(super) struct CodeBlock {
    /// The codes, −127 to 127.
    pub(super) codes: [i8; BLOCK],
    /// The step.
    pub(super) scale: f32,
    /// Minus the sum of the codes: of all, of the first 16, of the last 16.
    pub(super) minus: [i32; 3],
    /// The sum of the codes times the step: of all, of the first 16, of the last 16.
    pub(super) sum: [f32; 3],
}

impl CodeBlock {
    pub(super) const ZERO: Self = Self {
        codes: [0; BLOCK],
        scale: 0.0,
        minus: [0; 3],
        sum: [0.0; 3],
    };

    /// Room for `n` blocks in `blocks`, for tasks to write to.
    pub(super) fn shared(blocks: &mut Vec<Self>, n: usize) -> Shared<Self> {
        blocks.resize(n, Self::ZERO);
        Shared::new(blocks)
    }
}

/// Items that tasks write to, each its own.
pub(super) struct Shared<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: a plain address; `set` is only called for items that one task owns.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn new(items: &mut [T]) -> Self {
        Self {
            ptr: items.as_mut_ptr(),
            len: items.len(),
        }
    }

    /// # Safety
    /// No other thread may access item `i` at the same time, and what [`new`](Self::new) was
    /// given must still be borrowed by the caller.
    pub(super) unsafe fn set(&self, i: usize, item: T) {
        assert!(i < self.len);
        // SAFETY: in range; exclusive by the contract.
        unsafe { *self.ptr.add(i) = item }
    }
}

/// What the offset of quants takes off a block: of the first 16, of the last 16.
type Begin = [i32; 2];

/// Activation rows as codes, block after block, in a block row after row.
#[derive(Debug, Default)]
pub(super) struct Codes {
    rows: usize,
    /// Blocks from a block of all rows to the next: odd, so that a row's blocks do not all want the same
    /// place of the cache.
    stride: usize,
    blocks: Vec<CodeBlock>,
    /// For each of [`OFFSETS`]: in the order of `blocks`.
    begins: [Vec<Begin>; OFFSETS.len()],
}

impl Codes {
    /// Turns `rows` rows of `stride` values (a multiple of [`BLOCK`]) into codes.
    pub(super) fn fill(
        &mut self,
        session: &Session<'_>,
        isa: Isa,
        x: &[f32],
        rows: usize,
        stride: usize,
    ) {
        self.rows = rows;
        self.stride = rows | 1;
        self.begins.iter_mut().for_each(Vec::clear);
        let apart = self.stride;
        let out = CodeBlock::shared(&mut self.blocks, apart * (stride / BLOCK));
        session.ranges(rows, 8, &|range| {
            for r in range {
                // SAFETY: row `r` belongs to this task alone, and each row has its own blocks.
                isa.encode(&x[r * stride..(r + 1) * stride], &mut |b, block| unsafe {
                    out.set(b * apart + r, block);
                });
            }
        });
    }

    /// Prepares for products with weights of type `ty`.
    pub(super) fn prepare(&mut self, session: &Session<'_>, ty: BlockType) {
        // One row does not repay the way to memory.
        let Some(which) = offset(ty).filter(|_| self.rows > 1) else {
            return;
        };
        let power = OFFSETS[which].trailing_zeros();
        let begins = &mut self.begins[which];
        if begins.is_empty() {
            begins.resize(self.blocks.len(), [0; 2]);
            let (blocks, out) = (&self.blocks, Shared::new(begins));
            session.ranges(blocks.len(), 512, &|range| {
                for i in range {
                    let [_, first, last] = blocks[i].minus.map(|m| m << power);
                    // SAFETY: item `i` belongs to this task alone.
                    unsafe { out.set(i, [first, last]) };
                }
            });
        }
    }

    /// Whether all is there that products with weights of type `ty` need.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn is_prepared(&self, ty: BlockType) -> bool {
        let which = offset(ty).filter(|_| self.rows > 1);
        which.is_none_or(|i| self.begins[i].len() == self.blocks.len())
    }

    /// What sums of block `b` of all rows begin with, for weights whose offset is `offset`; nothing if
    /// that is none of [`OFFSETS`], there is one row, or nobody has [prepared](Self::prepare) for it.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline]
    fn begins(&self, offset: u32, b: usize) -> &[Begin] {
        let which = OFFSETS.iter().position(|o| *o == offset);
        let all = which.map(|i| &self.begins[i]);
        all.and_then(|all| all.get(b * self.stride..b * self.stride + self.rows))
            .unwrap_or_default()
    }

    /// Activation rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks of a row.
    pub(super) fn per_row(&self) -> usize {
        self.blocks.len() / self.stride.max(1)
    }

    /// All blocks of row `r`, one behind the other.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn row(&self, r: usize) -> Cow<'_, [CodeBlock]> {
        match self.stride {
            1 => Cow::Borrowed(&self.blocks),
            n => self.blocks.iter().skip(r).step_by(n).copied().collect(),
        }
    }

    /// Block `b` of all rows.
    #[inline]
    pub(super) fn of(&self, b: usize) -> &[CodeBlock] {
        &self.blocks[b * self.stride..][..self.rows]
    }
}

/// Codes of one row: `out(b, block)` receives block `b`. The definition, and, compiled for wider
/// registers, an implementation.
#[inline(always)]
#[allow(clippy::inline_always)] // to be compiled with the features of the caller
pub(super) fn encode(x: &[f32], out: &mut dyn FnMut(usize, CodeBlock)) {
    // Adding 1.5·2²³ rounds a small number to a whole one, ties to even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        // In lanes, to be a vector's; a maximum does not depend on the order.
        let mut most = [0.0_f32; 8];
        let mut wrong = [0.0_f32; 8];
        for x in x.as_chunks::<8>().0 {
            for l in 0..8 {
                let a = x[l].abs();
                most[l] = if a > most[l] { a } else { most[l] };
                // Zero, but not for what is no number: that must stay visible.
                wrong[l] += x[l] * 0.0;
            }
        }
        let most = most.iter().fold(0.0, |m, a| if *a > m { *a } else { m });
        let wrong: f32 = wrong.iter().sum();
        let (inverse, scale) = if most > TINY {
            (127.0 / most, most / 127.0 + wrong)
        } else {
            (0.0, wrong)
        };
        let mut block = CodeBlock::ZERO;
        for (c, x) in block.codes.iter_mut().zip(x) {
            *c = (x * inverse + ROUND).to_bits() as i8;
        }
        let half = |c: &[i8]| c.iter().map(|c| i32::from(*c)).sum::<i32>();
        let (first, last) = (half(&block.codes[..16]), half(&block.codes[16..]));
        let sums = [first + last, first, last];
        block.scale = scale;
        block.minus = sums.map(|s| -s);
        block.sum = sums.map(|s| scale * s as f32);
        out(b, block);
    }
}
