// Q8_0. Planes: 32 signed bytes, a half.
//#include blocks/half.wgsl
//#include blocks/signed.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let i = (matrix.plane.x >> 2u) + (run << 1u);
    let d = unpack_half_at(matrix.plane.y, run);
    return unpack_linear(weights[i], weights[i + 1u], vec2<f32>(d));
}
