// Causal attention of one head over the cache, 64 positions at a time: scores are never all in
// memory, only those of the tile at hand (a running maximum and sum rescale what was added before).
//
// A workgroup is one row and one head. Constant: HEAD4 = head_dim / 4, at most 64.
struct Attention {
    /// Vectors from one row of Q to the next, of keys, of outputs.
    q_stride: u32,
    kv_stride: u32,
    y_stride: u32,
    /// Query heads that share a key head.
    group: u32,
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> attention: Attention;
@group(0) @binding(2) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> values: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> outputs: array<vec4<f32>>;
//#include pass

const TILE: u32 = 64u;
/// Threads that add up the values of a tile: PARTS of them for each vector of the head.
const PARTS: u32 = TILE / HEAD4;
var<workgroup> q: array<vec4<f32>, HEAD4>;
var<workgroup> scores: array<f32, TILE>;
var<workgroup> partial: array<f32, TILE>;
var<workgroup> sums: array<vec4<f32>, TILE>;

fn floats(h: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));
}

@compute @workgroup_size(TILE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let head = workgroup.x;
    let row = pass_.first + workgroup.y;
    let len = pass_.start + workgroup.y + 1u;
    let kv = head / attention.group * HEAD4;
    if thread < HEAD4 {
        q[thread] = queries[row * attention.q_stride + head * HEAD4 + thread] * attention.scale;
    }
    workgroupBarrier();
    let part = thread / HEAD4;
    let dim = thread % HEAD4;
    var most = -3.0e38;
    var total = 0.0;
    var mixed = vec4<f32>(0.0);
    for (var begin = 0u; begin < len; begin += TILE) {
        let position = begin + thread;
        var score = -3.0e38;
        if position < len {
            let at = position * attention.kv_stride + kv;
            var sum = vec4<f32>(0.0);
            for (var d = 0u; d < HEAD4; d += 1u) {
                sum = fma(q[d], floats(keys[at + d]), sum);
            }
            score = (sum.x + sum.z) + (sum.y + sum.w);
        }
        partial[thread] = score;
        workgroupBarrier();
        for (var n = TILE / 2u; n > 0u; n /= 2u) {
            if thread < n {
                partial[thread] = max(partial[thread], partial[thread + n]);
            }
            workgroupBarrier();
        }
        let now = max(most, partial[0]);
        workgroupBarrier();
        var weight = 0.0;
        if position < len {
            weight = exp(score - now);
        }
        scores[thread] = weight;
        partial[thread] = weight;
        workgroupBarrier();
        for (var n = TILE / 2u; n > 0u; n /= 2u) {
            if thread < n {
                partial[thread] += partial[thread + n];
            }
            workgroupBarrier();
        }
        let before = exp(most - now);
        total = fma(total, before, partial[0]);
        mixed *= before;
        most = now;
        if part < PARTS {
            let end = min(TILE, len - begin);
            for (var t = part; t < end; t += PARTS) {
                mixed = fma(
                    vec4<f32>(scores[t]),
                    floats(values[(begin + t) * attention.kv_stride + kv + dim]),
                    mixed,
                );
            }
        }
        workgroupBarrier();
    }
    sums[thread] = mixed;
    workgroupBarrier();
    if thread < HEAD4 {
        var sum = sums[thread];
        for (var p = 1u; p < PARTS; p += 1u) {
            sum += sums[p * HEAD4 + thread];
        }
        outputs[row * attention.y_stride + head * HEAD4 + thread] = sum / total;
    }
}
