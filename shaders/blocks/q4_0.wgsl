// Q4_0. Planes: 16 bytes of nibbles, a half.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

fn codes32(run: u32) -> Codes {
    let q = weights[(matrix.plane.x >> 2u) + run];
    let d = unpack_half_at(matrix.plane.y, run);
    let low = vec4<u32>(0x0f0f0f0fu);
    return Codes(q & low, (q >> vec4<u32>(4u)) & low, vec2<f32>(d), vec2<f32>(-8.0 * d));
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
