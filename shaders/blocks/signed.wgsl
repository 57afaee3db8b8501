// Four signed bytes in a word, and 32 in two vectors of words.

/// The bytes of `w` as numbers from -128 to 127, the lowest first.
fn unpack_signed(w: u32) -> vec4<f32> {
    let high = vec4<u32>(w) << vec4<u32>(24u, 16u, 8u, 0u);
    return vec4<f32>(bitcast<vec4<i32>>(high) >> vec4<u32>(24u));
}

/// 32 weights `step·q`, where the first 16 (bytes of `a`) and the last (of `b`) have a step each.
fn unpack_linear(a: vec4<u32>, b: vec4<u32>, step: vec2<f32>) -> array<vec4<f32>, 8> {
    return array<vec4<f32>, 8>(
        unpack_signed(a.x) * step.x,
        unpack_signed(a.y) * step.x,
        unpack_signed(a.z) * step.x,
        unpack_signed(a.w) * step.x,
        unpack_signed(b.x) * step.y,
        unpack_signed(b.y) * step.y,
        unpack_signed(b.z) * step.y,
        unpack_signed(b.w) * step.y,
    );
}
