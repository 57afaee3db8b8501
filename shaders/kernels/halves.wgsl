// What the products in halves share.

/// Weights as halves. Four products with activations below 4 must not become infinite in their sum: that holds up to
/// here, far above what weights of a model are.
fn half_of(w: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(w, vec4<f32>(-4090.0), vec4<f32>(4090.0)));
}

/// Two to the power of `exponent`.
fn power_of_two(exponent: f16) -> f32 {
    return bitcast<f32>(u32(i32(exponent) + 127) << 23u);
}
