// 32 weights from four codebook entries of eight magnitudes.
//#include blocks/tables.wgsl

/// Entries `e` of the table whose first word is `table`, with eight sign bits each; the first 16
/// weights and the last have a step each.
fn unpack_eights(table: u32, e: vec4<u32>, signs: vec4<u32>, step: vec2<f32>) -> array<vec4<f32>, 8> {
    let at = vec4<u32>(table) + (e << vec4<u32>(1u));
    return array<vec4<f32>, 8>(
        unpack_magnitudes(word(at.x), signs.x) * step.x,
        unpack_magnitudes(word(at.x + 1u), signs.x >> 4u) * step.x,
        unpack_magnitudes(word(at.y), signs.y) * step.x,
        unpack_magnitudes(word(at.y + 1u), signs.y >> 4u) * step.x,
        unpack_magnitudes(word(at.z), signs.z) * step.y,
        unpack_magnitudes(word(at.z + 1u), signs.z >> 4u) * step.y,
        unpack_magnitudes(word(at.w), signs.w) * step.y,
        unpack_magnitudes(word(at.w + 1u), signs.w >> 4u) * step.y,
    );
}
