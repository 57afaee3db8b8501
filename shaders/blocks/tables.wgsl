// Codebooks: the last plane of a matrix, entries of one or two words, each value a byte.

/// The four magnitudes in `w`, negated where bits 0 to 3 of `signs` are set.
fn unpack_magnitudes(w: u32, signs: u32) -> vec4<f32> {
    let size = vec4<f32>((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    let sign = (vec4<u32>(signs) << vec4<u32>(31u, 30u, 29u, 28u)) & vec4<u32>(0x80000000u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(size) | sign);
}

/// Eight sign bits from the seven that are stored (in the lowest bits): their number is even.
fn unpack_even_signs(seven: u32) -> u32 {
    let bits = seven & 127u;
    return bits | ((countOneBits(bits) & 1u) << 7u);
}
