//! Products alone, at the shapes of known models, with random weights: needs no model.

use std::time::Instant;

use formats::blocks::BlockType;
use shaders::BlockShader;
use wgpu::BufferUsages as Usage;

use super::bandwidth::copy_gb_per_s;
use super::device::Gpu;
use super::error::GpuError;
use super::ops::matrix::{Place, Products, Way};
use super::ops::prepare::scratch_bytes;
use super::record::{Pass, Recorder, Slots};
use super::report::{AdapterKind, ShapeOptions, ShapeReport, ShapeTime};
use super::variants::Chosen;
use super::weights::{Upload, Weights, shader};
use crate::model::Tensor;

/// Matrices of a layer: name, rows, columns.
type Matrices = [(&'static str, usize, usize); 4];

/// The widest matrices of Llama-2's sizes. Q, K and V are one product.
const MODELS: [(&str, Matrices); 3] = [
    ("7B", layer(4096, 4096, 11008)),
    ("13B", layer(5120, 5120, 13824)),
    ("70B", layer(8192, 1024, 28672)),
];

const fn layer(width: usize, kv: usize, ff: usize) -> Matrices {
    [
        ("attn_qkv", width + 2 * kv, width),
        ("attn_output", width, width),
        ("ffn_gate_up", 2 * ff, width),
        ("ffn_down", width, ff),
    ]
}

/// Bytes of weights that are gone through before any is read again: more than a cache holds.
const SPREAD: usize = 512 << 20;
/// Products in one submission.
const PRODUCTS: usize = 16;

/// Measures; `done` hears of each product.
///
/// # Errors
/// When the device has too little memory, or fails.
pub fn bench_shapes(
    gpu: &Gpu,
    options: &ShapeOptions,
    done: &mut dyn FnMut(&ShapeTime),
) -> Result<ShapeReport, GpuError> {
    let copy = copy_gb_per_s(gpu)?;
    let mut products = Vec::new();
    for (model, matrices) in MODELS {
        if !options.models.iter().any(|m| m.eq_ignore_ascii_case(model)) {
            continue;
        }
        for block_type in &options.types {
            for (matrix, outputs, inputs) in matrices {
                let bench = Bench::new(gpu, *block_type, outputs, inputs, &options.rows)?;
                for (&rows, variant) in options
                    .rows
                    .iter()
                    .flat_map(|rows| bench.at(*rows).map(move |v| (rows, v)))
                {
                    let seconds = Bench::time(gpu, variant, rows, options.runs)?;
                    let gb_per_s = bench.bytes as f64 / seconds / 1e9;
                    let time = ShapeTime {
                        model,
                        matrix,
                        outputs,
                        inputs,
                        block_type: block_type.name(),
                        rows,
                        variant: variant.name,
                        chosen: variant.way(rows) == Way::of(gpu.variants, variant.shader, rows),
                        ms: seconds * 1e3,
                        gb_per_s,
                        share_of_copy: gb_per_s / copy,
                        tflop_per_s: (2 * outputs * inputs * rows) as f64 / seconds / 1e12,
                    };
                    done(&time);
                    products.push(time);
                }
            }
        }
    }
    Ok(ShapeReport {
        adapter: gpu.report().name.clone(),
        driver: gpu.report().driver.clone(),
        copy_gb_per_s: copy,
        runs: options.runs.max(1),
        variants: gpu.report().variants.clone(),
        products,
    })
}

/// Copies of one matrix, and rows to multiply, by variant.
struct Bench {
    variants: Vec<Variant>,
    bytes: usize,
}

/// The same products in one variant.
struct Variant {
    name: &'static str,
    chosen: Chosen,
    shader: &'static BlockShader,
    copies: Vec<Products>,
}

impl Variant {
    fn way(&self, rows: usize) -> Way {
        Way::of(self.chosen, self.shader, rows)
    }
}

impl Bench {
    fn new(
        gpu: &Gpu,
        ty: BlockType,
        outputs: usize,
        inputs: usize,
        rows: &[usize],
    ) -> Result<Self, GpuError> {
        let row_bytes = ty.row_bytes(inputs).unwrap_or(0);
        // Any bytes do for speed, as long as no half float in them is infinite or no number.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..outputs * row_bytes)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8 & 0x3f
            })
            .collect();
        let bytes_of_one = bytes.len();
        let tensor = Tensor::owned("weights", ty, outputs, inputs, bytes);
        let most = rows.iter().copied().max().unwrap_or(1).next_multiple_of(64);
        let stride = inputs.next_multiple_of(32);
        let x = vec![0.01_f32; most * stride];
        let x = gpu.constant("x", &x, Usage::STORAGE)?;
        let y = gpu.storage("y", (4 * most * outputs) as u64)?;
        let software = gpu.report().kind == AdapterKind::Software;
        let room = gpu.report().memory_bytes.map_or(SPREAD, |n| n as usize / 4);
        let copies = if software {
            1
        } else {
            (SPREAD.min(room) / bytes_of_one.max(1)).clamp(1, PRODUCTS)
        };
        let mut upload = Upload::default();
        let weights = (0..copies)
            .map(|_| Weights::upload(gpu, &[&tensor], &mut upload))
            .collect::<Result<Vec<_>, _>>()?;
        upload.finish(gpu)?;
        let scratch = gpu.storage("activations", scratch_bytes(most, inputs))?;
        let variant = |(name, chosen)| {
            let copies = weights.iter().map(|weights| {
                let place = |buffer, stride| Place {
                    buffer,
                    stride,
                    at: 0,
                };
                let mut product = Products::new(place(&x, stride), &scratch, chosen);
                product.add(gpu, weights, place(&y, outputs), false)?;
                Ok(product)
            });
            Ok::<_, GpuError>(Variant {
                name,
                chosen,
                shader: shader(ty)?,
                copies: copies.collect::<Result<_, GpuError>>()?,
            })
        };
        Ok(Self {
            variants: std::iter::once(("plain", Chosen::default()))
                .chain(gpu.variants.each())
                .map(variant)
                .collect::<Result<_, _>>()?,
            bytes: bytes_of_one,
        })
    }

    /// The variants that are different ones at `rows` rows.
    fn at(&self, rows: usize) -> impl Iterator<Item = &Variant> {
        let all = &self.variants;
        all.iter().enumerate().filter_map(move |(i, v)| {
            let same = |b: &Variant| b.way(rows) == v.way(rows);
            (!all[..i].iter().any(same)).then_some(v)
        })
    }

    /// Seconds of one product of `rows` rows, the median of `runs`.
    fn time(gpu: &Gpu, variant: &Variant, rows: usize, runs: usize) -> Result<f64, GpuError> {
        let mut slots = Slots::new(gpu, 1)?;
        let pass = Pass {
            rows: rows as u32,
            ..Pass::default()
        };
        slots.set(gpu, [pass]);
        let products = match gpu.report().kind {
            AdapterKind::Software => 1,
            _ => PRODUCTS,
        };
        let mut times = Vec::new();
        // The first run compiles, and does not count.
        for _ in 0..=runs.max(1) {
            let mut encoder = gpu.encoder();
            let mut to = Recorder::new(&mut encoder, &slots, None);
            for copy in variant.copies.iter().cycle().take(products) {
                copy.record(&mut to, 0);
            }
            drop(to);
            let start = Instant::now();
            gpu.queue.submit([encoder.finish()]);
            gpu.wait()?;
            times.push(start.elapsed().as_secs_f64() / products as f64);
        }
        let counted = &mut times[1..];
        counted.sort_by(f64::total_cmp);
        Ok(counted[counted.len() / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::gpu::tests::with;

    /// Each variant that the adapter has, where it is another kernel than those before.
    #[test]
    fn every_variant_is_timed_once() {
        let gpu = with("subgroups,int8,f16");
        let names = |ty, rows| {
            let bench = Bench::new(&gpu, ty, 64, 256, &[1, 64]).unwrap();
            let timed = bench.at(rows).map(|v| {
                assert!(Bench::time(&gpu, v, rows, 1).unwrap() > 0.0);
                v.name
            });
            timed.collect::<Vec<_>>()
        };
        assert_eq!(names(BlockType::Q4_K, 1), ["plain", "subgroups", "int8"]);
        assert_eq!(names(BlockType::Q4_K, 64), ["plain", "int8", "f16"]);
        assert_eq!(names(BlockType::BF16, 64), ["plain"]);
    }
}
