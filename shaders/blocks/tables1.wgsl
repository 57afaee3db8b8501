// 32 weights from four codebook entries of eight values in -1, 0, 1, shifted by an eighth.
//#include blocks/signed.wgsl

/// Entries `e` of the table whose first word is `table`, times a step, plus an offset for each;
/// the first 16 weights and the last have a step each.
fn unpack_shifted(table: u32, e: vec4<u32>, step: vec2<f32>, offset: vec4<f32>) -> array<vec4<f32>, 8> {
    let at = vec4<u32>(table) + (e << vec4<u32>(1u));
    return array<vec4<f32>, 8>(
        unpack_signed(word(at.x)) * step.x + offset.x,
        unpack_signed(word(at.x + 1u)) * step.x + offset.x,
        unpack_signed(word(at.y)) * step.x + offset.y,
        unpack_signed(word(at.y + 1u)) * step.x + offset.y,
        unpack_signed(word(at.z)) * step.y + offset.z,
        unpack_signed(word(at.z + 1u)) * step.y + offset.z,
        unpack_signed(word(at.w)) * step.y + offset.w,
        unpack_signed(word(at.w + 1u)) * step.y + offset.w,
    );
}
