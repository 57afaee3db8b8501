//! Every product kernel against plain arithmetic, over all block types and odd shapes. Whole models are
//! compared in `tests/tests/gpu.rs`.

use std::sync::{Arc, OnceLock};

use formats::blocks::{self, BlockType};
use wgpu::BufferUsages as Usage;

use super::adapter::Adapter;
use super::device::Gpu;
use super::ops::matrix::{Place, Products};
use super::ops::prepare::scratch_bytes;
use super::ops::swiglu::Swiglu;
use super::record::{Clock, Pass, Recorder, Slots};
use super::weights::{Upload, Weights};
use super::{GpuError, GpuExecutor, Variants};
use crate::exec::Executor as _;
use crate::exec::noise::Noise;
use crate::model::{Architecture, HParams, LayerTensors, ModelPart, Rope, RopeStyle, Tensor};

/// How far a product may be from the exact one, relative to the sum of its terms' magnitudes: sums
/// of some hundred terms in f32, each rounded to 2⁻²⁴, in any order. The same for every type,
/// because all are decoded exactly.
const TOLERANCE: f64 = 2e-6;

/// The best adapter, with subgroups where it has them and without. Without any adapter there is
/// nothing to test: that is a failure.
fn gpus() -> &'static [Gpu; 2] {
    static GPUS: OnceLock<[Gpu; 2]> = OnceLock::new();
    GPUS.get_or_init(|| {
        let adapter =
            Adapter::best(true).expect("a Vulkan driver, as Debian's mesa-vulkan-drivers");
        // A binding of 64 KiB: matrices then come in pieces.
        let plain = Gpu::open_with(&adapter, Variants::PLAIN, 1 << 16).unwrap();
        [Gpu::open(&adapter, Variants::Auto).unwrap(), plain]
    })
}

/// The best adapter with the variants named, which it must be able to do.
pub(super) fn with(variants: &str) -> Gpu {
    let adapter = Adapter::best(true).unwrap();
    let gpu = Gpu::open_with(&adapter, variants.parse().unwrap(), 1 << 30).unwrap();
    let wrong = gpu.report().variants.iter().find(|v| v.starts_with("not "));
    assert_eq!(wrong, None);
    gpu
}

/// Products of `tensors`, one below the other, with `n` rows of `x`, added to ones.
fn products(gpu: &Gpu, tensors: &[&Tensor], x: &[f32], n: usize) -> Vec<f32> {
    let cols = tensors[0].cols;
    let rows: usize = tensors.iter().map(|t| t.rows).sum();
    let stride = cols.next_multiple_of(32);
    let most = n.next_multiple_of(64);
    let mut padded = vec![0.0_f32; most * stride];
    for (row, x) in padded.chunks_mut(stride).zip(x.chunks(cols)) {
        row[..cols].copy_from_slice(x);
    }
    let mut upload = Upload::default();
    let weights = Weights::upload(gpu, tensors, &mut upload).unwrap();
    upload.finish(gpu).unwrap();
    // A column in front and one behind that must stay as they are.
    let y_stride = rows + 2;
    let x = gpu.constant("x", &padded, Usage::STORAGE).unwrap();
    let y = vec![1.0_f32; n * y_stride];
    let y = gpu
        .constant("y", &y, Usage::STORAGE | Usage::COPY_SRC)
        .unwrap();
    let staging = gpu
        .buffer("y", y.size(), Usage::COPY_DST | Usage::MAP_READ)
        .unwrap();
    let place = |buffer, stride, at| Place { buffer, stride, at };
    let (from, into) = (place(&x, stride, 0), place(&y, y_stride, 1));
    let bytes = if gpu.variants.needs_scratch() {
        scratch_bytes(most, cols)
    } else {
        0
    };
    let scratch = gpu.storage("rows", bytes).unwrap();
    let mut product = Products::new(from, &scratch, gpu.variants);
    product.add(gpu, &weights, into, true).unwrap();
    let mut slots = Slots::new(gpu, 1).unwrap();
    let rows = n as u32;
    slots.set(
        gpu,
        [Pass {
            rows,
            ..Pass::default()
        }],
    );
    let mut encoder = gpu.encoder();
    product.record(&mut Recorder::new(&mut encoder, &slots, None), 0);
    encoder.copy_buffer_to_buffer(&y, 0, &staging, 0, y.size());
    gpu.queue.submit([encoder.finish()]);
    let mut out = Vec::new();
    gpu.read(&staging, n * y_stride, &mut |y| out.extend_from_slice(y))
        .unwrap();
    out
}

fn check(gpu: &Gpu, tensors: &[&Tensor], n: usize, noise: &mut Noise) {
    let x = noise.take(n * tensors[0].cols);
    compare(gpu, tensors, &x, &x, TOLERANCE);
}

/// Products with the rows of `x` against those with the rows that the kernel is to see instead.
fn compare(gpu: &Gpu, tensors: &[&Tensor], x: &[f32], seen: &[f32], tolerance: f64) {
    let cols = tensors[0].cols;
    let n = x.len() / cols;
    let got = products(gpu, tensors, x, n);
    let mut weights = Vec::new();
    for t in tensors {
        for row in t.data().chunks(t.row_bytes()) {
            let mut values = vec![0.0; cols];
            blocks::dequantize_row(t.block_type, row, &mut values).unwrap();
            weights.push(values);
        }
    }
    let what = format!("{}, {n} rows of {cols}", tensors[0].block_type);
    for (y, x) in got.chunks(weights.len() + 2).zip(seen.chunks(cols)) {
        assert_eq!((y[0], y[weights.len() + 1]), (1.0, 1.0), "{what}");
        for (i, (y, w)) in y[1..].iter().zip(&weights).enumerate() {
            let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (sum, size) = terms.fold((1.0, 1.0), |(s, m), t| (s + t, m + t.abs()));
            let error = (f64::from(*y) - sum).abs();
            assert!(
                error <= tolerance * size,
                "{what}, output {i}: {y}, not {sum}"
            );
        }
    }
}

fn tensor(noise: &mut Noise, ty: BlockType, rows: usize, cols: usize) -> Tensor {
    let bytes: Vec<u8> = (0..rows).flat_map(|_| noise.row(ty, cols)).collect();
    Tensor::owned("test", ty, rows, cols, bytes)
}

#[test]
fn every_type_is_multiplied_as_plain_arithmetic_does() {
    let mut noise = Noise::new(3);
    for (i, ty) in BlockType::ALL.into_iter().enumerate() {
        let cols = match ty.block_len() {
            1 => 84,
            32 => 160,
            _ => 768,
        };
        let t = tensor(&mut noise, ty, 37, cols);
        // One row, a few, half a tile, more than a tile: each another kernel.
        for (gpu, counts) in gpus().iter().zip([[1, 3, 70], [2, 1, 9]]) {
            for n in counts {
                check(gpu, &[&t], n, &mut noise);
            }
        }
        // Some types over many shapes: one row of weights, one block, odd numbers.
        if i % 5 == 0 {
            for (rows, blocks, n) in [(1, 1, 1), (3, 1, 33), (130, 3, 5), (65, 2, 600)] {
                let t = tensor(&mut noise, ty, rows, blocks * ty.block_len().max(4));
                check(&gpus()[0], &[&t], n, &mut noise);
            }
        }
    }
}

fn largest(run: &[f32]) -> f32 {
    run.iter().fold(0.0, |most, v| most.max(v.abs()))
}

/// Rows of `cols` values, none of which lies so close to the middle between two steps that a division's last bit
/// says where it is rounded.
fn settled(noise: &mut Noise, n: usize, cols: usize) -> Vec<f32> {
    let mut x = noise.take(n * cols);
    for run in x.chunks_mut(cols).flat_map(|row| row.chunks_mut(32)) {
        let inverse = 127.0 / largest(run);
        for v in run {
            while ((*v * inverse).abs().fract() - 0.5).abs() < 1e-3 {
                *v *= 0.99;
            }
        }
    }
    x
}

/// Rows as 8 bits a value stand for them: whole steps of a 127th of the largest of each 32.
fn rounded(x: &[f32], cols: usize) -> Vec<f32> {
    let runs = x.chunks(cols).flat_map(|row| row.chunks(32));
    runs.flat_map(|run| {
        let largest = largest(run);
        let (step, inverse) = (largest / 127.0, 127.0 / largest);
        run.iter()
            .map(move |v| (v * inverse).round_ties_even() * step)
    })
    .collect()
}

/// What a product in whole numbers may be from the exact one of the rounded rows, relative to its terms: sums over
/// 16 are exact, but steps and offsets of the weights are scaled apart and cancel.
const TOLERANCE_INT8: f64 = 4e-5;

#[test]
fn activations_in_8_bits_are_multiplied_exactly() {
    let mut noise = Noise::new(31);
    let gpus = [with("subgroups,int8"), with("int8")];
    for (i, ty) in BlockType::ALL.into_iter().enumerate() {
        if !shaders::block(ty.name()).unwrap().has_codes() {
            continue;
        }
        let cols = if ty.block_len() == 256 { 768 } else { 160 };
        for (gpu, counts) in gpus.iter().zip([[1, 3, 70], [2, 8, 9]]) {
            let t = tensor(&mut noise, ty, 37, cols);
            for n in counts {
                let x = settled(&mut noise, n, cols);
                compare(gpu, &[&t], &x, &rounded(&x, cols), TOLERANCE_INT8);
            }
        }
        if i % 4 == 0 {
            for (rows, blocks, n) in [(1, 1, 1), (130, 3, 5), (65, 2, 600)] {
                let t = tensor(&mut noise, ty, rows, blocks * ty.block_len());
                let x = settled(&mut noise, n, t.cols);
                compare(&gpus[0], &[&t], &x, &rounded(&x, t.cols), TOLERANCE_INT8);
            }
        }
    }
    // A type without small whole numbers keeps its floats, beside others that do not.
    let t = tensor(&mut noise, BlockType::F16, 37, 96);
    for n in [1, 9] {
        check(&gpus[0], &[&t], n, &mut noise);
    }
    // Nothing at all, and next to nothing, are no division by zero.
    let t = tensor(&mut noise, BlockType::Q8_0, 3, 64);
    let x = [[0.0; 64], [1e-35; 64]].concat();
    compare(&gpus[0], &[&t], &x, &[0.0; 128], TOLERANCE_INT8);
}

/// The same for tiles in halves: weights, activations, products and sums of four are each rounded to 2⁻¹¹ of
/// themselves or less.
const TOLERANCE_F16: f64 = 4.0 / 2048.0;

#[test]
fn tiles_in_halves_are_near() {
    let mut noise = Noise::new(37);
    let gpu = with("f16");
    for ty in BlockType::ALL {
        let cols = match ty.block_len() {
            1 => 84,
            32 => 160,
            _ => 512,
        };
        let mut draw = || tensor(&mut noise, ty, 67, cols);
        // Random codes may stand for weights that no model has.
        let small = |t: &Tensor| {
            let mut values = vec![0.0; 67 * cols];
            blocks::dequantize_row(ty, t.data(), &mut values).unwrap();
            values.iter().all(|w| w.abs() < 4000.0)
        };
        let t = std::iter::repeat_with(&mut draw).find(small).unwrap();
        for n in [9, 70] {
            // Rows of very different sizes: none may overflow, none vanish.
            let mut x = noise.take(n * cols);
            let sizes = [1.0, 1e-6, 3e4, 1e7];
            for (row, size) in x.chunks_mut(cols).zip(sizes.into_iter().cycle()) {
                for v in row.iter_mut() {
                    *v *= size;
                }
            }
            compare(&gpu, &[&t], &x, &x, TOLERANCE_F16);
        }
    }
}

#[test]
fn matrices_below_each_other_are_one() {
    let mut noise = Noise::new(5);
    for ty in [BlockType::Q8_0, BlockType::Q3_K, BlockType::F16] {
        let cols = if ty.block_len() == 1 {
            300
        } else {
            3 * ty.block_len()
        };
        let parts = [64, 4, 13].map(|rows| tensor(&mut noise, ty, rows, cols));
        for gpu in gpus() {
            check(gpu, &parts.each_ref(), 2, &mut noise);
        }
    }
}

/// The limit of a binding is kept: the second device's is 64 KiB.
#[test]
fn a_large_matrix_comes_in_pieces() {
    let mut noise = Noise::new(9);
    let gpu = &gpus()[1];
    let t = tensor(&mut noise, BlockType::Q4_0, 700, 320);
    let weights = Weights::upload(gpu, &[&t], &mut Upload::default()).unwrap();
    assert!(weights.pieces.len() > 1);
    for piece in &weights.pieces {
        assert!(piece.buffer.size() <= gpu.max_binding);
    }
    check(gpu, &[&t], 1, &mut noise);
    check(gpu, &[&t], 40, &mut noise);
}

#[test]
fn a_row_does_not_feel_how_many_there_are() {
    let mut noise = Noise::new(21);
    let gpu = &gpus()[0];
    let t = tensor(&mut noise, BlockType::Q4_K, 45, 512);
    let x = noise.take(8 * 512);
    let all = products(gpu, &[&t], &x, 8);
    for (i, (x, y)) in x.chunks(512).zip(all.chunks(47)).enumerate() {
        assert_eq!(products(gpu, &[&t], x, 1), y, "row {i}");
    }
}

#[test]
fn what_cannot_be_had_is_an_error() {
    let gpu = &gpus()[0];
    let error = gpu.storage("too much", 1 << 60).unwrap_err().to_string();
    assert!(error.contains("too much"), "{error}");
    gpu.check().unwrap();
}

/// Two layers of width 32 in F16: some kilobytes.
fn small_part() -> ModelPart {
    let rope = Rope {
        dims: 16,
        base: 10_000.0,
        linear_scale: 1.0,
        factors: None,
        style: RopeStyle::Interleaved,
    };
    let hparams = HParams {
        architecture: Architecture::Llama,
        n_layer: 3,
        n_embd: 32,
        n_head: 2,
        n_head_kv: 2,
        head_dim: 16,
        n_ff: 64,
        n_vocab: 300,
        n_ctx_train: 64,
        rms_eps: 1e-5,
        rope,
        tied: false,
    };
    let mut noise = Noise::new(17);
    let mut matrix = |rows, cols| tensor(&mut noise, BlockType::F16, rows, cols);
    let layer = LayerTensors {
        attn_norm: vec![1.0; 32],
        attn_q: matrix(32, 32),
        attn_k: matrix(32, 32),
        attn_v: matrix(32, 32),
        attn_q_bias: None,
        attn_k_bias: None,
        attn_v_bias: None,
        attn_output: matrix(32, 32),
        ffn_norm: vec![1.0; 32],
        ffn_gate: matrix(64, 32),
        ffn_up: matrix(64, 32),
        ffn_down: matrix(32, 64),
    };
    ModelPart {
        hparams,
        layers: 1..3,
        blocks: vec![layer.clone(), layer],
        token_embd: None,
        head: None,
    }
}

#[test]
fn too_little_memory_names_what_would_fit() {
    let mut adapter = Adapter::best(true).unwrap();
    // 20 KiB a layer: one of two fits into 30 KiB, of which a tenth stays free.
    adapter.report.memory_bytes = Some(30 << 10);
    let gpu = Arc::new(Gpu::open(&adapter, Variants::PLAIN).unwrap());
    let error = GpuExecutor::new(small_part(), gpu).unwrap_err();
    assert!(matches!(error, GpuError::Weights { .. }));
    let text = error.to_string();
    for part in [
        "layers 1..3",
        "about 1 of these 2 layers",
        "splitconv",
        "bits per weight",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// Much work goes in several submissions, and nothing else is different.
#[test]
fn a_pass_may_be_cut_between_layers() {
    let adapter = Adapter::best(true).unwrap();
    let run = |most_work: Option<u64>| {
        let mut gpu = Gpu::open(&adapter, Variants::Auto).unwrap();
        gpu.most_work = most_work.unwrap_or(gpu.most_work);
        let exec = GpuExecutor::new(small_part(), Arc::new(gpu)).unwrap();
        let mut cache = exec.new_cache(16).unwrap();
        let mut rows = Noise::new(2).take(12 * 32);
        exec.forward(&mut cache, &mut rows).unwrap();
        (rows, cache.len())
    };
    assert_eq!(run(Some(1)), run(None));
}

/// A submission of more dispatches than a set of timestamps holds: none is left out.
#[test]
fn the_clock_counts_every_dispatch() {
    let gpu = &gpus()[0];
    if !gpu.timestamps {
        return;
    }
    let buffer = gpu.storage("rows", 1 << 10).unwrap();
    let swiglu = Swiglu::new(gpu, 32, 32, &buffer, &gpu.storage("y", 1 << 10).unwrap()).unwrap();
    let mut slots = Slots::new(gpu, 1).unwrap();
    let pass = Pass {
        rows: 1,
        ..Pass::default()
    };
    slots.set(gpu, [pass]);
    let mut clock = Clock::new(gpu);
    for dispatches in [5000, 3] {
        let mut encoder = gpu.encoder();
        let mut to = Recorder::new(&mut encoder, &slots, Some(&mut clock));
        for _ in 0..dispatches {
            swiglu.record(&mut to);
        }
        drop(to);
        clock.resolve(gpu, &mut encoder).unwrap();
        gpu.queue.submit([encoder.finish()]);
        gpu.wait().unwrap();
        clock.collect(gpu).unwrap();
    }
    let times = clock.times();
    assert_eq!((times.len(), times[0].dispatches), (1, 5003));
    assert!(times[0].ms > 0.0);
}

#[test]
fn a_lost_device_is_an_error_and_no_end() {
    let adapter = Adapter::best(true).unwrap();
    let gpu = Arc::new(Gpu::open(&adapter, Variants::Auto).unwrap());
    let exec = GpuExecutor::new(small_part(), Arc::clone(&gpu)).unwrap();
    let mut cache = exec.new_cache(8).unwrap();
    exec.forward(&mut cache, &mut [0.5; 64]).unwrap();
    gpu.device.destroy();
    let error = exec.forward(&mut cache, &mut [0.5; 32]).unwrap_err();
    assert!(error.to_string().contains("--device cpu"), "{error}");
    assert_eq!(cache.len(), 2);
    // And so for whoever comes next.
    assert!(exec.forward(&mut cache, &mut [0.5; 32]).is_err());
    assert!(GpuExecutor::new(small_part(), gpu).is_err());
}
