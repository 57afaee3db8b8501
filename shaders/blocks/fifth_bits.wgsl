// The bits of a word as the fifth bits of 16 weights.

/// Bits 0 to 15 of `bits`, each in bit 4 of a byte of its own.
fn unpack_fifth_bits(bits: u32) -> vec4<u32> {
    let four = (vec4<u32>(bits) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    // Copies that do not overlap, each of which brings one bit to the bottom of its byte.
    return ((four * 0x00204081u) & vec4<u32>(0x01010101u)) << vec4<u32>(4u);
}
