//! Every instruction set against the scalar kernels: equalities, not tolerances.

use formats::blocks::{self, BlockType};

use super::integer::{self, Matrix};
use super::isa::Isa;
use super::lanes::LANES;
use super::matmul::{ActBuf, Out};
use super::pool::Pool;
use super::scalar::grouping;
use crate::exec::noise::Noise;

fn activations(x: &[f32], n: usize) -> ActBuf {
    let cols = x.len() / n;
    let mut acts = ActBuf::default();
    let stride = {
        acts.reset(n, cols);
        acts.stride()
    };
    for (r, row) in x.chunks(cols).enumerate() {
        acts.values_mut()[r * stride..r * stride + cols].copy_from_slice(row);
    }
    acts
}

fn product(isa: Isa, ty: BlockType, w: &[u8], rows: usize, x: &[f32], n: usize) -> Vec<f32> {
    let mut acts = activations(x, n);
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
            for n in [1, 2, 3, 8, 15, 39] {
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

/// What is made floats in panels goes on from one to the next: more weight rows, columns and activation rows than
/// one has, rows that do not start at the first, and what does not fill a panel.
#[test]
fn products_of_many_rows_agree_across_panels() {
    let mut noise = Noise::new(11);
    let (rows, n) = (19, 130);
    for (ty, cols) in [
        (BlockType::F32, 807),
        (BlockType::Q8_0, 800),
        (BlockType::Q4_1, 1568),
        (BlockType::Q6_K, 1024),
        (BlockType::Q2_K, 1024),
    ] {
        let mut w = Vec::new();
        for _ in 0..rows {
            w.extend(noise.row(ty, cols));
        }
        let x = noise.take(n * cols);
        let want = product(Isa::SCALAR, ty, &w, rows, &x, n);
        for isa in Isa::available() {
            let mut acts = activations(&x, n);
            let view = acts.view(grouping(ty));
            let mut got = vec![0.0; n * rows];
            for part in [0..1, 1..rows] {
                let out = Out::new(&mut got, rows);
                isa.matmul(ty, &w, w.len() / rows, part, &view, out);
            }
            assert_eq!(bits(&got), bits(&want), "{isa} {ty}");
        }
    }
}

/// Fewer weight rows than lanes, and ranges whose last lanes reach back beyond their beginning.
#[test]
fn whole_numbers_of_any_rows_are_those_of_all() {
    let mut noise = Noise::new(23);
    for ty in [BlockType::Q8_0, BlockType::Q4_1, BlockType::Q6_K] {
        let cols = 768;
        for rows in [1, 7, 8, 15, 16, 35] {
            let w: Vec<u8> = (0..rows).flat_map(|_| noise.row(ty, cols)).collect();
            for n in [1, 5] {
                let x = noise.take(n * cols);
                let want = whole(Isa::SCALAR, ty, &w, rows, &x, n);
                for isa in Isa::available() {
                    let mut acts = activations(&x, n);
                    let pool = Pool::new(1).unwrap();
                    let codes = acts.codes(&pool.session(), isa, [ty].into_iter());
                    let mut got = vec![0.0; n * rows];
                    let tiled = whole(isa, ty, &w, rows, &x, n);
                    assert_eq!(bits(&tiled), bits(&want), "{isa} {ty} {rows} rows, {n}");
                    for part in [0..1, 1..rows] {
                        let out = Out::new(&mut got, rows);
                        isa.products(matrix(ty, &w, rows), part, codes, out);
                    }
                    assert_eq!(bits(&got), bits(&want), "{isa} {ty} {rows} rows, {n}");
                }
            }
        }
    }
}

/// [`product`] in whole numbers.
fn whole(isa: Isa, ty: BlockType, w: &[u8], rows: usize, x: &[f32], n: usize) -> Vec<f32> {
    let mut acts = activations(x, n);
    let pool = Pool::new(1).unwrap();
    let mut out = vec![0.0; n * rows];
    let codes = acts.codes(&pool.session(), isa, [ty].into_iter());
    isa.products(
        matrix(ty, w, rows),
        0..rows,
        codes,
        Out::new(&mut out, rows),
    );
    // From tiles the same.
    if let Some(lanes) = isa.lanes() {
        let tiles = tiles(ty, w, rows, lanes);
        let w = Matrix {
            bytes: &tiles,
            tiled: Some(lanes),
            ..matrix(ty, w, rows)
        };
        let mut again = vec![f32::NAN; n * rows];
        let cut = lanes.min(rows);
        for part in [0..cut, cut..rows].into_iter().filter(|p| !p.is_empty()) {
            isa.products(w, part, codes, Out::new(&mut again, rows));
        }
        assert_eq!(bits(&again), bits(&out), "{isa} {ty} in tiles, {n} rows");
    }
    out
}

/// `rows` weight rows, one behind the other.
fn matrix(block_type: BlockType, bytes: &[u8], rows: usize) -> Matrix<'_> {
    Matrix {
        block_type,
        bytes,
        row_bytes: bytes.len() / rows,
        tiled: None,
    }
}

/// The same in tiles.
fn tiles(ty: BlockType, w: &[u8], rows: usize, lanes: usize) -> Vec<u8> {
    let row_bytes = w.len() / rows;
    let mut all = vec![0; rows.next_multiple_of(lanes) * row_bytes];
    let each = all.chunks_exact_mut(lanes * row_bytes);
    for (tile, rows) in each.zip(w.chunks(lanes * row_bytes)) {
        integer::lay_tile(ty, rows, row_bytes, lanes, tile);
    }
    all
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn products_in_whole_numbers_are_close_and_the_same_everywhere() {
    let mut noise = Noise::new(17);
    for ty in BlockType::ALL.into_iter().filter(|t| integer::covers(*t)) {
        let lens: &[usize] = if ty.block_len() == 32 {
            &[32, 96, 576]
        } else {
            &[256, 1536]
        };
        for &cols in lens {
            let rows = 35;
            let w: Vec<u8> = (0..rows).flat_map(|_| noise.row(ty, cols)).collect();
            let mut plain = vec![0.0; rows * cols];
            for (w, plain) in w.chunks(w.len() / rows).zip(plain.chunks_mut(cols)) {
                blocks::dequantize_row(ty, w, plain).unwrap();
            }
            // The last of 129 is alone, behind others.
            for n in [1, 3, 129, 130] {
                let x = noise.take(n * cols);
                let want = whole(Isa::SCALAR, ty, &w, rows, &x, n);
                for (x, want) in x.chunks(cols).zip(want.chunks(rows)).take(3) {
                    // What the codes stand for.
                    let mut coded = Vec::new();
                    Isa::SCALAR.encode(x, &mut |_, b| {
                        coded.extend(b.codes.map(|c| f64::from(c) * f64::from(b.scale)));
                    });
                    for (w, v) in plain.chunks(cols).zip(want) {
                        let products = w.iter().zip(&coded).map(|(w, x)| f64::from(*w) * x);
                        let (sum, size) =
                            products.fold((0.0, 1e-6), |(s, z), p| (s + p, z + p.abs()));
                        let off = (f64::from(*v) - sum).abs();
                        assert!(off < 3e-5 * size, "{ty} {cols}: {v} {sum}");
                    }
                }
                for isa in Isa::available() {
                    let got = whole(isa, ty, &w, rows, &x, n);
                    assert_eq!(bits(&got), bits(&want), "{isa} {ty} {cols}, {n} rows");
                }
                // A row alone is the row among others.
                let last = whole(Isa::detect(), ty, &w, rows, &x[(n - 1) * cols..], 1);
                assert_eq!(bits(&last), bits(&want[(n - 1) * rows..]), "{ty} {cols}");
            }
        }
    }
}

#[test]
fn whole_numbers_do_not_overflow_at_the_ends_of_their_ranges() {
    let mut noise = Noise::new(19);
    for ty in BlockType::ALL.into_iter().filter(|t| integer::covers(*t)) {
        let (cols, rows) = (512, 16);
        for fill in [0, 0x80, 0xff] {
            // Scales stay numbers: those of a real row, the quants all alike.
            let mut w: Vec<u8> = (0..rows).flat_map(|_| noise.row(ty, cols)).collect();
            for block in w.chunks_exact_mut(ty.block_bytes()) {
                let quants = match ty {
                    BlockType::Q2_K => 16..80,
                    BlockType::Q3_K => 0..96,
                    BlockType::Q6_K => 0..192,
                    BlockType::Q4_K | BlockType::Q5_K => 16..ty.block_bytes(),
                    BlockType::IQ4_XS => 8..136,
                    BlockType::MXFP4 => 1..17,
                    BlockType::Q4_1 | BlockType::Q5_1 => 4..ty.block_bytes(),
                    _ => 2..ty.block_bytes(),
                };
                block[quants].fill(fill);
                // Whole scales of the largest magnitude, where two groups are weighed with them.
                match ty {
                    BlockType::Q2_K => block[..16].fill(0xff),
                    BlockType::Q3_K => block[96..108].fill(0),
                    BlockType::Q6_K => block[192..208].fill(0x80),
                    _ => {}
                }
            }
            for sign in [1.0, -1.0] {
                let x: Vec<f32> = (0..cols).map(|i| sign * (1 + i / 32) as f32).collect();
                for n in [1, 3] {
                    let x = x.repeat(n);
                    let want = bits(&whole(Isa::SCALAR, ty, &w, rows, &x, n));
                    for isa in Isa::available() {
                        let got = bits(&whole(isa, ty, &w, rows, &x, n));
                        assert_eq!(got, want, "{isa} {ty} {n}");
                    }
                }
            }
        }
    }
}

#[test]
fn codes_are_the_same_everywhere_and_keep_what_is_no_number() {
    let mut noise = Noise::new(23);
    let mut x = noise.take(32 * 400);
    x[..32].fill(0.0);
    x[32..64].fill(1e-38);
    x[70] = f32::NAN;
    x[100] = f32::INFINITY;
    let run = |isa: Isa| {
        let mut blocks = Vec::new();
        isa.encode(&x, &mut |b, block| blocks.push((b, block)));
        blocks
    };
    let want = run(Isa::SCALAR);
    assert_eq!(want.len(), 400);
    for (b, block) in &want {
        assert_eq!(block.scale.is_nan(), [2, 3].contains(b), "block {b}");
        let sum: i32 = block.codes.iter().map(|c| i32::from(*c)).sum();
        assert_eq!(
            (-block.minus[0], block.minus[1] + block.minus[2]),
            (sum, -sum)
        );
        let x = &x[b * 32..b * 32 + 32];
        if *b > 3 {
            for (x, c) in x.iter().zip(block.codes) {
                assert!((f32::from(c) * block.scale - x).abs() <= 0.501 * block.scale);
            }
        }
    }
    for isa in Isa::available() {
        for ((_, a), (_, b)) in run(isa).iter().zip(&want) {
            assert_eq!((a.codes, a.minus), (b.codes, b.minus), "{isa}");
            assert_eq!(a.scale.is_nan(), b.scale.is_nan(), "{isa}");
            let same = a.scale.to_bits() == b.scale.to_bits() && bits(&a.sum) == bits(&b.sum);
            assert!(same || a.scale.is_nan(), "{isa}");
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
