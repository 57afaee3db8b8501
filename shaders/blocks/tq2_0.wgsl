// TQ2_0. Planes: 64 bytes of quants, a half.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

fn codes32(run: u32) -> Codes {
    let block = run >> 3u;
    let g = run & 7u;
    let i = (matrix.plane.x >> 2u) + (block << 2u) + ((g >> 2u) << 1u);
    let d = unpack_half_at(matrix.plane.y, block);
    let shift = vec4<u32>((g & 3u) << 1u);
    let mask = vec4<u32>(0x03030303u);
    return Codes((weights[i] >> shift) & mask, (weights[i + 1u] >> shift) & mask, vec2<f32>(d), vec2<f32>(-d));
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
