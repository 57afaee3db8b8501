// IQ2_XXS. Planes: 64 bytes of entries, signs and scales, a half, the table.
//#include blocks/half.wgsl
//#include blocks/tables8.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let at = matrix.plane.x + (run << 1u);
    let entries = (vec4<u32>(word(at)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let bits = word(at + 1u);
    let signs = vec4<u32>(
        unpack_even_signs(bits),
        unpack_even_signs(bits >> 7u),
        unpack_even_signs(bits >> 14u),
        unpack_even_signs(bits >> 21u),
    );
    let step = unpack_half_at(matrix.plane.y, run >> 3u) * (0.5 + f32(bits >> 28u)) * 0.25;
    return unpack_eights(matrix.plane.z, entries, signs, vec2<f32>(step));
}
