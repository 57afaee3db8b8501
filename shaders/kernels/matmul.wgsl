// Many rows of activations: a tile of 8·ROWS weight rows by 8·ACTS activation rows in a workgroup of 64,
// each thread keeping ROWS by ACTS sums. Weights are unpacked once per tile into workgroup memory, a
// run of 32 at a time.
//
// Constants: ROWS = 8; ACTS, at most 8.
//#include matrix

const STEP: u32 = 8u; // vectors along k in a tile: a run
const TILE_W: u32 = 8u * ROWS;
const TILE_X: u32 = 8u * ACTS;
// k first, so that neighbours in a column of the tile are neighbours in memory.
var<workgroup> tile_w: array<vec4<f32>, STEP * TILE_W>;
var<workgroup> tile_x: array<vec4<f32>, STEP * TILE_X>;

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
        tile_w[$iu * TILE_W + thread] = w[$i];
//#end
        for (var i = thread; i < TILE_X * STEP; i += 64u) {
            let act = i / STEP;
            let at = i % STEP;
            var x = vec4<f32>(0.0);
            if first_act + act < pass_.rows {
                x = activations[(first_act + act) * matrix.x_stride + k * STEP + at];
            }
            tile_x[at * TILE_X + act] = x;
        }
        workgroupBarrier();
        for (var at = 0u; at < STEP; at += 1u) {
//#repeat r ROWS
            let w_$r = tile_w[at * TILE_W + $ru * 8u + tx];
//#end
//#repeat a ACTS
            let x_$a = tile_x[at * TILE_X + $au * 8u + ty];
//#repeat r ROWS
            sum_$r_$a = fma(w_$r.x, x_$a.x, sum_$r_$a);
            sum_$r_$a = fma(w_$r.y, x_$a.y, sum_$r_$a);
            sum_$r_$a = fma(w_$r.z, x_$a.z, sum_$r_$a);
            sum_$r_$a = fma(w_$r.w, x_$a.w, sum_$r_$a);
//#end
//#end
        }
        workgroupBarrier();
    }
//#repeat r ROWS
//#repeat a ACTS
    if first_row + $ru * 8u + tx < matrix.rows && first_act + $au * 8u + ty < pass_.rows {
        store(first_act + $au * 8u + ty, first_row + $ru * 8u + tx, sum_$r_$a);
    }
//#end
//#end
}
