// IQ2_S. Planes: 32 bytes of entries and 32 of signs, 8 of upper bits and 8 of scales, a half,
// the table.
//#include blocks/half.wgsl
//#include blocks/tables8.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let block = run >> 3u;
    let g = run & 7u;
    let at = matrix.plane.x + (block << 4u) + g;
    let low = (vec4<u32>(word(at)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let signs = vec4<u32>(word(at + 8u)) >> vec4<u32>(0u, 8u, 16u, 24u);
    let more = matrix.plane.y + (block << 2u) + (g >> 2u);
    let byte = (g & 3u) << 3u;
    let twos = vec4<u32>(word(more) >> byte) >> vec4<u32>(0u, 2u, 4u, 6u);
    let entries = low | ((twos & vec4<u32>(3u)) << vec4<u32>(8u));
    let nibbles = word(more + 2u) >> byte;
    let scale = vec2<f32>(vec2<u32>(nibbles, nibbles >> 4u) & vec2<u32>(15u));
    let step = unpack_half_at(matrix.plane.z, block) * (scale + 0.5) * 0.25;
    return unpack_eights(matrix.plane.w, entries, signs, step);
}
