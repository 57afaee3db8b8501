// Q5_1. Planes: 16 bytes of nibbles, a word of two halves and a word of fifth bits.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl
//#include blocks/fifth_bits.wgsl

fn codes32(run: u32) -> Codes {
    let q = weights[(matrix.plane.x >> 2u) + run];
    let at = matrix.plane.y + (run << 1u);
    let dm = unpack_halves(word(at));
    let high = word(at + 1u);
    let low = vec4<u32>(0x0f0f0f0fu);
    let a = (q & low) | unpack_fifth_bits(high);
    let b = ((q >> vec4<u32>(4u)) & low) | unpack_fifth_bits(high >> 16u);
    return Codes(a, b, dm.xx, dm.yy);
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
