// BF16, the upper halves of floats. Plane 0: the weights.

fn unpack_four(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let i = (matrix.plane.x >> 2u) + (run << 2u);
    let a = weights[i];
    let b = weights[i + 1u];
    let c = weights[i + 2u];
    let d = weights[i + 3u];
    return array<vec4<f32>, 8>(
        unpack_four(a.x, a.y),
        unpack_four(a.z, a.w),
        unpack_four(b.x, b.y),
        unpack_four(b.z, b.w),
        unpack_four(c.x, c.y),
        unpack_four(c.z, c.w),
        unpack_four(d.x, d.y),
        unpack_four(d.z, d.w),
    );
}
