// IQ1_S. Planes: 32 bytes of entries, 16 of upper bits, scales and shifts, a half, the table.
//#include blocks/half.wgsl
//#include blocks/tables1.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let low = (vec4<u32>(word(matrix.plane.x + run)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let bits = word(matrix.plane.y + (run >> 1u)) >> ((run & 1u) << 4u);
    let high = (vec4<u32>(bits) >> vec4<u32>(0u, 3u, 6u, 9u)) & vec4<u32>(7u);
    let step = unpack_half_at(matrix.plane.z, run >> 3u) * f32(((bits >> 11u) & 14u) + 1u);
    let shift = step * select(0.125, -0.125, (bits & 0x8000u) != 0u);
    return unpack_shifted(matrix.plane.w, low | (high << vec4<u32>(8u)), vec2<f32>(step), vec4<f32>(shift));
}
