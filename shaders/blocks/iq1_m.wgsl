// IQ1_M. Planes: 32 bytes of entries, 16 of upper bits and shifts, 8 of scales and their factor,
// the table.
//#include blocks/half.wgsl
//#include blocks/tables1.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let g = run & 7u;
    let low = (vec4<u32>(word(matrix.plane.x + run)) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u);
    let nibbles = vec4<u32>(word(matrix.plane.y + (run >> 1u)) >> ((run & 1u) << 4u)) >> vec4<u32>(0u, 4u, 8u, 12u);
    let at = matrix.plane.z + ((run >> 3u) << 1u);
    let a = word(at);
    let b = word(at + 1u);
    // A quarter of the half tops each of the four 16-bit words.
    let factor = unpack_half(((a >> 12u) & 0xfu) | ((a >> 24u) & 0xf0u) | ((b >> 4u) & 0xf00u) | ((b >> 16u) & 0xf000u));
    let threes = select(a, b, g > 3u) >> ((((g >> 1u) & 1u) << 4u) + (g & 1u) * 6u);
    let scale = vec2<u32>(threes, threes >> 3u) & vec2<u32>(7u);
    let step = factor * vec2<f32>(scale * 2u + vec2<u32>(1u));
    let eighth = select(vec4<f32>(0.125), vec4<f32>(-0.125), (nibbles & vec4<u32>(8u)) != vec4<u32>(0u));
    let entries = low | ((nibbles & vec4<u32>(7u)) << vec4<u32>(8u));
    return unpack_shifted(matrix.plane.w, entries, step, step.xxyy * eighth);
}
