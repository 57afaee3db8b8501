// RMS norm of each row: x · weight / √(mean x² + eps). A workgroup a row.
//
// Constant: THREADS.
struct Norm {
    /// Vectors in a row, and from one row to the next before and after.
    width: u32,
    x_stride: u32,
    y_stride: u32,
    eps: f32,
}

@group(0) @binding(0) var<storage, read> rows: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> norm: Norm;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> outputs: array<vec4<f32>>;
//#include pass

var<workgroup> partial: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let x = (pass_.first + workgroup.x) * norm.x_stride;
    let y = workgroup.x * norm.y_stride;
    var sum = vec4<f32>(0.0);
    for (var i = thread; i < norm.width; i += THREADS) {
        let v = rows[x + i];
        sum = fma(v, v, sum);
    }
    partial[thread] = (sum.x + sum.z) + (sum.y + sum.w);
    workgroupBarrier();
    for (var n = THREADS / 2u; n > 0u; n /= 2u) {
        if thread < n {
            partial[thread] += partial[thread + n];
        }
        workgroupBarrier();
    }
    let scale = 1.0 / sqrt(partial[0] / f32(norm.width * 4u) + norm.eps);
    for (var i = thread; i < norm.width; i += THREADS) {
        outputs[y + i] = rows[x + i] * scale * weight[i];
    }
}
