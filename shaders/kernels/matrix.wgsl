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
    /// Vectors from one row of activations to the next.
    x_stride: u32,
    /// Values from one row of outputs to the next.
    y_stride: u32,
    /// 1: the products are added to what is there.
    add: u32,
    pad: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(1) var<uniform> matrix: Matrix;
@group(0) @binding(2) var<storage, read> activations: array<vec4<f32>>;
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
