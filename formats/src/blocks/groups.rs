//! What the newer GGML types have in common: a block is groups of small integers, each group
//! with one scale.

use bytemuck::Pod;

use super::BlockType;

/// A block whose weights are `scale · code`, in groups of `G` (16 or 32) that share a scale.
///
/// GGML's decoders for these types have more factors (a codebook entry, a sign, a shift of an
/// eighth); the codes here are their exact product in whole numbers, so `scale · code` has the
/// same bits. All fields are bytes, so a block may lie at any address.
pub trait Grouped<const G: usize>: Pod {
    /// The type this is the layout of.
    const TYPE: BlockType;

    /// The scale of group `g`, `g < block_len / G`.
    fn scale(&self, g: usize) -> f32;

    /// The codes of group `g`, `g < block_len / G`.
    fn codes(&self, g: usize) -> [i8; G];
}

/// All weights of a block, group after group.
#[inline]
pub(super) fn decode<const G: usize, B: Grouped<G>>(block: &B, out: &mut [f32]) {
    for (g, values) in out.as_chunks_mut::<G>().0.iter_mut().enumerate() {
        let scale = block.scale(g);
        for (v, code) in values.iter_mut().zip(block.codes(g)) {
            *v = scale * f32::from(code);
        }
    }
}

/// `code`, negated where bit `j` of `signs` is set.
#[inline]
pub(super) fn signed(code: i8, signs: u8, j: usize) -> i8 {
    let mask = -((signs >> j & 1) as i8);
    (code ^ mask) - mask
}
