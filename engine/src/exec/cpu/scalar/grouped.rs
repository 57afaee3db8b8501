//! Types that are groups of whole codes with a scale each: IQ1 to IQ4_XS, TQ1_0, TQ2_0, MXFP4.
//!
//! `formats::blocks` gives codes and scales; the products are as of any other type.

use formats::blocks::{
    BlockIq1M, BlockIq1S, BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs, BlockIq4Xs,
    BlockMxfp4, BlockTq1_0, BlockTq2_0, BlockType, Grouped,
};

/// Codes and scales of the blocks in `bytes`.
pub(super) fn unpack(ty: BlockType, bytes: &[u8], q: &mut [f32], scale: &mut [f32]) {
    match ty {
        BlockType::IQ1_S => blocks::<32, BlockIq1S>(bytes, q, scale),
        BlockType::IQ1_M => blocks::<16, BlockIq1M>(bytes, q, scale),
        BlockType::IQ2_XXS => blocks::<32, BlockIq2Xxs>(bytes, q, scale),
        BlockType::IQ2_XS => blocks::<16, BlockIq2Xs>(bytes, q, scale),
        BlockType::IQ2_S => blocks::<16, BlockIq2S>(bytes, q, scale),
        BlockType::IQ3_XXS => blocks::<32, BlockIq3Xxs>(bytes, q, scale),
        BlockType::IQ3_S => blocks::<32, BlockIq3S>(bytes, q, scale),
        BlockType::IQ4_XS => blocks::<32, BlockIq4Xs>(bytes, q, scale),
        BlockType::TQ1_0 => blocks::<32, BlockTq1_0>(bytes, q, scale),
        BlockType::TQ2_0 => blocks::<32, BlockTq2_0>(bytes, q, scale),
        _ => blocks::<32, BlockMxfp4>(bytes, q, scale),
    }
}

fn blocks<const G: usize, B: Grouped<G>>(bytes: &[u8], q: &mut [f32], scale: &mut [f32]) {
    let blocks: &[B] = bytemuck::try_cast_slice(bytes).unwrap_or_default();
    let per_block = B::TYPE.block_len() / G;
    let groups = blocks
        .iter()
        .flat_map(|b| (0..per_block).map(move |g| (b, g)));
    let places = q.as_chunks_mut::<G>().0.iter_mut().zip(scale);
    for ((block, g), (q, scale)) in groups.zip(places) {
        *scale = block.scale(g);
        *q = block.codes(g).map(f32::from);
    }
}
