// The step of a run of activations in 8 bits.

/// The step for magnitudes up to those in `most`, and its inverse.
fn step_of(most: vec4<f32>) -> vec2<f32> {
    let largest = max(max(most.x, most.y), max(most.z, most.w));
    // Rows of nothing, and the inverse of what is next to nothing, must not become infinite.
    return select(vec2<f32>(0.0), vec2<f32>(largest / 127.0, 127.0 / largest), largest > 1.0e-30);
}

/// Whole numbers from −127 to 127.
fn codes_of(x: vec4<f32>, scale: vec2<f32>) -> vec4<i32> {
    return vec4<i32>(clamp(round(x * scale.y), vec4<f32>(-127.0), vec4<f32>(127.0)));
}
