//! The order in which kernels read weights.
//!
//! A *tile* holds as many rows as a vector has lanes, panel after panel. Of a panel it has the first
//! four bytes that a kernel reads of each row, then the next four of each, and so on ([`place`] says
//! which these are), so that a vector of all rows is one read and memory is read from one end to the
//! other. Bytes of a block that are no four lie in the same way. A tile has as many bytes as its rows
//! together; rows that the last tile lacks are zeros.

use formats::blocks::BlockType;

use super::BLOCK;

/// Where a tile has the bytes at `at` of a block, in bytes of one row: blocks of 32 are read from front to
/// back; of the others some have their scales behind their quants and need them first, and Q6_K takes half of
/// the upper bits with each half of the lower ones.
#[inline(always)]
#[allow(clippy::inline_always)] // to be compiled with the features of the caller
pub(super) const fn place(ty: BlockType, at: usize) -> usize {
    match (ty, at) {
        (BlockType::Q2_K, 80..) => at - 80,
        (BlockType::Q2_K, _) => at + 4,
        (BlockType::Q3_K, 96..) => at - 96,
        (BlockType::Q3_K, _) => at + 14,
        (BlockType::Q6_K, 192..) => at - 192,
        (BlockType::Q6_K, 64..128) => at + 50,
        (BlockType::Q6_K, 128..160) => at - 46,
        (BlockType::Q6_K, _) => at + 18,
        _ => at,
    }
}

/// Lays `rows` of `row_bytes` each, whole blocks of type `ty` and no more than `lanes`, into `tile`, which is as
/// large as `lanes` of them and zeros where it has no row.
pub(in super::super) fn lay_tile(
    ty: BlockType,
    rows: &[u8],
    row_bytes: usize,
    lanes: usize,
    tile: &mut [u8],
) {
    let bytes = ty.block_bytes();
    // Scales that are not four bytes stand first, but in super-blocks last.
    let odd = bytes % 4;
    let front = if ty.block_len() == BLOCK { odd } else { 0 };
    for block in (0..row_bytes).step_by(bytes) {
        let tile = &mut tile[lanes * block..lanes * (block + bytes)];
        for at in (front..front + bytes - odd).step_by(4) {
            let to = &mut tile[lanes * place(ty, at)..][..4 * lanes];
            piece::<4>(rows, row_bytes, block + at, to);
        }
        let at = if front > 0 { 0 } else { bytes - odd };
        let piece = match odd {
            1 => piece::<1>,
            2 => piece::<2>,
            3 => piece::<3>,
            _ => continue,
        };
        let to = &mut tile[lanes * place(ty, at)..][..odd * lanes];
        piece(rows, row_bytes, block + at, to);
    }
}

/// The `N` bytes at `at` of each row, one behind the other.
fn piece<const N: usize>(rows: &[u8], row_bytes: usize, at: usize, to: &mut [u8]) {
    for (to, row) in to
        .as_chunks_mut::<N>()
        .0
        .iter_mut()
        .zip(rows.chunks_exact(row_bytes))
    {
        to.copy_from_slice(&row[at..at + N]);
    }
}
