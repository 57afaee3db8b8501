// IQ4_XS. Planes: 128 bytes of nibbles, two words of factor and scales.
//#include blocks/half.wgsl
//#include blocks/levels.wgsl

fn unpack_step(run: u32) -> f32 {
    let block = run >> 3u;
    let g = run & 7u;
    let at = matrix.plane.y + (block << 1u);
    let head = word(at);
    let low = (word(at + 1u) >> (g << 2u)) & 15u;
    let high = (head >> (16u + (g << 1u))) & 3u;
    return unpack_half(head) * (f32(low | (high << 4u)) - 32.0);
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    return unpack_nonlinear(weights[(matrix.plane.x >> 2u) + run], unpack_step(run));
}

fn codes32(run: u32) -> Codes {
    return unpack_nonlinear_codes(weights[(matrix.plane.x >> 2u) + run], unpack_step(run));
}
