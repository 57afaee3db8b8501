// Q8_0. Planes: 32 signed bytes, a half.
//#include blocks/half.wgsl
//#include blocks/signed.wgsl
//#include blocks/codes.wgsl

fn codes32(run: u32) -> Codes {
    let i = (matrix.plane.x >> 2u) + (run << 1u);
    let d = unpack_half_at(matrix.plane.y, run);
    return Codes(weights[i], weights[i + 1u], vec2<f32>(d), vec2<f32>(0.0));
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let c = codes32(run);
    return unpack_linear(c.a, c.b, c.step);
}
