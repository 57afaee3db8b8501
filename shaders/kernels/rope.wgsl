// Adds the biases to Q, K and V, turns Q and K by their positions, and writes K and V to the cache as
// halves. A thread has four values: two pairs of a head, or what is not turned.
//
// Feature `interleaved`: a pair is 2i and 2i + 1; else i and i + dims/2.
// Constant: THREADS.
struct Rope {
    /// Values of a row of Q, of K (and of V), and of a head.
    q_width: u32,
    kv_width: u32,
    head_dim: u32,
    /// Values of a head that turn.
    dims: u32,
}

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(1) var<uniform> rope: Rope;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
/// Cosine and sine of each pair, row after row.
@group(0) @binding(3) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;
//#include pass

fn turn(pair: vec2<f32>, by: vec2<f32>) -> vec2<f32> {
    return vec2<f32>(pair.x * by.x - pair.y * by.y, pair.x * by.y + pair.y * by.x);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let width = rope.q_width + 2u * rope.kv_width;
    let chunk = id.x * 4u;
    if chunk >= width {
        return;
    }
    let row = pass_.first + id.y;
    let head = chunk / rope.head_dim * rope.head_dim;
    let c = chunk - head;
    let turned = c < rope.dims && chunk < rope.q_width + rope.kv_width;
    // Values a, a + 1, b, b + 1.
    var a = chunk;
    var b = chunk + 2u;
//#if interleaved
//#else
    if turned {
        a = head + c / 2u;
        b = a + rope.dims / 2u;
    }
//#end
    let at = row * width;
    var x = vec4<f32>(
        qkv[at + a] + bias[a],
        qkv[at + a + 1u] + bias[a + 1u],
        qkv[at + b] + bias[b],
        qkv[at + b + 1u] + bias[b + 1u],
    );
    if turned {
        let by = row * (rope.dims / 2u) + c / 2u;
//#if interleaved
        x = vec4<f32>(turn(x.xy, turns[by]), turn(x.zw, turns[by + 1u]));
//#else
        let one = turn(x.xz, turns[by]);
        let two = turn(x.yw, turns[by + 1u]);
        x = vec4<f32>(one.x, two.x, one.y, two.y);
//#end
    }
    let position = pass_.start + id.y;
    if chunk < rope.q_width {
        qkv[at + a] = x.x;
        qkv[at + a + 1u] = x.y;
        qkv[at + b] = x.z;
        qkv[at + b + 1u] = x.w;
    } else if chunk < rope.q_width + rope.kv_width {
        let to = position * rope.kv_width - rope.q_width;
        keys[(to + a) / 2u] = pack2x16float(x.xy);
        keys[(to + b) / 2u] = pack2x16float(x.zw);
    } else {
        let to = position * rope.kv_width - rope.q_width - rope.kv_width;
        values[(to + a) / 2u] = pack2x16float(x.xy);
        values[(to + b) / 2u] = pack2x16float(x.zw);
    }
}
