// Q6_K. Planes: 128 bytes of low nibbles, 64 of upper two bits, 16 signed scales, a half.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

fn codes32(run: u32) -> Codes {
    let block = run >> 3u;
    let g = run & 7u;
    let half = (g >> 2u) << 1u;
    let i = (matrix.plane.x >> 2u) + (block << 3u) + (half << 1u) + ((g & 1u) << 1u);
    let j = (matrix.plane.y >> 2u) + (block << 2u) + half;
    let nibble = vec4<u32>((g & 2u) << 1u);
    let shift = vec4<u32>((g & 3u) << 1u);
    let low = vec4<u32>(0x0f0f0f0fu);
    let mask = vec4<u32>(0x03030303u);
    let scales = word(matrix.plane.z + (block << 2u) + (g >> 1u)) << (16u - ((g & 1u) << 4u));
    let scale = bitcast<vec2<i32>>(vec2<u32>(scales << 8u, scales)) >> vec2<u32>(24u);
    let step = unpack_half_at(matrix.plane.w, block) * vec2<f32>(scale);
    return Codes(
        ((weights[i] >> nibble) & low) | (((weights[j] >> shift) & mask) << vec4<u32>(4u)),
        ((weights[i + 1u] >> nibble) & low) | (((weights[j + 1u] >> shift) & mask) << vec4<u32>(4u)),
        step,
        -32.0 * step,
    );
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
