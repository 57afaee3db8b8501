//! Every instruction set against the scalar kernels: equalities, not tolerances.

use formats::blocks::{self, BlockType};
use half::f16;

use super::isa::Isa;
use super::lanes::LANES;
use super::matmul::{ActBuf, Out};
use super::scalar::grouping;
use crate::exec::noise::Noise;

fn product(isa: Isa, ty: BlockType, w: &[u8], rows: usize, x: &[f32], n: usize) -> Vec<f32> {
    let cols = x.len() / n;
    let mut acts = ActBuf::default();
    let stride = {
        acts.reset(n, cols);
        acts.stride()
    };
    for (r, row) in x.chunks(cols).enumerate() {
        acts.values_mut()[r * stride..r * stride + cols].copy_from_slice(row);
    }
    let mut out = vec![0.0; n * rows];
    let view = acts.view(grouping(ty));
    isa.matmul(
        ty,
        w,
        w.len() / rows,
        0..rows,
        &view,
        Out::new(&mut out, rows),
    );
    out
}

#[test]
fn products_agree_with_decoded_weights_and_between_instruction_sets() {
    let mut noise = Noise::new(7);
    for ty in BlockType::ALL {
        let lens: &[usize] = match ty.block_len() {
            1 => &[1, 31, 40, 256, 300],
            32 => &[32, 96, 576],
            _ => &[256, 1536],
        };
        for &cols in lens {
            let rows = 11;
            let mut w = Vec::new();
            let mut plain = Vec::new();
            for _ in 0..rows {
                let bytes = noise.row(ty, cols);
                let mut back = vec![0.0; cols];
                blocks::dequantize_row(ty, &bytes, &mut back).unwrap();
                w.extend(bytes);
                plain.push(back);
            }
            for n in [1, 2, 3, 8, 15] {
                let x = noise.take(n * cols);
                let want = product(Isa::SCALAR, ty, &w, rows, &x, n);
                for (at, v) in want.iter().enumerate() {
                    let (r, i) = (at / rows, at % rows);
                    let pairs = plain[i].iter().zip(&x[r * cols..(r + 1) * cols]);
                    let (mut sum, mut size) = (0.0, 1e-6);
                    for (a, b) in pairs {
                        sum += f64::from(a * b);
                        size += f64::from(a * b).abs();
                    }
                    assert!(
                        (f64::from(*v) - sum).abs() < 1e-5 * size,
                        "{ty} {cols}: {v} {sum}"
                    );
                }
                for isa in Isa::available() {
                    let got = product(isa, ty, &w, rows, &x, n);
                    let same = got
                        .iter()
                        .zip(&want)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa} {ty}: {rows} × {cols}, {n} activation rows");
                }
            }
        }
    }
}

#[test]
fn attention_pieces_agree() {
    let mut noise = Noise::new(11);
    for dim in [8, 20, 64, 128] {
        for n in [1, 3, 4, 9, 70] {
            let stride = dim + 16;
            let keys: Vec<f16> = noise
                .take(n * stride)
                .into_iter()
                .map(f16::from_f32)
                .collect();
            let q = noise.take(dim);
            let run = |isa: Isa| {
                let (mut s, mut out) = (vec![0.0; n], vec![0.0; dim]);
                isa.scores(&q, &keys, stride, 0.125, &mut s);
                let sum = isa.softmax(&mut s);
                isa.weighted_sum(&s, &keys, stride, &mut out);
                s.push(sum);
                s.extend(out);
                s.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let want = run(Isa::SCALAR);
            for isa in Isa::available() {
                assert_eq!(run(isa), want, "{isa}: head of {dim}, {n} positions");
            }
        }
    }
}

#[test]
fn elementwise_pieces_agree_and_exp_is_close() {
    let mut noise = Noise::new(13);
    for n in [1, LANES, 9, 100] {
        let (x, up) = (noise.take(n), noise.take(n));
        let run = |isa: Isa| {
            let mut g = x.iter().map(|v| v * 60.0).collect::<Vec<_>>();
            isa.swiglu(&mut g, &up);
            g.push(isa.sum_squares(&x));
            g.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        for isa in Isa::available() {
            assert_eq!(run(isa), run(Isa::SCALAR), "{isa}, {n} values");
        }
    }
    for i in -8700..880 {
        let x = i as f32 / 100.0;
        let (got, want) = (f64::from(super::scalar::exp(x)), f64::from(x).exp());
        assert!(
            (got / want - 1.0).abs() < 3e-7 || x <= -87.0,
            "exp({x}) = {got}, not {want}"
        );
    }
}
