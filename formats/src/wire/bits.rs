//! Codes of 1 to 8 bits, packed lowest bit first; a run of codes starts on a byte.

/// Bytes that `n` codes of `bits` bits take.
pub(super) fn packed_len(n: usize, bits: u8) -> usize {
    (n * usize::from(bits)).div_ceil(8)
}

/// Appends `codes`, each below `2^bits`; unused bits of the last byte are zero.
pub(super) fn pack(codes: &[u8], bits: u8, out: &mut Vec<u8>) {
    let bits = usize::from(bits);
    // Eight codes fill exactly `bits` bytes, so a word never carries over.
    for chunk in codes.chunks(8) {
        let word = chunk
            .iter()
            .rev()
            .fold(0u64, |w, &c| w << bits | u64::from(c));
        out.extend_from_slice(&word.to_le_bytes()[..(chunk.len() * bits).div_ceil(8)]);
    }
}

/// Appends `n` codes out of `packed`, which is [`packed_len`] long. `false` when an unused bit
/// is set.
#[must_use]
pub(super) fn unpack(packed: &[u8], n: usize, bits: u8, codes: &mut Vec<u8>) -> bool {
    let width = usize::from(bits);
    if width == 0 {
        codes.resize(codes.len() + n, 0);
        return packed.is_empty();
    }
    let mask = (1u64 << width) - 1;
    let mut left = n;
    for chunk in packed.chunks(width) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let mut word = u64::from_le_bytes(bytes);
        let take = left.min(8);
        for _ in 0..take {
            codes.push((word & mask) as u8);
            word >>= width;
        }
        left -= take;
        if word != 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_is_lowest_bit_first() {
        let mut out = Vec::new();
        pack(&[1, 2, 3], 3, &mut out);
        assert_eq!(out, [0b1101_0001, 0]);
        out.clear();
        pack(&[31, 0, 31, 1], 5, &mut out);
        assert_eq!(out, [0b0001_1111, 0b1111_1100, 0b0000_0000]);
    }

    #[test]
    fn a_set_unused_bit_is_refused() {
        let mut codes = Vec::new();
        assert!(unpack(&[0b0000_0111], 3, 1, &mut codes));
        assert_eq!(codes, [1, 1, 1]);
        assert!(!unpack(&[0b0000_1111], 3, 1, &mut codes));
    }

    proptest! {
        #[test]
        fn round_trip(bits in 1u8..=8, raw in proptest::collection::vec(any::<u8>(), 0..70)) {
            let codes: Vec<u8> = raw.iter().map(|c| c >> (8 - bits)).collect();
            let mut packed = Vec::new();
            pack(&codes, bits, &mut packed);
            prop_assert_eq!(packed.len(), packed_len(codes.len(), bits));
            let mut back = Vec::new();
            prop_assert!(unpack(&packed, codes.len(), bits, &mut back));
            prop_assert_eq!(back, codes);
        }
    }
}
