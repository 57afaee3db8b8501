// Q2_K. Planes: 64 bytes of quants, 16 of scales and minima, a word of two halves.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

fn codes32(run: u32) -> Codes {
    let block = run >> 3u;
    let g = run & 7u;
    let i = (matrix.plane.x >> 2u) + (block << 2u) + ((g >> 2u) << 1u);
    let shift = vec4<u32>((g & 3u) << 1u);
    let mask = vec4<u32>(0x03030303u);
    let nibbles = word(matrix.plane.y + (block << 2u) + (g >> 1u)) >> ((g & 1u) << 4u);
    let scale = vec2<f32>(vec2<u32>(nibbles, nibbles >> 8u) & vec2<u32>(15u));
    let minimum = vec2<f32>(vec2<u32>(nibbles >> 4u, nibbles >> 12u) & vec2<u32>(15u));
    let factors = unpack_halves(word(matrix.plane.z + block));
    return Codes(
        (weights[i] >> shift) & mask,
        (weights[i + 1u] >> shift) & mask,
        factors.x * scale,
        -factors.y * minimum,
    );
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_codes(codes32(run));
}
