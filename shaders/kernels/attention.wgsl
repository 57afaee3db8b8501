// Causal attention of one head over the cache, 64 positions at a time: scores are never all in
// memory, only those of the tile at hand (a running maximum rescales what was added before; sums
// stay with their threads until the end).
//
// A workgroup is one head and QUERIES rows, which share what is read of the cache. Feature `split`: and
// `pass_.split` positions, of which it keeps the sums, their weight and the maximum, for combine.wgsl.
// Constants: HEAD4 = head_dim / 4, at most 64; QUERIES; GROUPS, the parts of 64 threads whose
// maxima are put together (with feature `subgroups`: the subgroups; else 8).
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
//#if split
/// By row, head and part: the sums, then the maximum and the weight.
//#end
@group(0) @binding(4) var<storage, read_write> outputs: array<vec4<f32>>;
//#include pass

const TILE: u32 = 64u;
const LOWEST: f32 = -3.0e38;
/// Threads that add up the values of a tile: PARTS of them for each vector of the head.
const PARTS: u32 = TILE / HEAD4;
var<workgroup> q: array<vec4<f32>, QUERIES * HEAD4>;
var<workgroup> weights: array<f32, QUERIES * TILE>;
var<workgroup> most: array<f32, QUERIES * GROUPS>;
var<workgroup> sums: array<vec4<f32>, TILE>;

fn floats(h: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));
}

@compute @workgroup_size(TILE)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
//#if subgroups
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) group: u32,
//#end
) {
    let head = workgroup.x;
    let first = workgroup.y * QUERIES;
    let row = pass_.first + first;
    // Positions that the first row sees; each further one sees one more.
    let sees = pass_.start + first + 1u;
//#if split
    let front = workgroup.z * pass_.split;
    let end = min(pass_.start + min(first + QUERIES, pass_.rows), front + pass_.split);
//#else
    let front = 0u;
    let end = pass_.start + min(first + QUERIES, pass_.rows);
//#end
    let kv = head / attention.group * HEAD4;
    for (var i = thread; i < QUERIES * HEAD4; i += TILE) {
        let r = i / HEAD4;
        if first + r < pass_.rows {
            q[i] = queries[(row + r) * attention.q_stride + head * HEAD4 + i % HEAD4] * attention.scale;
        } else {
            q[i] = vec4<f32>(0.0);
        }
    }
    workgroupBarrier();
    let part = thread / HEAD4;
    let dim = thread % HEAD4;
//#repeat r QUERIES
    var most_$r = LOWEST;
    var total_$r = 0.0;
    var mixed_$r = vec4<f32>(0.0);
//#end
    for (var begin = front; begin < end; begin += TILE) {
        let position = begin + thread;
//#repeat r QUERIES
        var dot_$r = vec4<f32>(0.0);
//#end
        let at = min(position, end - 1u) * attention.kv_stride + kv;
        for (var d = 0u; d < HEAD4; d += 1u) {
            let key = floats(keys[at + d]);
//#repeat r QUERIES
            dot_$r = fma(q[$ru * HEAD4 + d], key, dot_$r);
//#end
        }
//#repeat r QUERIES
        var score_$r = LOWEST;
        if position < sees + $ru {
            score_$r = (dot_$r.x + dot_$r.z) + (dot_$r.y + dot_$r.w);
        }
//#if subgroups
        let top_$r = subgroupMax(score_$r);
        if lane == 0u {
            most[$ru * GROUPS + group] = top_$r;
        }
//#else
        weights[$ru * TILE + thread] = score_$r;
//#end
//#end
        workgroupBarrier();
//#if subgroups
//#else
        for (var i = thread; i < QUERIES * GROUPS; i += TILE) {
            var top = LOWEST;
            for (var j = 0u; j < TILE / GROUPS; j += 1u) {
                top = max(top, weights[i * (TILE / GROUPS) + j]);
            }
            most[i] = top;
        }
        workgroupBarrier();
//#end
//#repeat r QUERIES
        var now_$r = most_$r;
        for (var g = 0u; g < GROUPS; g += 1u) {
            now_$r = max(now_$r, most[$ru * GROUPS + g]);
        }
        let before_$r = exp(most_$r - now_$r);
        most_$r = now_$r;
        var weight_$r = 0.0;
        if position < sees + $ru {
            weight_$r = exp(score_$r - now_$r);
        }
        weights[$ru * TILE + thread] = weight_$r;
        total_$r = fma(total_$r, before_$r, weight_$r);
        mixed_$r *= before_$r;
//#end
        workgroupBarrier();
        if part < PARTS {
            let last = min(TILE, end - begin);
            for (var t = part; t < last; t += PARTS) {
                let value = floats(values[(begin + t) * attention.kv_stride + kv + dim]);
//#repeat r QUERIES
                // What a row does not see must not count, not even as 0 times infinity.
                if begin + t < sees + $ru {
                    mixed_$r = fma(vec4<f32>(weights[$ru * TILE + t]), value, mixed_$r);
                }
//#end
            }
        }
//#if subgroups
//#else
        // The next scores go where these weights are.
        workgroupBarrier();
//#end
    }
//#repeat r QUERIES
    workgroupBarrier();
    sums[thread] = mixed_$r;
    weights[thread] = total_$r;
    workgroupBarrier();
    if thread < HEAD4 && first + $ru < pass_.rows {
        var sum = sums[thread];
        for (var p = 1u; p < PARTS; p += 1u) {
            sum += sums[p * HEAD4 + thread];
        }
        var total = 0.0;
        for (var t = 0u; t < TILE; t += 1u) {
            total += weights[t];
        }
//#if split
        let to = (((row + $ru) * workgroups.x + head) * workgroups.z + workgroup.z) * (HEAD4 + 1u);
        outputs[to + thread] = sum;
        if thread == 0u {
            outputs[to + HEAD4] = vec4<f32>(most_$r, total, 0.0, 0.0);
        }
//#else
        outputs[(row + $ru) * attention.y_stride + head * HEAD4 + thread] = sum / total;
//#end
    }
//#end
}
