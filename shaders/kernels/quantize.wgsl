// Rows of floats to 8 bits, for products of whole numbers: each run of 32 values becomes 32 signed bytes with
// one step, largest / 127. A thread is a run; what it writes are three vectors: the bytes, and in the
// third the step and the sums of the first 16 and of the last 16 bytes, times the step (what
// the offsets of weights are multiplied with).
//
// Constant: THREADS.
struct Quantize {
    /// Runs of a row, and vectors from one row to the next before and after.
    runs: u32,
    x_stride: u32,
    y_stride: u32,
    pad: u32,
}

@group(0) @binding(0) var<storage, read> inputs: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> quantize: Quantize;
@group(0) @binding(2) var<storage, read_write> outputs: array<vec4<u32>>;

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

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let run = id.x;
    if run >= quantize.runs {
        return;
    }
    let at = id.y * quantize.x_stride + run * 8u;
    var most = vec4<f32>(0.0);
//#repeat i 8
    let x_$i = inputs[at + $iu];
    most = max(most, abs(x_$i));
//#end
    let scale = step_of(most);
//#repeat i 8
    let code_$i = pack4xI8(codes_of(x_$i, scale));
//#end
    let ones = 0x01010101u;
    let first = (dot4I8Packed(code_0, ones) + dot4I8Packed(code_1, ones)) + (dot4I8Packed(code_2, ones) + dot4I8Packed(code_3, ones));
    let last = (dot4I8Packed(code_4, ones) + dot4I8Packed(code_5, ones)) + (dot4I8Packed(code_6, ones) + dot4I8Packed(code_7, ones));
    let to = id.y * quantize.y_stride + run * 3u;
    outputs[to] = vec4<u32>(code_0, code_1, code_2, code_3);
    outputs[to + 1u] = vec4<u32>(code_4, code_5, code_6, code_7);
    outputs[to + 2u] = bitcast<vec4<u32>>(vec4<f32>(scale.x, scale.x * f32(first), scale.x * f32(last), 0.0));
}
