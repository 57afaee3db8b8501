// IQ3_XXS. Planes: 64 bytes of entries, 32 of signs and scales, a half, the table.
//#include blocks/half.wgsl
//#include blocks/tables4.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let at = matrix.plane.x + (run << 1u);
    let bits = word(matrix.plane.y + run);
    let a = vec4<u32>(word(at)) >> vec4<u32>(0u, 8u, 16u, 24u);
    let b = vec4<u32>(word(at + 1u)) >> vec4<u32>(0u, 8u, 16u, 24u);
    let signs = vec4<u32>(
        unpack_even_signs(bits),
        unpack_even_signs(bits >> 7u),
        unpack_even_signs(bits >> 14u),
        unpack_even_signs(bits >> 21u),
    );
    let step = unpack_half_at(matrix.plane.z, run >> 3u) * (0.5 + f32(bits >> 28u)) * 0.5;
    return unpack_fours(matrix.plane.w, a & vec4<u32>(255u), b & vec4<u32>(255u), signs, step);
}
