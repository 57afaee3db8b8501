//! Weights per second that each block type's `unpack32` and a dot product take on the adapter:
//! `cargo run --release -p shaders --example unpack_speed [TYPE...]`.
//!
//! A matrix of random bytes, a workgroup to a row; the fastest of a few passes.

use std::time::Instant;

use shaders::blocks::{ALL, Table};

// The harness of the tests, of which this needs only a part.
#[allow(dead_code)]
#[path = "../tests/gpu/mod.rs"]
mod gpu;

const ROWS: usize = 4096;
const COLS: usize = 4096;

/// Reads the activations from the beginning of the results, writes the products behind them.
const DOT: &str = "
var<workgroup> sums: array<f32, 32>;

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    var sum = vec4<f32>(0.0);
    for (var k = lane; k < matrix.runs; k += 32u) {
        let w = unpack32(row * matrix.runs + k);
        let at = k << 3u;
        sum += w[0] * results[at];
        sum += w[1] * results[at + 1u];
        sum += w[2] * results[at + 2u];
        sum += w[3] * results[at + 3u];
        sum += w[4] * results[at + 4u];
        sum += w[5] * results[at + 5u];
        sum += w[6] * results[at + 6u];
        sum += w[7] * results[at + 7u];
    }
    sums[lane] = dot(sum, vec4<f32>(1.0));
    workgroupBarrier();
    if lane == 0u {
        var total = 0.0;
        for (var i = 0u; i < 32u; i++) { total += sums[i]; }
        results[(matrix.runs << 3u) + row].x = total;
    }
}
";

fn main() {
    let gpu = gpu::gpu();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    println!("{}: {ROWS} × {COLS}", gpu.name);
    for block in ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == block.name) {
            continue;
        }
        let pipeline = gpu.pipeline(block, DOT);
        let n = ROWS * COLS / block.block_len * block.block_bytes;
        let word = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9).rotate_left(13);
        let bytes: Vec<u8> = (0..n).map(|i| word(i) as u8).collect();
        let table = vec![0x0101_0101; block.table.map_or(0, Table::words)];
        let mut planes = Vec::new();
        let layout = block
            .repack(ROWS, COLS, &bytes, &table, &mut planes)
            .expect("whole blocks");
        let (group, _results) = gpu.bind(&pipeline, &layout, &planes, COLS + 4 * ROWS);
        gpu.dispatch(&pipeline, &group, ROWS as u32, 1);
        let times = (0..5).map(|_| {
            let start = Instant::now();
            gpu.dispatch(&pipeline, &group, ROWS as u32, 4);
            start.elapsed().as_secs_f64() / 4.0
        });
        let best = times.fold(f64::INFINITY, f64::min);
        println!(
            "{:8} {:8.1} million weights/s {:8.2} GB/s",
            block.name,
            (ROWS * COLS) as f64 / best / 1e6,
            n as f64 / best / 1e9
        );
    }
}
