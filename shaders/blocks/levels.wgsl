// The 16 levels of IQ4_NL and IQ4_XS.
//#include blocks/codes.wgsl

/// The levels of four nibbles, each in a byte of `q`, as signed bytes at the top of the lanes of a vector.
/// The 16 levels are the bytes of four words: two bits choose the word, two the byte.
fn unpack_tops(q: u32) -> vec4<u32> {
    let n = vec4<u32>(q) >> vec4<u32>(0u, 8u, 16u, 24u);
    let third = (n & vec4<u32>(4u)) != vec4<u32>(0u);
    let a = select(vec4<u32>(0xbfad9881u), vec4<u32>(0xf6eaddcfu), third);
    let b = select(vec4<u32>(0x26190d01u), vec4<u32>(0x71594535u), third);
    let words = select(a, b, (n & vec4<u32>(8u)) != vec4<u32>(0u));
    return words << ((~n & vec4<u32>(3u)) << vec4<u32>(3u));
}

/// The same levels as floats.
fn unpack_levels(q: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(unpack_tops(q)) >> vec4<u32>(24u));
}

/// The same levels as the bytes of a word.
fn unpack_level_bytes(q: u32) -> u32 {
    let bytes = (unpack_tops(q) >> vec4<u32>(24u)) << vec4<u32>(0u, 8u, 16u, 24u);
    return (bytes.x | bytes.y) | (bytes.z | bytes.w);
}

/// 32 codes with one step from 16 bytes of nibbles, the low ones first.
fn unpack_nonlinear_codes(q: vec4<u32>, step: f32) -> Codes {
    let high = q >> vec4<u32>(4u);
    return Codes(
        vec4<u32>(unpack_level_bytes(q.x), unpack_level_bytes(q.y), unpack_level_bytes(q.z), unpack_level_bytes(q.w)),
        vec4<u32>(unpack_level_bytes(high.x), unpack_level_bytes(high.y), unpack_level_bytes(high.z), unpack_level_bytes(high.w)),
        vec2<f32>(step),
        vec2<f32>(0.0),
    );
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
