// Reads and writes as fast as the memory goes: what other kernels are measured against.
//
// Constant: THREADS.
@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> target_: array<vec4<u32>>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
) {
    let i = id.y * workgroups.x * THREADS + id.x;
    if i < arrayLength(&source) {
        target_[i] = source[i];
    }
}
