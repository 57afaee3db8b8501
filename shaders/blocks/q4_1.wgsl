// Q4_1. Planes: 16 bytes of nibbles, a word of two halves.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

fn codes32(run: u32) -> Codes {
    let q = weights[(matrix.plane.x >> 2u) + run];
    let dm = unpack_halves(word(matrix.plane.y + run));
    let low = vec4<u32>(0x0f0f0f0fu);
    return Codes(q & low, (q >> vec4<u32>(4u)) & low, dm.xx, dm.yy);
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
