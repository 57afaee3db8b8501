// 32 weights from eight codebook entries of four magnitudes.
//#include blocks/tables.wgsl

/// Entries `a` and `b` of the table whose first word is `table`; eight sign bits for each two.
fn unpack_fours(table: u32, a: vec4<u32>, b: vec4<u32>, signs: vec4<u32>, step: f32) -> array<vec4<f32>, 8> {
    return array<vec4<f32>, 8>(
        unpack_magnitudes(word(table + a.x), signs.x) * step,
        unpack_magnitudes(word(table + a.y), signs.x >> 4u) * step,
        unpack_magnitudes(word(table + a.z), signs.y) * step,
        unpack_magnitudes(word(table + a.w), signs.y >> 4u) * step,
        unpack_magnitudes(word(table + b.x), signs.z) * step,
        unpack_magnitudes(word(table + b.y), signs.z >> 4u) * step,
        unpack_magnitudes(word(table + b.z), signs.w) * step,
        unpack_magnitudes(word(table + b.w), signs.w >> 4u) * step,
    );
}
