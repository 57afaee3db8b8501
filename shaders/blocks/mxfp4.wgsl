// MXFP4. Planes: 16 bytes of nibbles, an exponent.
//#include blocks/bytes.wgsl

/// The levels of four nibbles (one in each byte of `q`), halved: a sign, two
/// bits of exponent, one of fraction.
fn unpack_quarters(q: u32) -> vec4<f32> {
    let n = vec4<u32>(q) >> vec4<u32>(0u, 8u, 16u, 24u);
    // Exponent 0 has no leading one.
    let small = vec4<f32>(n & vec4<u32>(1u)) * 0.25;
    let normal = bitcast<vec4<f32>>(((n & vec4<u32>(7u)) << vec4<u32>(22u)) + vec4<u32>(0x3f000000u - 0x00800000u));
    let size = select(normal, small, (n & vec4<u32>(6u)) == vec4<u32>(0u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(size) | ((n & vec4<u32>(8u)) << vec4<u32>(28u)));
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let q = weights[(matrix.plane.x >> 2u) + run];
    let e = (word(matrix.plane.y + (run >> 2u)) >> ((run & 3u) << 3u)) & 255u;
    // Four times the step, 2 to the power of e - 126: even the lowest is a normal number. The two
    // highest, of weights near the largest float, are taken for the one below them.
    let step = bitcast<f32>((min(e, 253u) + 1u) << 23u);
    let high = q >> vec4<u32>(4u);
    return array<vec4<f32>, 8>(
        unpack_quarters(q.x) * step,
        unpack_quarters(q.y) * step,
        unpack_quarters(q.z) * step,
        unpack_quarters(q.w) * step,
        unpack_quarters(high.x) * step,
        unpack_quarters(high.y) * step,
        unpack_quarters(high.z) * step,
        unpack_quarters(high.w) * step,
    );
}
