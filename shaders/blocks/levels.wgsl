// The 16 levels of IQ4_NL and IQ4_XS.

/// The levels of four nibbles, each in a byte of `q`, as signed bytes in the lanes of a vector.
/// The 16 levels are the bytes of four words: two bits choose the word, two the byte.
fn unpack_levels(q: u32) -> vec4<f32> {
    let n = vec4<u32>(q) >> vec4<u32>(0u, 8u, 16u, 24u);
    let third = (n & vec4<u32>(4u)) != vec4<u32>(0u);
    let a = select(vec4<u32>(0xbfad9881u), vec4<u32>(0xf6eaddcfu), third);
    let b = select(vec4<u32>(0x26190d01u), vec4<u32>(0x71594535u), third);
    let words = select(a, b, (n & vec4<u32>(8u)) != vec4<u32>(0u));
    let top = words << ((~n & vec4<u32>(3u)) << vec4<u32>(3u));
    return vec4<f32>(bitcast<vec4<i32>>(top) >> vec4<u32>(24u));
}

/// 32 weights `step·level` from 16 bytes of nibbles, the low ones first.
fn unpack_nonlinear(q: vec4<u32>, step: f32) -> array<vec4<f32>, 8> {
    let high = q >> vec4<u32>(4u);
    return array<vec4<f32>, 8>(
        unpack_levels(q.x) * step,
        unpack_levels(q.y) * step,
        unpack_levels(q.z) * step,
        unpack_levels(q.w) * step,
        unpack_levels(high.x) * step,
        unpack_levels(high.y) * step,
        unpack_levels(high.z) * step,
        unpack_levels(high.w) * step,
    );
}
