//! Bit packings that several block types share.

/// 32 levels of 4 bits in 16 bytes: weight `j` in the low half of byte `j`, weight `j + 16` in
/// the high half.
pub(super) fn pack_nibbles(levels: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|j| (levels[j] & 15) | (levels[j + 16] & 15) << 4)
}

/// Level `j` of [`pack_nibbles`].
#[inline]
pub(super) fn nibble(qs: &[u8; 16], j: usize) -> u8 {
    if j < 16 { qs[j] & 15 } else { qs[j - 16] >> 4 }
}

/// The fifth bits of 32 levels, little-endian: bit `j` belongs to weight `j`.
pub(super) fn pack_fifth_bits(levels: &[u8; 32]) -> [u8; 4] {
    let bits = (0..32).fold(0u32, |acc, j| acc | u32::from(levels[j] >> 4 & 1) << j);
    bits.to_le_bytes()
}

/// Scale and minimum of sub-block `j` (0..8) of a `Q4_K` or `Q5_K` block, each 0..=63.
///
/// Sub-blocks 0..4 keep six bits in place; 4..8 keep four bits in the last four bytes and their
/// upper two in the top of the first eight.
#[inline]
pub fn scale_min(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        (
            low & 15 | scales[j - 4] >> 6 << 4,
            low >> 4 | scales[j] >> 6 << 4,
        )
    }
}

/// The inverse of [`scale_min`].
pub(super) fn pack_scale_min(scales: [u8; 8], mins: [u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scales[j] & 63 | scales[j + 4] >> 4 << 6;
        out[j + 4] = mins[j] & 63 | mins[j + 4] >> 4 << 6;
        out[j + 8] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_and_mins_survive_the_packing() {
        let scales = [0, 63, 17, 32, 48, 15, 63, 1];
        let mins = [63, 0, 33, 16, 1, 62, 31, 47];
        let packed = pack_scale_min(scales, mins);
        for j in 0..8 {
            assert_eq!(scale_min(&packed, j), (scales[j], mins[j]));
        }
    }

    #[test]
    fn nibbles_and_fifth_bits_survive_the_packing() {
        let levels: [u8; 32] = std::array::from_fn(|j| (j * 7 % 32) as u8);
        let low = pack_nibbles(&levels);
        let high = u32::from_le_bytes(pack_fifth_bits(&levels));
        for (j, &l) in levels.iter().enumerate() {
            assert_eq!(nibble(&low, j) | ((high >> j & 1) as u8) << 4, l);
        }
    }
}
