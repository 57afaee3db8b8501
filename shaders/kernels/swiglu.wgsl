// silu(gate) · up, row by row; a row of inputs is gate, then up.
//
// Constant: THREADS.
struct Swiglu {
    /// Vectors of a row of gates, from one row of inputs to the next, from gates to ups, and from
    /// one row of outputs to the next.
    width: u32,
    x_stride: u32,
    up: u32,
    y_stride: u32,
}

@group(0) @binding(0) var<storage, read> inputs: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> swiglu: Swiglu;
@group(0) @binding(2) var<storage, read_write> outputs: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= swiglu.width {
        return;
    }
    let at = id.y * swiglu.x_stride + id.x;
    let gate = inputs[at];
    let up = inputs[at + swiglu.up];
    // e^(−x) past the largest float is infinity, and the quotient then 0, as it should be.
    outputs[id.y * swiglu.y_stride + id.x] = gate / (vec4<f32>(1.0) + exp(-gate)) * up;
}
