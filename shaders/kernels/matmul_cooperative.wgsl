// matmul.wgsl on cooperative matrices: 64 weight rows by 64 rows of activations in a workgroup of four subgroups,
// each of which keeps two by two squares of SIZE with sums in floats. Weights are unpacked into
// workgroup memory as halves, a run at a time; activations are halves already (halve.wgsl).
//
// Constants: THREADS, four subgroups; SIZE of a cooperative matrix, 8 or 16; SIDE = 32 / SIZE, the squares along
// each side of a subgroup's quarter.
enable f16;
enable wgpu_cooperative_matrix;
//#include matrix
//#include halves

//#if size8
alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;
const SIZE: u32 = 8u;
//#else
alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;
const SIZE: u32 = 16u;
//#end
const TILE: u32 = 64u;
/// Halves from one row of the tile to the next: neighbours fall into other banks.
const STRIDE: u32 = 40u;
var<workgroup> tile_w: array<f16, TILE * STRIDE>;
/// One square of sums for each subgroup.
var<workgroup> sums: array<f32, 4u * SIZE * SIZE>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let first_row = workgroup.x * TILE;
    let first_act = workgroup.y * TILE;
    let my_row = subgroup % 2u * 32u;
    let my_act = subgroup / 2u * 32u;
    let mine = subgroup * SIZE * SIZE;
    for (var i = lane; i < SIZE * SIZE; i += THREADS / 4u) {
        sums[mine + i] = 0.0;
    }
    workgroupBarrier();
//#repeat r SIDE
//#repeat a SIDE
    var sum_$r_$a = coopLoad<MatrixC>(&sums[mine], SIZE);
//#end
//#end
    for (var k = 0u; k < matrix.runs; k += 1u) {
        for (var t = thread; t < TILE; t += THREADS) {
            let w = unpack32(min(first_row + t, matrix.rows - 1u) * matrix.runs + k);
//#repeat i 8
            {
                let h = half_of(w[$i]);
                let to = t * STRIDE + $iu * 4u;
                tile_w[to] = h.x;
                tile_w[to + 1u] = h.y;
                tile_w[to + 2u] = h.z;
                tile_w[to + 3u] = h.w;
            }
//#end
        }
        workgroupBarrier();
        for (var at = 0u; at < 32u; at += SIZE) {
            // Weights are A, row after row; activations B, column after column: both along k.
//#repeat r SIDE
            let w_$r = coopLoadT<MatrixA>(&tile_w[(my_row + $ru * SIZE) * STRIDE + at], STRIDE);
//#end
//#repeat a SIDE
            let x_$a = coopLoad<MatrixB>(&activations[(first_act + my_act + $au * SIZE) * matrix.x_stride + k * 32u + at], matrix.x_stride);
//#repeat r SIDE
            sum_$r_$a = coopMultiplyAdd(w_$r, x_$a, sum_$r_$a);
//#end
//#end
        }
        workgroupBarrier();
    }
//#repeat r SIDE
//#repeat a SIDE
    coopStoreT(sum_$r_$a, &sums[mine], SIZE);
    workgroupBarrier();
    for (var i = lane; i < SIZE * SIZE; i += THREADS / 4u) {
        let row = first_row + my_row + $ru * SIZE + i / SIZE;
        let act = first_act + my_act + $au * SIZE + i % SIZE;
        if row < matrix.rows && act < pass_.rows {
            let scale = power_of_two(activations[act * matrix.x_stride + matrix.runs * 32u]);
            store(act, row, sums[mine + i] * scale);
        }
    }
    workgroupBarrier();
//#end
//#end
}
