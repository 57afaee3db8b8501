// Four small integers in the bytes of a word, and 32 in two vectors of words.
//#include blocks/codes.wgsl

/// The bytes of `w`, the lowest first.
fn unpack_bytes(w: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
}

/// 32 weights `step·q + offset`, where the first 16 (bytes of `a`) and the last (of `b`) have a
/// step and an offset each.
fn unpack_affine(a: vec4<u32>, b: vec4<u32>, step: vec2<f32>, offset: vec2<f32>) -> array<vec4<f32>, 8> {
    return array<vec4<f32>, 8>(
        unpack_bytes(a.x) * step.x + offset.x,
        unpack_bytes(a.y) * step.x + offset.x,
        unpack_bytes(a.z) * step.x + offset.x,
        unpack_bytes(a.w) * step.x + offset.x,
        unpack_bytes(b.x) * step.y + offset.y,
        unpack_bytes(b.y) * step.y + offset.y,
        unpack_bytes(b.z) * step.y + offset.y,
        unpack_bytes(b.w) * step.y + offset.y,
    );
}

/// The same from codes of at most seven bits.
fn unpack_codes(c: Codes) -> array<vec4<f32>, 8> {
    return unpack_affine(c.a, c.b, c.step, c.offset);
}
