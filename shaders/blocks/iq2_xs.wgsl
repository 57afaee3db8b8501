// IQ2_XS. Planes: 64 bytes of entries and signs, 8 of scales, a half, the table.
//#include blocks/half.wgsl
//#include blocks/tables8.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let block = run >> 3u;
    let g = run & 7u;
    let at = matrix.plane.x + (run << 1u);
    let a = word(at);
    let b = word(at + 1u);
    let signs = vec4<u32>(
        unpack_even_signs(a >> 9u),
        unpack_even_signs(a >> 25u),
        unpack_even_signs(b >> 9u),
        unpack_even_signs(b >> 25u),
    );
    let nibbles = word(matrix.plane.y + (block << 1u) + (g >> 2u)) >> ((g & 3u) << 3u);
    let scale = vec2<f32>(vec2<u32>(nibbles, nibbles >> 4u) & vec2<u32>(15u));
    let step = unpack_half_at(matrix.plane.z, block) * (scale + 0.5) * 0.25;
    return unpack_eights(matrix.plane.w, vec4<u32>(a, a >> 16u, b, b >> 16u) & vec4<u32>(511u), signs, step);
}
