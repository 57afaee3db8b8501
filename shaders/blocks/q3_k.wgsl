// Q3_K. Planes: 64 bytes of low bits, 32 of third bits, 12 of scales, a half.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

fn codes32(run: u32) -> Codes {
    let block = run >> 3u;
    let g = run & 7u;
    let i = (matrix.plane.x >> 2u) + (block << 2u) + ((g >> 2u) << 1u);
    let j = (matrix.plane.y >> 2u) + (block << 1u);
    let shift = vec4<u32>((g & 3u) << 1u);
    let high = vec4<u32>(g);
    let mask = vec4<u32>(0x03030303u);
    let bit = vec4<u32>(0x01010101u);
    // Two sub-blocks of 16: four bits of each scale here, two in the last word.
    let at = matrix.plane.z + block * 3u;
    let pair = (g & 1u) << 4u;
    let fours = word(at + ((g >> 1u) & 1u)) >> (pair + ((g >> 2u) << 2u));
    let twos = word(at + 2u) >> (pair + ((g >> 1u) << 1u));
    let scale = (vec2<u32>(fours, fours >> 8u) & vec2<u32>(15u)) | ((vec2<u32>(twos, twos >> 8u) & vec2<u32>(3u)) << vec2<u32>(4u));
    let step = unpack_half_at(matrix.plane.w, block) * (vec2<f32>(scale) - 32.0);
    return Codes(
        ((weights[i] >> shift) & mask) | (((weights[j] >> high) & bit) << vec4<u32>(2u)),
        ((weights[i + 1u] >> shift) & mask) | (((weights[j + 1u] >> high) & bit) << vec4<u32>(2u)),
        step,
        -4.0 * step,
    );
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
