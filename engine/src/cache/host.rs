//! Keys and values in this process's memory.
//!
//! A layer's keys, and likewise its values, lie head after head, each with room for all positions,
//! so that whoever reads a head reads on and on. In f16 values are position after position, and keys
//! *pages* of 16 positions, dimension after dimension (`exec/cpu/kv_floats.rs`). In q8_0
//! and q4_0 both are pages, laid out as the products in whole numbers want them
//! (`exec/cpu/integer/kv.rs`); a page takes as many bytes as 16 rows of those block types:
//!
//! ```text
//! page    = scales, then the codes of block 0, of block 1, …
//! scales  = block 0 of positions 0..16, block 1 of positions 0..16, …   (f16)
//! keys    word w of positions 0..16: four neighbouring dimensions each  (lanes are positions)
//! values  positions 0 and 1 of all dimensions, then 2 and 3, …          (lanes are dimensions)
//! ```
//!
//! Codes are stored raised by 128, or by 8, in keys and signed in values. Of 4 bits, a byte holds dimension `d` of the block's first half in the low nibble and `d + 16` in the high
//! one. What is not written yet is zero, and its scale too.

use std::fmt;

use formats::model::{HParams, KV_BLOCK, KV_PAGE, KvType};
use half::f16;
use half::slice::HalfFloatSliceExt as _;

/// Bytes of a line of the processor's cache: where pages start.
const LINE: usize = 64;

/// The shape of one position in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Heads of keys and values.
    pub heads: usize,
    /// Values of a head; for q8_0 and q4_0 a multiple of 32.
    pub head_dim: usize,
    /// Their form.
    pub kv_type: KvType,
}

impl KvShape {
    /// That of a model.
    pub fn of(hp: &HParams, kv_type: KvType) -> Self {
        Self {
            heads: hp.n_head_kv,
            head_dim: hp.head_dim,
            kv_type,
        }
    }

    /// Bytes of one head's keys, or values, of `n_ctx` positions.
    fn head_bytes(self, n_ctx: usize) -> Option<usize> {
        (self.kv_type.bytes(self.head_dim)).checked_mul(KvType::positions(n_ctx))
    }
}

/// Keys and values of some layers.
pub(super) struct HostKv {
    shape: KvShape,
    head_bytes: usize,
    per_layer: usize,
    keys: Zeroed,
    values: Zeroed,
}

impl fmt::Debug for HostKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKv")
            .field("shape", &self.shape)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Zeroed memory that begins with a line and that the system hands out page by page as it is touched: a
/// context that is not used costs nothing. (What is aligned more than an allocator does by itself is zeroed by
/// writing to it.)
struct Zeroed {
    bytes: Vec<u8>,
    from: usize,
    len: usize,
}

impl Zeroed {
    /// Nothing, without a heap.
    const NONE: Self = Self {
        bytes: Vec::new(),
        from: 0,
        len: 0,
    };

    fn new(len: usize) -> Option<Self> {
        let bytes: Vec<u8> = bytemuck::allocation::try_zeroed_vec(len.checked_add(LINE)?).ok()?;
        let from = bytes.as_ptr().align_offset(LINE).min(LINE);
        Some(Self { bytes, from, len })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..][..self.len]
    }
}

impl HostKv {
    pub(super) fn new(layers: usize, n_ctx: usize, shape: KvShape) -> Option<Self> {
        let head_bytes = shape.head_bytes(n_ctx)?;
        let per_layer = head_bytes.checked_mul(shape.heads)?;
        let bytes = layers.checked_mul(per_layer)?;
        Some(Self {
            shape,
            head_bytes,
            per_layer,
            keys: Zeroed::new(bytes)?,
            values: Zeroed::new(bytes)?,
        })
    }

    /// Nothing, without a heap.
    pub(super) fn none() -> Self {
        Self {
            shape: KvShape {
                heads: 0,
                head_dim: 0,
                kv_type: KvType::F16,
            },
            head_bytes: 0,
            per_layer: 0,
            keys: Zeroed::NONE,
            values: Zeroed::NONE,
        }
    }

    pub(super) fn shape(&self) -> KvShape {
        self.shape
    }

    pub(super) fn bytes(&self) -> usize {
        self.keys.len + self.values.len
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> LayerKv<'_> {
        let at = layer * self.per_layer..(layer + 1) * self.per_layer;
        LayerKv {
            shape: self.shape,
            head_bytes: self.head_bytes,
            keys: &mut self.keys.bytes_mut()[at.clone()],
            values: &mut self.values.bytes_mut()[at],
        }
    }
}

/// Keys and values of one layer.
pub(crate) struct LayerKv<'a> {
    shape: KvShape,
    head_bytes: usize,
    keys: &'a mut [u8],
    values: &'a mut [u8],
}

impl LayerKv<'_> {
    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    /// All keys of head `h`, as they lie.
    pub(crate) fn keys(&self, h: usize) -> &[u8] {
        &self.keys[h * self.head_bytes..(h + 1) * self.head_bytes]
    }

    /// All values of head `h`, as they lie.
    pub(crate) fn values(&self, h: usize) -> &[u8] {
        &self.values[h * self.head_bytes..(h + 1) * self.head_bytes]
    }

    /// Keeps the keys and values (all heads) of position `at`. What is written depends on them
    /// alone.
    pub(crate) fn put(&mut self, at: usize, keys: &[f32], values: &[f32]) {
        let KvShape {
            head_dim, kv_type, ..
        } = self.shape;
        let sides = [
            (&mut *self.keys, keys, Side::Keys),
            (&mut *self.values, values, Side::Values),
        ];
        for (bytes, x, side) in sides {
            let heads = bytes.chunks_exact_mut(self.head_bytes.max(1));
            for (head, x) in heads.zip(x.chunks_exact(head_dim)) {
                match kv_type {
                    KvType::F16 => {
                        put_f16(bytemuck::cast_slice_mut(head), side, at, x);
                    }
                    KvType::Q8_0 => put_q8_0(head, side, at, x),
                    KvType::Q4_0 => put_q4_0(head, side, at, x),
                }
            }
        }
    }
}

/// Which half of a cache: they lie differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Keys,
    Values,
}

/// A page of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Blocks of a row.
    pub(crate) blocks: usize,
    /// Bytes of the codes of a block of all positions.
    pub(crate) codes: usize,
}

impl Page {
    /// Bytes of the scales of a block.
    pub(crate) const SCALES: usize = 2 * KV_PAGE;

    pub(crate) const fn of(kv_type: KvType, head_dim: usize) -> Self {
        Self {
            blocks: head_dim / KV_BLOCK,
            codes: KV_PAGE * (kv_type.block_bytes() - 2),
        }
    }

    /// Bytes of a page.
    pub(crate) const fn bytes(self) -> usize {
        self.blocks * (Self::SCALES + self.codes)
    }

    /// Where the codes of block `b` start.
    pub(crate) const fn codes_at(self, b: usize) -> usize {
        self.blocks * Self::SCALES + b * self.codes
    }
}

impl Side {
    /// Where in a block's codes the byte of dimension `d` (of the first half, for 4 bits) of
    /// position `t` is; `dims` are those that have bytes of their own.
    #[inline]
    pub(crate) const fn byte(self, t: usize, d: usize, dims: usize) -> usize {
        match self {
            Self::Keys => d / 4 * (4 * KV_PAGE) + 4 * t + d % 4,
            Self::Values => t / 2 * (2 * dims) + 2 * d + t % 2,
        }
    }
}

/// The value of the largest magnitude (the negative one of equals) of a block, with its sign; NaN
/// where one is no number, so that it stays visible.
fn extreme(x: &[f32; KV_BLOCK]) -> f32 {
    let (mut high, mut low, mut wrong) = ([0.0_f32; 8], [0.0_f32; 8], [0.0_f32; 8]);
    for x in x.as_chunks::<8>().0 {
        for l in 0..8 {
            high[l] = if x[l] > high[l] { x[l] } else { high[l] };
            low[l] = if x[l] < low[l] { x[l] } else { low[l] };
            wrong[l] += x[l] * 0.0;
        }
    }
    let high = high.iter().fold(0.0, |m, v| if *v > m { *v } else { m });
    let low = low.iter().fold(0.0, |m, v| if *v < m { *v } else { m });
    let most: f32 = if high > -low { high } else { low };
    most + wrong.iter().sum::<f32>()
}

/// A scale as it is kept, and what codes are made with.
fn scale(step: f32) -> (f16, f32) {
    let kept = f16::from_f32(step);
    let d = kept.to_f32();
    // A block too small for a half float is zero, one too large infinite: codes are then of no use.
    let inverse = 1.0 / d;
    (kept, if inverse.is_finite() { inverse } else { 0.0 })
}

/// `x / step`, rounded to whole numbers (ties to even) between `least` and `most`.
fn codes(x: &[f32; KV_BLOCK], inverse: f32, least: f32, most: f32) -> [u8; KV_BLOCK] {
    // Adding 1.5·2²³ leaves a small number rounded in the low bits; a call to round would be slow.
    const ROUND: f32 = 12_582_912.0;
    let mut out = [0; KV_BLOCK];
    for (c, x) in out.iter_mut().zip(x) {
        *c = ((x * inverse).clamp(least, most) + ROUND).to_bits() as u8;
    }
    out
}

/// As half floats: keys in pages, for lanes that are positions, values one position after the other.
fn put_f16(head: &mut [f16], side: Side, at: usize, x: &[f32]) {
    let dim = x.len();
    match side {
        Side::Keys => {
            let mut row = [f16::ZERO; 64];
            for (i, x) in x.chunks(row.len()).enumerate() {
                let row = &mut row[..x.len()];
                row.convert_from_f32_slice(x);
                for (d, k) in (i * 64..).zip(row) {
                    head[half_of_key(at, d, dim)] = *k;
                }
            }
        }
        Side::Values => head[at * dim..(at + 1) * dim].convert_from_f32_slice(x),
    }
}

/// Which of a head's halves dimension `d` of key `t` is, of `dim`.
#[inline]
pub(crate) const fn half_of_key(t: usize, d: usize, dim: usize) -> usize {
    t / KV_PAGE * (KV_PAGE * dim) + d * KV_PAGE + t % KV_PAGE
}

/// llama.cpp's `q8_0`: step = largest magnitude / 127, codes = round(x / step), here with the step
/// as kept.
fn put_q8_0(head: &mut [u8], side: Side, at: usize, x: &[f32]) {
    let page = Page::of(KvType::Q8_0, x.len());
    let t = at % KV_PAGE;
    let head = &mut head[at / KV_PAGE * page.bytes()..][..page.bytes()];
    let raise = if side == Side::Keys { 128 } else { 0 };
    for (b, x) in x.as_chunks::<KV_BLOCK>().0.iter().enumerate() {
        let (kept, inverse) = scale(extreme(x).abs() / 127.0);
        head[b * Page::SCALES + 2 * t..][..2].copy_from_slice(&kept.to_le_bytes());
        let out = &mut head[page.codes_at(b)..][..page.codes];
        for (d, code) in codes(x, inverse, -127.0, 127.0).into_iter().enumerate() {
            out[side.byte(t, d, KV_BLOCK)] = code.wrapping_add(raise);
        }
    }
}

/// llama.cpp's `q4_0`: step = the value of the largest magnitude / −8, codes = round(x / step)
/// within −8..=7.
fn put_q4_0(head: &mut [u8], side: Side, at: usize, x: &[f32]) {
    const HALF: usize = KV_BLOCK / 2;
    let page = Page::of(KvType::Q4_0, x.len());
    let t = at % KV_PAGE;
    let head = &mut head[at / KV_PAGE * page.bytes()..][..page.bytes()];
    let raise = if side == Side::Keys { 8 } else { 0 };
    for (b, x) in x.as_chunks::<KV_BLOCK>().0.iter().enumerate() {
        let (kept, inverse) = scale(extreme(x) / -8.0);
        head[b * Page::SCALES + 2 * t..][..2].copy_from_slice(&kept.to_le_bytes());
        let out = &mut head[page.codes_at(b)..][..page.codes];
        let codes = codes(x, inverse, -8.0, 7.0);
        let nibble = |d: usize| codes[d].wrapping_add(raise) & 15;
        for d in 0..HALF {
            out[side.byte(t, d, HALF)] = nibble(d) | nibble(d + HALF) << 4;
        }
    }
}

/// `put(d, v)` for each dimension `d` of position `t` of a head, whose keys or values `head` are.
#[inline]
fn each(head: &[u8], shape: KvShape, side: Side, t: usize, mut put: impl FnMut(usize, f32)) {
    let dim = shape.head_dim;
    if shape.kv_type == KvType::F16 {
        let head: &[f16] = bytemuck::cast_slice(head);
        for d in 0..dim {
            let at = match side {
                Side::Keys => half_of_key(t, d, dim),
                Side::Values => t * dim + d,
            };
            put(d, head[at].to_f32());
        }
        return;
    }
    let page = Page::of(shape.kv_type, dim);
    let head = &head[t / KV_PAGE * page.bytes()..][..page.bytes()];
    let t = t % KV_PAGE;
    for b in 0..page.blocks {
        let kept = &head[b * Page::SCALES + 2 * t..];
        let scale = f16::from_le_bytes([kept[0], kept[1]]).to_f32();
        let codes = &head[page.codes_at(b)..][..page.codes];
        for d in 0..KV_BLOCK {
            let code = code(codes, shape.kv_type, side, t, d);
            put(b * KV_BLOCK + d, f32::from(code) * scale);
        }
    }
}

/// `n` positions of a head from `from` on as floats, without gaps; `head` are its keys or values.
pub(crate) fn floats(
    head: &[u8],
    shape: KvShape,
    side: Side,
    from: usize,
    n: usize,
    out: &mut [f32],
) {
    let dim = shape.head_dim;
    if (shape.kv_type, side) == (KvType::F16, Side::Values) {
        let head: &[f16] = bytemuck::cast_slice(head);
        head[from * dim..(from + n) * dim].convert_to_f32_slice(&mut out[..n * dim]);
        return;
    }
    for (t, out) in (from..from + n).zip(out.chunks_exact_mut(dim)) {
        each(head, shape, side, t, |d, v| out[d] = v);
    }
}

/// Keys of `n` positions from `from` on as floats, dimension after dimension, each `stride` behind the
/// one before.
pub(crate) fn columns(
    head: &[u8],
    shape: KvShape,
    from: usize,
    n: usize,
    stride: usize,
    out: &mut [f32],
) {
    for i in 0..n {
        let put = |d: usize, v| out[d * stride + i] = v;
        each(head, shape, Side::Keys, from + i, put);
    }
}

/// The code of dimension `d` of position `t` of a page, in the codes of its block.
#[inline]
pub(crate) fn code(codes: &[u8], kv_type: KvType, side: Side, t: usize, d: usize) -> i16 {
    const HALF: usize = KV_BLOCK / 2;
    if kv_type == KvType::Q4_0 {
        let byte = codes[side.byte(t, d % HALF, HALF)];
        let raised = match side {
            Side::Keys => byte,
            Side::Values => byte ^ 0x88,
        };
        return i16::from(raised >> (d / HALF * 4) & 15) - 8;
    }
    let byte = codes[side.byte(t, d, KV_BLOCK)];
    match side {
        Side::Keys => i16::from(byte) - 128,
        Side::Values => i16::from(byte as i8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::noise::Noise;

    /// A gibibyte of positions that nobody has written, beside whatever other tests do meanwhile.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_context_that_is_not_used_is_not_resident() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages = statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
            // At least: pages are as large or larger.
            pages * 4096
        };
        let shape = KvShape {
            heads: 8,
            head_dim: 128,
            kv_type: KvType::F16,
        };
        let before = resident();
        let mut kv = HostKv::new(4, 1 << 16, shape).unwrap();
        assert_eq!(kv.bytes(), 1 << 30);
        assert!(resident() < before + (1 << 29));
        assert_eq!(kv.layer_mut(3).keys(7).as_ptr().addr() % LINE, 0);
    }

    #[test]
    fn what_is_kept_is_what_the_block_types_keep() {
        let mut noise = Noise::new(5);
        let dim = 64;
        for (kv_type, worst) in [
            (KvType::F16, 1e-3),
            (KvType::Q8_0, 0.51 / 127.0),
            (KvType::Q4_0, 1.01 / 8.0),
        ] {
            let shape = KvShape {
                heads: 3,
                head_dim: dim,
                kv_type,
            };
            let mut kv = HostKv::new(2, 37, shape).unwrap();
            // Pages begin at lines, and a cache takes what the memory equations say.
            assert_eq!(
                kv.bytes(),
                2 * 2 * 3 * kv_type.bytes(dim) * KvType::positions(37)
            );
            let rows: Vec<_> = (0..37)
                .map(|_| (noise.take(3 * dim), noise.take(3 * dim)))
                .collect();
            // Backwards: a position does not hurt its neighbours.
            for (t, (k, v)) in rows.iter().enumerate().rev() {
                kv.layer_mut(1).put(t, k, v);
            }
            let layer = kv.layer_mut(1);
            let mut out = vec![0.0; 20 * dim];
            for h in 0..3 {
                for (head, side) in [(layer.keys(h), Side::Keys), (layer.values(h), Side::Values)] {
                    floats(head, shape, side, 11, 20, &mut out);
                    for (t, got) in out.chunks(dim).enumerate() {
                        let (k, v) = &rows[11 + t];
                        let want = if side == Side::Keys { k } else { v };
                        let want = &want[h * dim..(h + 1) * dim];
                        for (got, want) in got.chunks(KV_BLOCK).zip(want.chunks(KV_BLOCK)) {
                            let most = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                            for (a, b) in got.iter().zip(want) {
                                assert!(
                                    (a - b).abs() <= worst * most,
                                    "{kv_type}: {a} {b} of {most}"
                                );
                            }
                        }
                    }
                }
            }
            assert!(kv.layer_mut(0).keys(0).iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for kv_type in [KvType::Q8_0, KvType::Q4_0] {
            let shape = KvShape {
                heads: 1,
                head_dim: 32,
                kv_type,
            };
            let mut kv = HostKv::new(1, 3, shape).unwrap();
            let mut out = [0.0; 96];
            for (t, wrong) in [f32::NAN, f32::INFINITY, 1e-30].into_iter().enumerate() {
                let mut x = [0.5e-30; 32];
                x[7] = wrong;
                kv.layer_mut(0).put(t, &x, &x);
            }
            floats(kv.layer_mut(0).keys(0), shape, Side::Keys, 0, 3, &mut out);
            assert!(out[..64].iter().all(|v| v.is_nan()), "{kv_type}: {out:?}");
            assert!(out[64..].iter().all(|v| *v == 0.0), "{kv_type}: {out:?}");
        }
    }
}
