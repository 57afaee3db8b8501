// What the kernels with a weight matrix share: the matrix, the activations, the pass.

/// One matrix, or as many of its rows as one binding may hold.
struct Matrix {
    rows: u32,
    cols: u32,
    /// Runs of 32 weights in a row.
    runs: u32,
    /// Where the products of the first row go in a row of outputs.
    row0: u32,
    /// First word of each plane of the blocks.
    plane: vec4<u32>,
    /// From one row of activations to the next, in what the array of them has.
    x_stride: u32,
    /// Values from one row of outputs to the next.
    y_stride: u32,
    /// 1: the products are added to what is there.
    add: u32,
    pad: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<uniform> matrix: Matrix;
//#if int8
/// Three vectors a run, as quantize.wgsl makes them.
@group(0) @binding(2) var<storage, read> activations: array<vec4<u32>>;
//#else
//#if cooperative
/// Rows as halve.wgsl makes them: from one to the next there are 32 halves a run and 8 more.
@group(0) @binding(2) var<storage, read> activations: array<f16>;
//#else
//#if f16
/// The same in vectors.
@group(0) @binding(2) var<storage, read> activations: array<vec4<f16>>;
//#else
@group(0) @binding(2) var<storage, read> activations: array<vec4<f32>>;
//#end
//#end
//#end
@group(0) @binding(3) var<storage, read_write> outputs: array<f32>;

fn word(i: u32) -> u32 {
    return weights[i >> 2u][i & 3u];
}

fn store(act: u32, row: u32, value: f32) {
    let at = act * matrix.y_stride + matrix.row0 + row;
    if matrix.add == 1u {
        outputs[at] += value;
    } else {
        outputs[at] = value;
    }
}

//#include pass
//#include block
//#if int8

/// `sum` and 16 weights `by.x·code + by.y` times 16 activations of 8 bits, whose step and sum are in `scale`. Nothing
/// here may be fused in one kernel and not in another: whoever adds up runs in the same order gets
/// the same bits.
fn add_product(sum: f32, w: vec4<u32>, by: vec2<f32>, x: vec4<u32>, scale: vec2<f32>) -> f32 {
    let dots = (dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y)) + (dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w));
    return fma(by.x * scale.x, f32(dots), fma(by.y, scale.y, sum));
}
//#end
