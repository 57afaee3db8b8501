// Q5_0. Planes: 16 bytes of nibbles, a word of fifth bits, a half.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl
//#include blocks/fifth_bits.wgsl

fn codes32(run: u32) -> Codes {
    let q = weights[(matrix.plane.x >> 2u) + run];
    let high = word(matrix.plane.y + run);
    let d = unpack_half_at(matrix.plane.z, run);
    let low = vec4<u32>(0x0f0f0f0fu);
    let a = (q & low) | unpack_fifth_bits(high);
    let b = ((q >> vec4<u32>(4u)) & low) | unpack_fifth_bits(high >> 16u);
    return Codes(a, b, vec2<f32>(d), vec2<f32>(-16.0 * d));
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
