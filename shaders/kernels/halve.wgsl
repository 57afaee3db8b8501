// Rows of floats to halves, for products in halves. A row is multiplied by a power of two, so that its
// largest value lies between 2 and 4: it then neither overflows nor loses its small values. A
// workgroup a row; behind the row's runs stands the exponent that takes it back.
//
// Constant: THREADS.
struct Halve {
    /// Runs of a row, and vectors (before) and vectors of eight halves (after) from one to the next.
    runs: u32,
    x_stride: u32,
    y_stride: u32,
    pad: u32,
}

@group(0) @binding(0) var<storage, read> inputs: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> halve: Halve;
@group(0) @binding(2) var<storage, read_write> outputs: array<vec4<u32>>;

var<workgroup> partial: array<f32, THREADS>;

fn pack_four(x: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(pack2x16float(x.xy), pack2x16float(x.zw));
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let x = workgroup.x * halve.x_stride;
    let y = workgroup.x * halve.y_stride;
    var most = vec4<f32>(0.0);
    for (var i = thread; i < halve.runs * 8u; i += THREADS) {
        most = max(most, abs(inputs[x + i]));
    }
    partial[thread] = max(max(most.x, most.y), max(most.z, most.w));
    workgroupBarrier();
    for (var n = THREADS / 2u; n > 0u; n /= 2u) {
        if thread < n {
            partial[thread] = max(partial[thread], partial[thread + n]);
        }
        workgroupBarrier();
    }
    // The exponent of the largest, within what its inverse can be.
    let exponent = clamp(i32(bitcast<u32>(partial[0]) >> 23u), 31, 223) - 127;
    let scale = bitcast<f32>(u32(128 - exponent) << 23u);
    for (var run = thread; run < halve.runs; run += THREADS) {
        let at = x + run * 8u;
//#repeat i 8
        let x_$i = inputs[at + $iu] * scale;
//#end
        let to = y + run * 4u;
        outputs[to] = vec4<u32>(pack_four(x_0), pack_four(x_1));
        outputs[to + 1u] = vec4<u32>(pack_four(x_2), pack_four(x_3));
        outputs[to + 2u] = vec4<u32>(pack_four(x_4), pack_four(x_5));
        outputs[to + 3u] = vec4<u32>(pack_four(x_6), pack_four(x_7));
    }
    if thread == 0u {
        outputs[y + halve.runs * 4u] = vec4<u32>(pack2x16float(vec2<f32>(f32(exponent - 1), 0.0)), 0u, 0u, 0u);
    }
}
