// matmul.wgsl in whole numbers: tiles hold the codes of weights and of activations in 8 bits, half a run (16
// of each) at a time, and what their sums are scaled with.
//
// Sums run as in matvec.wgsl, bit for bit: over the runs of one of its LANES threads, then over those.
// Constants: ROWS = 8; ACTS, at most 8; LANES.
//#include matrix

const TILE_W: u32 = 8u * ROWS;
const TILE_X: u32 = 8u * ACTS;
// The first halves of a run, then the last; likewise step and offset of the weights, step and sum of the
// activations.
var<workgroup> tile_w: array<vec4<u32>, 2u * TILE_W>;
var<workgroup> scale_w: array<vec2<f32>, 2u * TILE_W>;
var<workgroup> tile_x: array<vec4<u32>, 2u * TILE_X>;
var<workgroup> scale_x: array<vec2<f32>, 2u * TILE_X>;

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
    var of_lane_$r_$a = 0.0;
//#end
//#end
    var lane = 0u;
    var k = 0u;
    for (var i = 0u; i < matrix.runs; i += 1u) {
        let w = codes32(run + k);
        tile_w[thread] = w.a;
        tile_w[TILE_W + thread] = w.b;
        scale_w[thread] = vec2<f32>(w.step.x, w.offset.x);
        scale_w[TILE_W + thread] = vec2<f32>(w.step.y, w.offset.y);
        if thread < TILE_X {
            // Rows behind the last are another pass's; their sums are not stored.
            let at = (first_act + thread) * matrix.x_stride + k * 3u;
            tile_x[thread] = activations[at];
            tile_x[TILE_X + thread] = activations[at + 1u];
            let scale = bitcast<vec4<f32>>(activations[at + 2u]);
            scale_x[thread] = scale.xy;
            scale_x[TILE_X + thread] = scale.xz;
        }
        workgroupBarrier();
        for (var half = 0u; half < 2u; half += 1u) {
//#repeat r ROWS
            let w_$r = tile_w[half * TILE_W + $ru * 8u + tx];
            let by_$r = scale_w[half * TILE_W + $ru * 8u + tx];
//#end
//#repeat a ACTS
            {
                let x = tile_x[half * TILE_X + $au * 8u + ty];
                let scale = scale_x[half * TILE_X + $au * 8u + ty];
//#repeat r ROWS
                of_lane_$r_$a = add_product(of_lane_$r_$a, w_$r, by_$r, x, scale);
//#end
            }
//#end
        }
        workgroupBarrier();
        k += LANES;
        if k >= matrix.runs {
            lane += 1u;
            k = lane;
//#repeat r ROWS
//#repeat a ACTS
            sum_$r_$a += of_lane_$r_$a;
            of_lane_$r_$a = 0.0;
//#end
//#end
        }
    }
//#repeat r ROWS
//#repeat a ACTS
    if first_row + $ru * 8u + tx < matrix.rows && first_act + $au * 8u + ty < pass_.rows {
        store(first_act + $au * 8u + ty, first_row + $ru * 8u + tx, sum_$r_$a);
    }
//#end
//#end
}
