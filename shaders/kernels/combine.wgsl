// The parts of attention with feature `split` to whole rows: each part's sums by how far its maximum is
// below the largest, over their weights likewise. A workgroup a head and row, a thread four values.
//
// Constants: HEAD4 = head_dim / 4; THREADS, at least HEAD4.
struct Combine {
    /// Vectors from one row of outputs to the next.
    y_stride: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> combine: Combine;
@group(0) @binding(2) var<storage, read_write> outputs: array<vec4<f32>>;
//#include pass

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    if thread >= HEAD4 {
        return;
    }
    let row = pass_.first + workgroup.y;
    let count = (pass_.start + pass_.rows + pass_.split - 1u) / pass_.split;
    let begin = (row * workgroups.x + workgroup.x) * count * (HEAD4 + 1u);
    var most = -3.0e38;
    for (var p = 0u; p < count; p += 1u) {
        most = max(most, parts[begin + p * (HEAD4 + 1u) + HEAD4].x);
    }
    var sum = vec4<f32>(0.0);
    var total = 0.0;
    for (var p = 0u; p < count; p += 1u) {
        let at = begin + p * (HEAD4 + 1u);
        let peak = parts[at + HEAD4];
        // A part that this row does not see weighs nothing.
        if peak.y > 0.0 {
            let by = exp(peak.x - most);
            sum = fma(parts[at + thread], vec4<f32>(by), sum);
            total = fma(peak.y, by, total);
        }
    }
    outputs[row * combine.y_stride + workgroup.x * HEAD4 + thread] = sum / total;
}
