// Q4_K. Planes: 128 bytes of nibbles, 16 of factors and scales.
//#include blocks/bytes.wgsl
//#include blocks/scales_k4.wgsl

fn codes32(run: u32) -> Codes {
    let block = run >> 3u;
    let g = run & 7u;
    let i = (matrix.plane.x >> 2u) + (block << 3u) + (g & 6u);
    let scale_min = unpack_scale_min(weights[(matrix.plane.y >> 2u) + block], g);
    let shift = vec4<u32>((g & 1u) << 2u);
    let low = vec4<u32>(0x0f0f0f0fu);
    return Codes((weights[i] >> shift) & low, (weights[i + 1u] >> shift) & low, scale_min.xx, scale_min.yy);
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
