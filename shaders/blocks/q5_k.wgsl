// Q5_K. Planes: 128 bytes of nibbles, 32 of fifth bits, 16 of factors and scales.
//#include blocks/bytes.wgsl
//#include blocks/scales_k4.wgsl

fn codes32(run: u32) -> Codes {
    let block = run >> 3u;
    let g = run & 7u;
    let i = (matrix.plane.x >> 2u) + (block << 3u) + (g & 6u);
    let j = (matrix.plane.y >> 2u) + (block << 1u);
    let scale_min = unpack_scale_min(weights[(matrix.plane.z >> 2u) + block], g);
    let shift = vec4<u32>((g & 1u) << 2u);
    let high = vec4<u32>(g);
    let low = vec4<u32>(0x0f0f0f0fu);
    let bit = vec4<u32>(0x01010101u);
    return Codes(
        ((weights[i] >> shift) & low) | (((weights[j] >> high) & bit) << vec4<u32>(4u)),
        ((weights[i + 1u] >> shift) & low) | (((weights[j + 1u] >> high) & bit) << vec4<u32>(4u)),
        scale_min.xx,
        scale_min.yy,
    );
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
