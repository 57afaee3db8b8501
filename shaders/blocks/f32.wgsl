// F32. Plane 0: the weights.

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let i = (matrix.plane.x >> 2u) + (run << 3u);
    return array<vec4<f32>, 8>(
        bitcast<vec4<f32>>(weights[i]),
        bitcast<vec4<f32>>(weights[i + 1u]),
        bitcast<vec4<f32>>(weights[i + 2u]),
        bitcast<vec4<f32>>(weights[i + 3u]),
        bitcast<vec4<f32>>(weights[i + 4u]),
        bitcast<vec4<f32>>(weights[i + 5u]),
        bitcast<vec4<f32>>(weights[i + 6u]),
        bitcast<vec4<f32>>(weights[i + 7u]),
    );
}
