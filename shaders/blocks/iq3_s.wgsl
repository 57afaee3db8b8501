// IQ3_S. Planes: 64 bytes of entries, 44 of ninth bits, signs and scales, a half, the table.
//#include blocks/half.wgsl
//#include blocks/tables4.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let block = run >> 3u;
    let g = run & 7u;
    let at = matrix.plane.x + (run << 1u);
    let more = matrix.plane.y + block * 11u;
    let ninth = word(more + (g >> 2u)) >> ((g & 3u) << 3u);
    let a = (vec4<u32>(word(at)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let b = (vec4<u32>(word(at + 1u)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let bits = vec4<u32>(256u);
    let signs = vec4<u32>(word(more + 2u + g)) >> vec4<u32>(0u, 8u, 16u, 24u);
    let scale = (word(more + 10u) >> (g << 2u)) & 15u;
    let step = unpack_half_at(matrix.plane.z, block) * f32(2u * scale + 1u);
    return unpack_fours(
        matrix.plane.w,
        a | ((vec4<u32>(ninth) << vec4<u32>(8u, 7u, 6u, 5u)) & bits),
        b | ((vec4<u32>(ninth) << vec4<u32>(4u, 3u, 2u, 1u)) & bits),
        signs,
        step,
    );
}
