//! Attention: every instruction set against the scalar kernels, every way through against every
//! other, both equalities; and against attention in f64.

use formats::model::KvType;
use half::f16;

use super::attention::{Attention, Scratch};
use super::integer::SPAN;
use super::isa::Isa;
use super::pool::Pool;
use crate::cache::{KvCache, KvShape, Side, floats};
use crate::exec::noise::Noise;

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// Values without far ones: codes of 8 bits do not suit those.
fn tame(noise: &mut Noise, n: usize) -> Vec<f32> {
    let all = noise.take(n).into_iter();
    all.map(|v| v.clamp(-1.5, 1.5)).collect()
}

#[test]
fn pieces_in_floats_agree() {
    let mut noise = Noise::new(11);
    for dim in [8, 20, 64, 80, 96] {
        for n in [1, 3, 4, 9, 70] {
            let keys: Vec<f16> = (noise.take(n * dim).into_iter())
                .map(f16::from_f32)
                .collect();
            let floats: Vec<f32> = keys.iter().map(|k| k.to_f32()).collect();
            for rows in [1, 2, 3, 4, 7] {
                let q = noise.take(rows * dim);
                let own = noise.take(dim);
                // Scores, weights and sums of all rows at once.
                let run = |isa: Isa| {
                    let mut s = vec![0.0; rows * SPAN];
                    let mut sums = vec![0.0; rows * dim];
                    isa.scores_f16(&q, &keys, dim, 0.125, keys.as_ptr(), &mut s);
                    let mut out = Vec::new();
                    for s in s.chunks_mut(SPAN) {
                        let (max, sum) = isa.softmax(&mut s[..n]);
                        out.extend([max, sum]);
                    }
                    isa.sums_f16(&s, &keys, dim, std::ptr::null(), &mut sums);
                    out.extend(&sums);
                    // Joined to others that are larger, and smaller.
                    for most in [out[0] + 1.5, out[0] - 1.5] {
                        let (mut so_far, mut all) = ([most, 3.0], own.clone());
                        isa.join(&mut so_far, &mut all, [out[0], out[1]], &sums[..dim]);
                        out.extend(so_far);
                        out.extend(all);
                    }
                    bits(&out)
                };
                // The same from floats, a row at a time, values in two pieces.
                let tiles = |isa: Isa| {
                    let mut out = Vec::new();
                    let mut all = vec![0.0; rows * dim];
                    for (q, sums) in q.chunks(dim).zip(all.chunks_mut(dim)) {
                        let mut s = vec![0.0; n];
                        isa.scores_f32(q, &floats, dim, 0.125, &mut s);
                        let (max, sum) = isa.softmax(&mut s);
                        out.extend([max, sum]);
                        let (first, rest) = s.split_at(n / 2);
                        isa.add_weighted_f32(first, &floats, dim, sums);
                        isa.add_weighted_f32(rest, &floats[n / 2 * dim..], dim, sums);
                    }
                    out.extend(all);
                    bits(&out)
                };
                let want = run(Isa::SCALAR);
                for isa in Isa::available() {
                    assert_eq!(
                        run(isa),
                        want,
                        "{isa}: {rows} heads of {dim}, {n} positions"
                    );
                    let got = tiles(isa);
                    assert_eq!(got, want[..got.len()], "{isa}: tiles, head of {dim}");
                }
            }
        }
    }
}

/// A layer's cache, and queries for all its positions.
struct Layer {
    cache: KvCache,
    q: Vec<f32>,
    group: usize,
    len: usize,
}

impl Layer {
    fn new(noise: &mut Noise, shape: KvShape, group: usize, len: usize) -> Self {
        let width = shape.heads * shape.head_dim;
        let mut cache = KvCache::new(1, len + 5, shape).unwrap();
        // What was forgotten must not be seen, not even where it is no number.
        cache.pretend(len + 5, |row| row.fill(f32::NAN));
        let mut layer = cache.layer_mut(0).unwrap();
        for at in 0..len {
            layer.put(at, &tame(noise, width), &tame(noise, width));
        }
        Self {
            cache,
            q: tame(noise, len * group * width),
            group,
            len,
        }
    }

    /// All rows, in chunks of `chunk`.
    fn run(&mut self, isa: Isa, whole: bool, threads: usize, chunk: usize) -> Vec<f32> {
        let pool = Pool::new(threads).unwrap();
        let session = pool.session();
        let mut scratch = Scratch::default();
        let width = self.q.len() / self.len;
        let mut out = vec![f32::NAN; self.q.len()];
        for start in (0..self.len).step_by(chunk) {
            let n = chunk.min(self.len - start);
            let at = start * width..(start + n) * width;
            let attention = Attention {
                isa,
                whole,
                n,
                start,
                group: self.group,
                q: &self.q[at.clone()],
                kv: self.cache.layer_mut(0).unwrap(),
            };
            attention.run(&session, &mut out[at], &mut scratch);
        }
        out
    }

    /// In f64, over keys and values as they are kept.
    fn reference(&mut self) -> Vec<f64> {
        let shape = self.cache.host_shape().unwrap();
        let (dim, group) = (shape.head_dim, self.group);
        let layer = self.cache.layer_mut(0).unwrap();
        let mut out = Vec::new();
        let kept = |side: Side| {
            let of = |h: usize| {
                let head = if side == Side::Keys {
                    layer.keys(h)
                } else {
                    layer.values(h)
                };
                let mut all = vec![0.0; self.len * dim];
                floats(head, shape, side, 0, self.len, &mut all);
                all
            };
            (0..shape.heads).map(of).collect::<Vec<_>>()
        };
        let (keys, values) = (kept(Side::Keys), kept(Side::Values));
        for r in 0..self.len {
            for h in 0..shape.heads * group {
                let n = r + 1;
                let (keys, values) = (&keys[h / group], &values[h / group]);
                let q = &self.q[(r * shape.heads * group + h) * dim..][..dim];
                let scores: Vec<f64> = (keys.chunks(dim).take(n))
                    .map(|k| {
                        let dot = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k));
                        dot.sum::<f64>() / (dim as f64).sqrt()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = e.iter().sum();
                out.extend((0..dim).map(|d| {
                    let all = e.iter().zip(values.chunks(dim));
                    all.map(|(e, v)| e * f64::from(v[d])).sum::<f64>() / sum
                }));
            }
        }
        out
    }
}

#[test]
fn every_way_gives_the_same_bits_and_is_near_the_truth() {
    let mut noise = Noise::new(29);
    for (kv_type, head_dim, heads, group) in [
        (KvType::F16, 64, 2, 3),
        (KvType::F16, 20, 1, 2),
        (KvType::Q8_0, 64, 2, 3),
        (KvType::Q8_0, 32, 1, 5),
        (KvType::Q4_0, 64, 1, 3),
        (KvType::Q4_0, 128, 2, 1),
    ] {
        let shape = KvShape {
            heads,
            head_dim,
            kv_type,
        };
        // Two spans and a part of a third, that ends within a page.
        let len = 2 * SPAN + 41;
        let mut layer = Layer::new(&mut noise, shape, group, len);
        let truth = layer.reference();
        for whole in [false, true] {
            if whole && kv_type == KvType::F16 {
                continue;
            }
            let want = layer.run(Isa::detect(), whole, 2, len);
            let (mut off, mut size) = (0.0_f64, 0.0_f64);
            for (a, b) in want.iter().zip(&truth) {
                off += (f64::from(*a) - b).powi(2);
                size += b * b;
            }
            // In whole numbers the error is that of queries in 8 bits.
            let worst = if whole { 0.02 } else { 1e-6 };
            let error = (off / size).sqrt();
            assert!(error < worst, "{kv_type}, whole {whole}: off by {error}");
            for (threads, chunk) in [(1, 1), (3, 3), (2, 4), (1, 100)] {
                let got = layer.run(Isa::detect(), whole, threads, chunk);
                assert!(
                    bits(&got) == bits(&want),
                    "{kv_type}, whole {whole}: chunks of {chunk}, {threads} threads"
                );
            }
            for isa in Isa::available() {
                let got = layer.run(isa, whole, 1, 128);
                assert!(bits(&got) == bits(&want), "{kv_type}, whole {whole}: {isa}");
            }
        }
    }
}

#[test]
fn whole_numbers_do_not_overflow_at_the_ends_of_their_ranges() {
    for kv_type in [KvType::Q8_0, KvType::Q4_0] {
        let shape = KvShape {
            heads: 1,
            head_dim: 32,
            kv_type,
        };
        for sign in [1.0, -1.0] {
            let mut layer = Layer::new(&mut Noise::new(3), shape, 1, SPAN);
            // Each weight is the largest, each code at the end of its range.
            let mut kv = layer.cache.layer_mut(0).unwrap();
            for at in 0..SPAN {
                kv.put(at, &[1.0; 32], &[sign; 32]);
            }
            layer.q.fill(sign);
            let want = layer.run(Isa::SCALAR, true, 1, SPAN);
            for v in &want {
                assert!((v - sign).abs() < 0.001, "{kv_type}: {v}");
            }
            for isa in Isa::available() {
                let got = layer.run(isa, true, 1, SPAN);
                assert!(bits(&got) == bits(&want), "{isa} {kv_type}");
            }
        }
    }
}
