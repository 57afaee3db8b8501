//! Attention: every instruction set against the scalar kernels, every way through against every
//! other, both equalities; and against attention in f64.

use formats::model::{KV_PAGE, KvType};
use half::f16;

use super::attention::{Attention, Scratch};
use super::integer::SPAN;
use super::isa::Isa;
use super::kv_floats::{Kept, Queries, Seen, TILE};
use super::pool::Pool;
use crate::cache::{KvCache, KvShape, Side, floats, half_of_key};
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
        for n in [1_usize, 3, 16, 29, 63] {
            // Keys in pages, and as a tile; values position after position.
            let pages = n.next_multiple_of(KV_PAGE);
            let mut keys = vec![f16::NAN; pages * dim];
            let mut columns = vec![f32::NAN; TILE * dim];
            for t in 0..n {
                for d in 0..dim {
                    let k = f16::from_f32(noise.take(1)[0]);
                    keys[half_of_key(t, d, dim)] = k;
                    columns[d * TILE + t] = k.to_f32();
                }
            }
            let values: Vec<f16> = (noise.take(n * dim).into_iter())
                .map(f16::from_f32)
                .collect();
            let floats: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
            let (keys, values) = (bytemuck::cast_slice(&keys), bytemuck::cast_slice(&values));
            let own = noise.take(dim);
            for (rows, group) in [(1, 1), (1, 5), (2, 3), (4, 1), (3, 5), (7, 2)] {
                let pairs = rows * group;
                // Rows lie further apart than their heads.
                let stride = group * dim + 3;
                let q = noise.take(rows * stride);
                let q = Queries {
                    q: &q,
                    dim,
                    group,
                    stride,
                    n: pairs,
                };
                for first in [1, n.saturating_sub(rows / 2), n] {
                    let seen = Seen::new(n, first, group);
                    let none = std::ptr::null();
                    // What nobody sees is no number, and is not looked at.
                    let scores = |isa: Isa, keys: Kept<'_>| {
                        let mut s = vec![0.0; pairs * SPAN];
                        isa.float_scores(&q, keys, seen, 0.125, none, &mut s);
                        for (i, s) in s.chunks_mut(SPAN).enumerate() {
                            s[seen.of(i)..].fill(f32::NAN);
                        }
                        s
                    };
                    // Of weights in two pieces, as of all at once.
                    let sums = |isa: Isa, w: &[f32], values: [Kept<'_>; 2], middle: usize| {
                        let mut sums = vec![0.0; pairs * dim];
                        let shape = (pairs, dim);
                        let (a, b) = (seen.piece(0, middle), seen.piece(middle, n - middle));
                        isa.float_sums(w, values[0], shape, a, none, &mut sums);
                        isa.float_sums(&w[middle..], values[1], shape, b, none, &mut sums);
                        sums
                    };
                    let (halves, tile) = (Kept::Halves(values), Kept::Tile(&floats));
                    let want = scores(Isa::SCALAR, Kept::Halves(keys));
                    let mut weights = want.clone();
                    let told: Vec<_> = (weights.chunks_mut(SPAN).enumerate())
                        .map(|(i, s)| Isa::SCALAR.softmax(&mut s[..seen.of(i)]))
                        .collect();
                    let mixed = sums(Isa::SCALAR, &weights, [halves, halves], 0);
                    let what = format!("{rows} rows of {group} heads of {dim}, {n} positions");
                    for isa in Isa::available() {
                        let mut tile_of = vec![0.0; TILE * dim];
                        isa.key_tile(keys, pages, dim, &mut tile_of);
                        for (a, b) in tile_of.chunks(TILE).zip(columns.chunks(TILE)) {
                            assert_eq!(bits(&a[..n]), bits(&b[..n]), "{isa}: {what}");
                        }
                        for keys in [Kept::Halves(keys), Kept::Tile(&tile_of)] {
                            let mut got = scores(isa, keys);
                            assert_eq!(bits(&got), bits(&want), "{isa}: scores, {what}");
                            for ((i, s), told) in got.chunks_mut(SPAN).enumerate().zip(&told) {
                                assert_eq!(isa.softmax(&mut s[..seen.of(i)]), *told, "{isa}");
                            }
                            assert_eq!(bits(&got), bits(&weights), "{isa}: weights, {what}");
                        }
                        let got = sums(isa, &weights, [halves, halves], 0);
                        assert_eq!(bits(&got), bits(&mixed), "{isa}: sums, {what}");
                        let middle = n / 2;
                        let rest = Kept::Tile(&floats[middle * dim..]);
                        let got = sums(isa, &weights, [tile, rest], middle);
                        assert_eq!(bits(&got), bits(&mixed), "{isa}: tiles, {what}");
                    }
                    // Joined to others that are larger, and smaller.
                    let (max, sum) = told[0];
                    for most in [max + 1.5, max - 1.5] {
                        let join = |isa: Isa| {
                            let (mut so_far, mut all) = ([most, 3.0], own.clone());
                            isa.join(&mut so_far, &mut all, [max, sum], &mixed[..dim]);
                            (bits(&so_far), bits(&all))
                        };
                        for isa in Isa::available() {
                            assert_eq!(join(isa), join(Isa::SCALAR), "{isa}: joined, {what}");
                        }
                    }
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
