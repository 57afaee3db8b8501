//! Rows of any block type to and from `f32`.

use bytemuck::Pod;

use super::search::sanitise;
use super::{
    BlockIq1M, BlockIq1S, BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs, BlockIq4Nl,
    BlockIq4Xs, BlockMxfp4, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0,
    BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockTq1_0, BlockTq2_0,
};
use super::{BlockType, Effort, Grouped, float, groups, names};

/// The layout of one block of `N` weights. All fields are bytes, so a block may lie at any
/// address: rows are viewed in place in a memory map.
pub trait Block<const N: usize>: Pod {
    /// The type this is the layout of.
    const TYPE: BlockType;

    /// The weights, with the arithmetic of GGML's own scalar decoder: the same bits.
    fn decode(&self, out: &mut [f32; N]);

    /// Encodes a row of whole blocks into `out`, each the one that errs least in
    /// `Σ importance·(x − decoded)²` (all importances 1 when `None`), as far as the search finds
    /// it. Equal input gives equal bytes, and a block those that it has alone.
    ///
    /// A NaN counts as 0, an infinity as the largest magnitude the block can hold; the result
    /// always decodes to finite weights.
    fn encode_row(row: &[f32], importance: Option<&[f32]>, effort: Effort, out: &mut [u8]);
}

/// The weights of each block of a row, its importances and its bytes.
pub(super) fn each_block<'a, const N: usize, B: Block<N>>(
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; N], Option<&'a [f32; N]>, &'a mut [u8])> {
    let mut importances = importance.map(|w| w.as_chunks::<N>().0.iter());
    let blocks = row.as_chunks::<N>().0.iter();
    blocks
        .zip(out.chunks_exact_mut(size_of::<B>()))
        .map(move |(x, bytes)| (x, importances.as_mut().and_then(Iterator::next), bytes))
}

/// Encodes a row whose blocks are made one at a time, from weights and importances that can be
/// computed with.
pub(super) fn encode_each<const N: usize, B: Block<N>>(
    row: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; N], &[f32; N]) -> B,
) {
    for (x, w, bytes) in each_block::<N, B>(row, importance, out) {
        let (x, w) = sanitise(x, w);
        bytes.copy_from_slice(bytemuck::bytes_of(&encode(&x, &w)));
    }
}

/// [`Block::encode_row`], with the promise that more effort never errs more: a search of more
/// steps may end elsewhere, so every block is compared with that of a normal effort.
fn encode_blocks<const N: usize, B: Block<N>>(
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) {
    B::encode_row(row, importance, effort, out);
    if effort == Effort::Normal {
        return;
    }
    let mut quick = vec![0; out.len()];
    B::encode_row(row, importance, Effort::Normal, &mut quick);
    let quick = quick.chunks_exact(size_of::<B>());
    for ((x, w, bytes), quick) in each_block::<N, B>(row, importance, out).zip(quick) {
        if quick == bytes {
            continue;
        }
        let (x, w) = sanitise(x, w);
        let error = |bytes: &[u8]| -> f64 {
            let mut y = [0.0; N];
            bytemuck::pod_read_unaligned::<B>(bytes).decode(&mut y);
            let square = |i: usize| (f64::from(x[i]) - f64::from(y[i])).powi(2);
            (0..N).map(|i| f64::from(w[i]) * square(i)).sum()
        };
        if error(quick) < error(bytes) {
            bytes.copy_from_slice(quick);
        }
    }
}

/// A row that cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Not whole blocks, or the bytes are not those of that many weights.
    #[error(
        "a row of {weights} {ty} weights does not fit {bytes} bytes: {ty} stores {} weights in {} bytes, in whole blocks only",
        ty.block_len(), ty.block_bytes()
    )]
    Bytes {
        /// Type of the row.
        ty: BlockType,
        /// Weights in the `f32` slice.
        weights: usize,
        /// Bytes in the encoded slice.
        bytes: usize,
    },
    /// The importance slice is not one number per weight.
    #[error(
        "{importances} importances given for {weights} {ty} weights: give one per weight, or none"
    )]
    Importance {
        /// Type of the row.
        ty: BlockType,
        /// Weights in the row.
        weights: usize,
        /// Length of the importance slice.
        importances: usize,
    },
    /// A type that is only read.
    #[error(
        "{ty} can be read but not written; written can be {}",
        names(BlockType::encodable())
    )]
    NoEncoder {
        /// The type.
        ty: BlockType,
    },
}

fn check(ty: BlockType, weights: usize, bytes: usize) -> Result<(), RowError> {
    if ty.row_bytes(weights) == Some(bytes) {
        Ok(())
    } else {
        Err(RowError::Bytes { ty, weights, bytes })
    }
}

/// The blocks of a row, in place. `None` when `bytes` is not a whole number of blocks.
pub fn blocks_of<const N: usize, B: Block<N>>(bytes: &[u8]) -> Option<&[B]> {
    bytemuck::try_cast_slice(bytes).ok()
}

/// Decodes a row: `out.len()` weights from `bytes`, bit for bit what GGML decodes.
///
/// Any bytes decode (to NaN or infinity if a stored scale says so); none panics.
///
/// # Errors
/// [`RowError`] when the two lengths do not describe the same whole blocks.
pub fn dequantize_row(ty: BlockType, bytes: &[u8], out: &mut [f32]) -> Result<(), RowError> {
    check(ty, out.len(), bytes.len())?;
    match ty {
        BlockType::F32 => float::decode_f32(bytes, out),
        BlockType::F16 => float::decode_f16(bytes, out),
        BlockType::BF16 => float::decode_bf16(bytes, out),
        BlockType::Q4_0 => decode_blocks::<32, BlockQ4_0>(bytes, out),
        BlockType::Q4_1 => decode_blocks::<32, BlockQ4_1>(bytes, out),
        BlockType::Q5_0 => decode_blocks::<32, BlockQ5_0>(bytes, out),
        BlockType::Q5_1 => decode_blocks::<32, BlockQ5_1>(bytes, out),
        BlockType::Q8_0 => decode_blocks::<32, BlockQ8_0>(bytes, out),
        BlockType::IQ4_NL => decode_blocks::<32, BlockIq4Nl>(bytes, out),
        BlockType::Q2_K => decode_blocks::<256, BlockQ2K>(bytes, out),
        BlockType::Q3_K => decode_blocks::<256, BlockQ3K>(bytes, out),
        BlockType::Q4_K => decode_blocks::<256, BlockQ4K>(bytes, out),
        BlockType::Q5_K => decode_blocks::<256, BlockQ5K>(bytes, out),
        BlockType::Q6_K => decode_blocks::<256, BlockQ6K>(bytes, out),
        BlockType::IQ4_XS => decode_blocks::<256, BlockIq4Xs>(bytes, out),
        BlockType::IQ3_S => decode_blocks::<256, BlockIq3S>(bytes, out),
        BlockType::TQ1_0 => decode_blocks::<256, BlockTq1_0>(bytes, out),
        BlockType::TQ2_0 => decode_blocks::<256, BlockTq2_0>(bytes, out),
        BlockType::MXFP4 => decode_blocks::<32, BlockMxfp4>(bytes, out),
        BlockType::IQ1_S => decode_grouped::<32, BlockIq1S>(bytes, out),
        BlockType::IQ1_M => decode_grouped::<16, BlockIq1M>(bytes, out),
        BlockType::IQ2_XXS => decode_grouped::<32, BlockIq2Xxs>(bytes, out),
        BlockType::IQ2_XS => decode_grouped::<16, BlockIq2Xs>(bytes, out),
        BlockType::IQ2_S => decode_grouped::<16, BlockIq2S>(bytes, out),
        BlockType::IQ3_XXS => decode_grouped::<32, BlockIq3Xxs>(bytes, out),
    }
    Ok(())
}

fn decode_blocks<const N: usize, B: Block<N>>(bytes: &[u8], out: &mut [f32]) {
    let blocks = blocks_of::<N, B>(bytes).unwrap_or_default();
    for (block, chunk) in blocks.iter().zip(out.as_chunks_mut::<N>().0) {
        block.decode(chunk);
    }
}

fn decode_grouped<const G: usize, B: Grouped<G>>(bytes: &[u8], out: &mut [f32]) {
    let blocks: &[B] = bytemuck::try_cast_slice(bytes).unwrap_or_default();
    for (block, chunk) in blocks.iter().zip(out.chunks_exact_mut(B::TYPE.block_len())) {
        groups::decode(block, chunk);
    }
}

/// Encodes a row of `f32` weights into `out`, minimising `Σ importance·(x − decoded)²`.
///
/// `importance`, when given, holds one non-negative number per weight (for a matrix row: the mean
/// square of the activation each column meets). The float types ignore it, and `effort` too.
///
/// Quantised types take NaN as 0 and saturate infinities, so they always decode to finite
/// weights. `F32` keeps every bit; `F16` and `BF16` keep NaN and infinities and round what is
/// finite to the nearest finite value.
///
/// # Errors
/// [`RowError`] when the lengths do not describe the same whole blocks, or when the type is only
/// read ([`BlockType::can_encode`]).
pub fn quantize_row(
    ty: BlockType,
    row: &[f32],
    importance: Option<&[f32]>,
    effort: Effort,
    out: &mut [u8],
) -> Result<(), RowError> {
    check(ty, row.len(), out.len())?;
    if let Some(importance) = importance
        && importance.len() != row.len()
    {
        return Err(RowError::Importance {
            ty,
            weights: row.len(),
            importances: importance.len(),
        });
    }
    match ty {
        BlockType::F32 => float::encode_f32(row, out),
        BlockType::F16 => float::encode_f16(row, out),
        BlockType::BF16 => float::encode_bf16(row, out),
        BlockType::Q4_0 => encode_blocks::<32, BlockQ4_0>(row, importance, effort, out),
        BlockType::Q4_1 => encode_blocks::<32, BlockQ4_1>(row, importance, effort, out),
        BlockType::Q5_0 => encode_blocks::<32, BlockQ5_0>(row, importance, effort, out),
        BlockType::Q5_1 => encode_blocks::<32, BlockQ5_1>(row, importance, effort, out),
        BlockType::Q8_0 => encode_blocks::<32, BlockQ8_0>(row, importance, effort, out),
        BlockType::IQ4_NL => encode_blocks::<32, BlockIq4Nl>(row, importance, effort, out),
        BlockType::Q2_K => encode_blocks::<256, BlockQ2K>(row, importance, effort, out),
        BlockType::Q3_K => encode_blocks::<256, BlockQ3K>(row, importance, effort, out),
        BlockType::Q4_K => encode_blocks::<256, BlockQ4K>(row, importance, effort, out),
        BlockType::Q5_K => encode_blocks::<256, BlockQ5K>(row, importance, effort, out),
        BlockType::Q6_K => encode_blocks::<256, BlockQ6K>(row, importance, effort, out),
        BlockType::IQ4_XS => encode_blocks::<256, BlockIq4Xs>(row, importance, effort, out),
        BlockType::IQ3_S => encode_blocks::<256, BlockIq3S>(row, importance, effort, out),
        BlockType::TQ1_0 => encode_blocks::<256, BlockTq1_0>(row, importance, effort, out),
        BlockType::TQ2_0 => encode_blocks::<256, BlockTq2_0>(row, importance, effort, out),
        BlockType::MXFP4 => encode_blocks::<32, BlockMxfp4>(row, importance, effort, out),
        BlockType::IQ1_S
        | BlockType::IQ1_M
        | BlockType::IQ2_XXS
        | BlockType::IQ2_XS
        | BlockType::IQ2_S
        | BlockType::IQ3_XXS => return Err(RowError::NoEncoder { ty }),
    }
    Ok(())
}

/// Ties a layout struct to the table of [`BlockType`]: size, and byte alignment.
macro_rules! assert_layout {
    ($block:ty, $ty:expr) => {
        const _: () = assert!(size_of::<$block>() == $ty.block_bytes());
        const _: () = assert!(align_of::<$block>() == 1);
    };
}
pub(super) use assert_layout;
