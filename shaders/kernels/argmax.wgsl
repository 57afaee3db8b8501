// The place of the largest value, the lowest among equals. One workgroup.
//
// Constant: THREADS, a power of two.
struct Argmax {
    len: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<storage, read> values: array<f32>;
@group(0) @binding(1) var<uniform> argmax: Argmax;
@group(0) @binding(2) var<storage, read_write> place: array<u32>;

var<workgroup> best: array<f32, THREADS>;
var<workgroup> at: array<u32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
    var most = -3.4028235e38;
    var where_ = 0u;
    for (var i = thread; i < argmax.len; i += THREADS) {
        let value = values[i];
        if value > most {
            most = value;
            where_ = i;
        }
    }
    best[thread] = most;
    at[thread] = where_;
    workgroupBarrier();
    for (var n = THREADS / 2u; n > 0u; n /= 2u) {
        if thread < n {
            let other = best[thread + n];
            if other > best[thread] || (other == best[thread] && at[thread + n] < at[thread]) {
                best[thread] = other;
                at[thread] = at[thread + n];
            }
        }
        workgroupBarrier();
    }
    if thread == 0u {
        place[0] = at[0];
    }
}
