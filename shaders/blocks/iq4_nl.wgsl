// IQ4_NL. Planes: 16 bytes of nibbles, a half.
//#include blocks/half.wgsl
//#include blocks/levels.wgsl

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_nonlinear(weights[(matrix.plane.x >> 2u) + run], unpack_half_at(matrix.plane.y, run));
}

fn codes32(run: u32) -> Codes {
    return unpack_nonlinear_codes(weights[(matrix.plane.x >> 2u) + run], unpack_half_at(matrix.plane.y, run));
}
