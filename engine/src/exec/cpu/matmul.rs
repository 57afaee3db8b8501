//! Weight matrices times activation rows, over the pool.

use std::ops::Range;

use formats::blocks::BlockType;

use super::integer::{self, Codes, Matrix};
use super::isa::Isa;
use super::lanes::LANES;
use super::pool::Session;
use super::scalar::{Grouping, grouping};
use crate::model::{Tensor, Tiles};

/// Columns are padded to whole groups of the widest kind.
const PAD: usize = 32;
/// Weight rows that one item takes at least: enough work to outweigh the claim.
const GRAIN: usize = 16;

/// Bytes of weights that are worth a claim.
const GRAIN_BYTES: usize = 24 << 10;

/// Activation rows prepared for kernels: padded with zeros to a multiple of 32 columns, with the
/// lane sums of their groups when a weight type has minima.
#[derive(Debug, Default)]
pub(crate) struct ActBuf {
    rows: usize,
    cols: usize,
    stride: usize,
    x: Vec<f32>,
    sums: [Vec<f32>; 2],
    has_sums: [bool; 2],
    codes: Codes,
    has_codes: bool,
}

impl ActBuf {
    /// The place to write `rows × cols` activations: rows of [`stride`](Self::stride) values. All of
    /// them are to be written; only what lies between rows is zero already.
    pub(crate) fn reset(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        self.rows = rows;
        self.cols = cols;
        self.stride = cols.next_multiple_of(PAD);
        if self.stride > cols {
            self.x.clear();
        }
        self.x.resize(rows * self.stride, 0.0);
        self.has_sums = [false; 2];
        self.has_codes = false;
        &mut self.x
    }

    /// Values from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The values, padding included.
    pub(crate) fn values(&self) -> &[f32] {
        &self.x
    }

    /// Values of a row that are not padding.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The values, to change them in place before the first product.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        self.has_sums = [false; 2];
        self.has_codes = false;
        &mut self.x
    }

    /// The rows as codes of 8 bits for weights of `types`, made when first asked for.
    pub(super) fn codes(
        &mut self,
        session: &Session<'_>,
        isa: Isa,
        types: impl Iterator<Item = BlockType>,
    ) -> &Codes {
        if !self.has_codes {
            self.codes
                .fill(session, isa, &self.x, self.rows, self.stride);
            self.has_codes = true;
        }
        types.for_each(|ty| self.codes.prepare(session, ty));
        &self.codes
    }

    pub(super) fn view(&mut self, g: Grouping) -> Acts<'_> {
        let which = usize::from(g.group == 16);
        if g.min && !self.has_sums[which] {
            let sums = &mut self.sums[which];
            sums.clear();
            sums.resize(self.rows * self.stride / g.group * LANES, 0.0);
            for (out, x) in sums
                .chunks_exact_mut(LANES)
                .zip(self.x.chunks_exact(g.group))
            {
                out.copy_from_slice(&x[..LANES]);
                for x in x[LANES..].chunks_exact(LANES) {
                    for (o, x) in out.iter_mut().zip(x) {
                        *o += x;
                    }
                }
            }
            self.has_sums[which] = true;
        }
        Acts {
            x: &self.x,
            sums: if g.min { &self.sums[which] } else { &[] },
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
            groups: self.stride / g.group,
        }
    }
}

/// Activation rows as kernels see them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acts<'a> {
    x: &'a [f32],
    sums: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
    groups: usize,
}

impl Acts<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Row `r`, zeros to the next multiple of 32 included.
    pub(crate) fn padded_row(&self, r: usize) -> &[f32] {
        &self.x[r * self.stride..(r + 1) * self.stride]
    }

    /// Lane sums of all groups of row `r`; empty when the type has no minima.
    pub(crate) fn sums(&self, r: usize) -> &[f32] {
        let n = self.groups * LANES;
        self.sums.get(r * n..(r + 1) * n).unwrap_or(&[])
    }

    /// Lane sums of group `g` of row `r`.
    pub(crate) fn group_sum(&self, r: usize, g: usize) -> &[f32] {
        &self.sums(r)[g * LANES..(g + 1) * LANES]
    }
}

/// Where products go: value `i` of row `r` at `r × stride + i`. Tasks write disjoint columns.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    ptr: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: a plain address; `set` is only called for columns that one task owns.
unsafe impl Sync for Out {}
// SAFETY: as above.
unsafe impl Send for Out {}

impl Out {
    pub(crate) fn new(values: &mut [f32], stride: usize) -> Self {
        Self {
            ptr: values.as_mut_ptr(),
            len: values.len(),
            stride,
        }
    }

    /// `n` columns of row `r` from `i` on.
    ///
    /// # Safety
    /// As [`set`](Self::set), for all of them, as long as the slice lives.
    #[allow(clippy::mut_from_ref)] // the point of the type
    pub(crate) unsafe fn slice(&self, r: usize, i: usize, n: usize) -> &mut [f32] {
        let at = r * self.stride + i;
        assert!(at + n <= self.len);
        // SAFETY: in range; exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(at), n) }
    }

    /// Writes column `i` of row `r`.
    ///
    /// # Safety
    /// No other thread may access that value at the same time, and the slice given to `new` must
    /// still be borrowed by the caller.
    #[inline]
    pub(crate) unsafe fn set(&self, r: usize, i: usize, v: f32) {
        let at = r * self.stride + i;
        debug_assert!(at < self.len);
        if at < self.len {
            // SAFETY: in range; exclusive by the contract above.
            unsafe { *self.ptr.add(at) = v }
        }
    }
}

/// How products are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Math {
    pub(super) isa: Isa,
    pub(super) activations: Activations,
}

/// In what form activations meet the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// As they are.
    F32,
    /// As codes of 8 bits, where the weights' type has a kernel for that; the others as they are.
    Int8,
}

/// A matrix, where its products go, and from one row of them to the next: value `i` of row `r` is
/// at `r × stride + i`.
pub(super) type Product<'a> = (&'a Tensor, &'a mut [f32], usize);

/// `out[r × out_stride + i] = w[i] · x[r]` for every weight row `i` and activation row `r`.
pub(super) fn matmul(
    session: &Session<'_>,
    math: Math,
    w: &Tensor,
    x: &mut ActBuf,
    out: &mut [f32],
    out_stride: usize,
) {
    matmuls(session, math, x, [(w, out, out_stride)]);
}

/// `w` as the kernels of `isa` read it: in tiles if it has such.
fn matrix(isa: Isa, w: &Tensor) -> Matrix<'_> {
    let tiles = w.tiles().filter(|t| isa.lanes() == Some(t.rows));
    Matrix {
        block_type: w.block_type,
        bytes: tiles.map_or_else(|| w.data(), Tiles::bytes),
        row_bytes: w.row_bytes(),
        tiled: tiles.map(|t| t.rows),
    }
}

/// [`matmul`] for matrices that share their input, in one job where that can be.
pub(super) fn matmuls<const N: usize>(
    session: &Session<'_>,
    math: Math,
    x: &mut ActBuf,
    products: [Product<'_>; N],
) {
    for (w, out, stride) in &products {
        // The kernels trust these sizes.
        assert!(
            x.cols == w.cols && w.rows <= *stride,
            "{}: shapes differ",
            w.name
        );
        assert!(out.len() >= x.rows.saturating_sub(1) * stride + w.rows);
        assert_eq!(
            w.block_type.row_bytes(w.cols),
            Some(w.row_bytes()),
            "{}: not whole blocks",
            w.name
        );
        assert_eq!(w.data().len(), w.row_bytes() * w.rows);
    }
    let isa = math.isa;
    let whole = |w: &Tensor| math.activations == Activations::Int8 && integer::covers(w.block_type);
    if products.iter().all(|(w, ..)| whole(w)) {
        let codes = x.codes(session, isa, products.iter().map(|(w, ..)| w.block_type));
        let rows = products.iter().map(|(w, ..)| w.rows).sum();
        let bytes = products.iter().map(|(w, ..)| w.row_bytes()).max();
        let grain = GRAIN.max(GRAIN_BYTES / bytes.unwrap_or(1).max(1));
        // Who is last makes the others wait for half an item.
        let per = session.share(rows, grain, 16);
        let outs = products.map(|(w, out, stride)| (w, Out::new(out, stride)));
        let items = outs.iter().map(|(w, _)| w.rows.div_ceil(per)).sum();
        session.run(items, &|mut item| {
            for (w, out) in &outs {
                let here = w.rows.div_ceil(per);
                if item < here {
                    let rows = item * per..((item + 1) * per).min(w.rows);
                    isa.products(matrix(isa, w), rows, codes, *out);
                    return;
                }
                item -= here;
            }
        });
        return;
    }
    for (w, out, stride) in products {
        let out = Out::new(out, stride);
        if whole(w) {
            let codes = x.codes(session, isa, [w.block_type].into_iter());
            session.ranges(w.rows, GRAIN, &|rows: Range<usize>| {
                isa.products(matrix(isa, w), rows, codes, out);
            });
        } else {
            let acts = x.view(grouping(w.block_type));
            session.ranges(w.rows, GRAIN, &|rows: Range<usize>| {
                isa.matmul(w.block_type, w.data(), w.row_bytes(), rows, &acts, out);
            });
        }
    }
}
