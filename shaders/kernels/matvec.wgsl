// Few rows of activations: each thread keeps ROWS rows of weights and ACTS of activations, and
// LANES threads share the runs of a row. Weights are read once, in order.
//
// Feature `int8`: whole numbers are multiplied, and only their sums over half a run scaled. A bit that
// falls otherwise would become a whole step at the next rounding to 8 bits, so sums run in the order of
// matmul_int8.wgsl.
// Constants: LANES threads a row, GROUPS groups of rows in a workgroup, ROWS, ACTS.
//#include matrix

//#if subgroups
// LANES is the size of a subgroup.
//#else
var<workgroup> partial: array<f32, LANES * GROUPS * ROWS * ACTS>;
//#end

@compute @workgroup_size(LANES * GROUPS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
//#if subgroups
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) group: u32,
//#else
    @builtin(local_invocation_index) thread: u32,
//#end
) {
//#if subgroups
//#else
    let lane = thread % LANES;
    let group = thread / LANES;
//#end
    let row = ((workgroup.y * workgroups.x + workgroup.x) * GROUPS + group) * ROWS;
    let act = workgroup.z * ACTS;
    let last = matrix.rows - 1u;
//#repeat r ROWS
    let run_$r = min(row + $ru, last) * matrix.runs;
//#repeat a ACTS
//#if int8
    var sum_$r_$a = 0.0;
//#else
    var sum_$r_$a = vec4<f32>(0.0);
//#end
//#end
//#end
    for (var k = lane; k < matrix.runs; k += LANES) {
//#repeat r ROWS
//#if int8
        let w_$r = codes32(run_$r + k);
//#else
        let w_$r = unpack32(run_$r + k);
//#end
//#end
//#repeat a ACTS
        {
//#if int8
            let at = (act + $au) * matrix.x_stride + k * 3u;
            let first = activations[at];
            let last = activations[at + 1u];
            let scale = bitcast<vec4<f32>>(activations[at + 2u]);
//#repeat r ROWS
            sum_$r_$a = add_product(sum_$r_$a, w_$r.a, vec2<f32>(w_$r.step.x, w_$r.offset.x), first, scale.xy);
            sum_$r_$a = add_product(sum_$r_$a, w_$r.b, vec2<f32>(w_$r.step.y, w_$r.offset.y), last, scale.xz);
//#end
//#else
            let at = (act + $au) * matrix.x_stride + k * 8u;
//#repeat i 8
            let x_$i = activations[at + $iu];
//#repeat r ROWS
            sum_$r_$a = fma(w_$r[$i], x_$i, sum_$r_$a);
//#end
//#end
//#end
        }
//#end
    }
//#repeat r ROWS
//#repeat a ACTS
//#if int8
    let s_$r_$a = sum_$r_$a;
//#else
    let s_$r_$a = (sum_$r_$a.x + sum_$r_$a.z) + (sum_$r_$a.y + sum_$r_$a.w);
//#end
//#if subgroups
    let all_$r_$a = subgroupAdd(s_$r_$a);
    if lane == 0u && row + $ru < matrix.rows && act + $au < pass_.rows {
        store(act + $au, row + $ru, all_$r_$a);
    }
//#else
    partial[($ru * ACTS + $au) * LANES * GROUPS + thread] = s_$r_$a;
//#end
//#end
//#end
//#if subgroups
//#else
    workgroupBarrier();
    for (var i = thread; i < GROUPS * ROWS * ACTS; i += LANES * GROUPS) {
        let g = i % GROUPS;
        let r = i / GROUPS / ACTS;
        let a = i / GROUPS % ACTS;
        let begin = (r * ACTS + a) * LANES * GROUPS + g * LANES;
        var sum = 0.0;
        for (var l = 0u; l < LANES; l += 1u) {
            sum += partial[begin + l];
        }
        let to = ((workgroup.y * workgroups.x + workgroup.x) * GROUPS + g) * ROWS + r;
        if to < matrix.rows && act + a < pass_.rows {
            store(act + a, to, sum);
        }
    }
//#end
}
