// matmul.wgsl in halves: tiles are half as large, four products at a time are summed in halves and
// those sums in floats. Activations are small enough for that (halve.wgsl).
//
// Constants: ROWS = 8; ACTS, at most 8.
enable f16;
//#include matrix
//#include halves

const STEP: u32 = 8u; // vectors along k in a tile: a run
const TILE_W: u32 = 8u * ROWS;
const TILE_X: u32 = 8u * ACTS;
// k first, so that neighbours in a column of the tile are neighbours in memory.
var<workgroup> tile_w: array<vec4<f16>, STEP * TILE_W>;
var<workgroup> tile_x: array<vec4<f16>, STEP * TILE_X>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_row = workgroup.x * TILE_W;
    let first_act = workgroup.y * TILE_X;
    let tx = thread % 8u;
    let ty = thread / 8u;
    // A thread unpacks one row of the tile: there are as many as threads.
    let run = min(first_row + thread, matrix.rows - 1u) * matrix.runs;
//#repeat r ROWS
//#repeat a ACTS
    var sum_$r_$a = 0.0;
//#end
//#end
    for (var k = 0u; k < matrix.runs; k += 1u) {
        let w = unpack32(run + k);
//#repeat i 8
        tile_w[$iu * TILE_W + thread] = half_of(w[$i]);
//#end
        for (var i = thread; i < TILE_X * STEP; i += 64u) {
            // Rows behind the last are another pass's; their sums are not stored.
            tile_x[i % STEP * TILE_X + i / STEP] = activations[(first_act + i / STEP) * matrix.x_stride + k * STEP + i % STEP];
        }
        workgroupBarrier();
        for (var at = 0u; at < STEP; at += 1u) {
//#repeat r ROWS
            let w_$r = tile_w[at * TILE_W + $ru * 8u + tx];
//#end
//#repeat a ACTS
            let x_$a = tile_x[at * TILE_X + $au * 8u + ty];
//#repeat r ROWS
            sum_$r_$a += f32(dot(w_$r, x_$a));
//#end
//#end
        }
        workgroupBarrier();
    }
//#repeat a ACTS
    {
        let act = first_act + $au * 8u + ty;
        if act < pass_.rows {
            let scale = power_of_two(activations[act * matrix.x_stride + matrix.runs * STEP].x);
//#repeat r ROWS
            if first_row + $ru * 8u + tx < matrix.rows {
                store(act, first_row + $ru * 8u + tx, sum_$r_$a * scale);
            }
//#end
        }
    }
//#end
}
