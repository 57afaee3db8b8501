// Weights as small integers: what products with activations of 8 bits take.

/// 32 weights `step·code + offset`: the codes are signed bytes, the first 16 in `a` and the last in `b`,
/// with a step and an offset each.
struct Codes {
    a: vec4<u32>,
    b: vec4<u32>,
    step: vec2<f32>,
    offset: vec2<f32>,
}
