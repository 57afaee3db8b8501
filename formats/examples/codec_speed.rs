//! Times of codec `tcq` on rows as calibration promises them, and a long fuzz of the decoder.
//!
//!     cargo run --release -p formats --example codec_speed [-- WIDTH [ROWS [FUZZED FRAMES]]]

use std::sync::Arc;
use std::time::Instant;

use formats::wire::{Channels, Codec, Expect, Origin, PairTag, Scratch, Tcq, decode, encode};

const PAIR_TAG: PairTag = PairTag(*b"pair");

/// A linear congruential generator (Knuth's constants).
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    /// Nearly normal, variance 1.
    fn normal(&mut self) -> f32 {
        (0..12)
            .map(|_| self.below(1 << 20) as f32 / (1 << 20) as f32)
            .sum::<f32>()
            - 6.0
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let mut arg = |default| args.next().transpose().map(|a| a.unwrap_or(default));
    let (width, n, fuzzed) = (arg(4096)?, arg(1)?, arg(0)?);
    let mut lcg = Lcg(1);
    // Most channels within a factor of two, some ten times wider: as at real cuts.
    let sigma: Vec<f32> = (0..width)
        .map(|c| {
            let wide = if c % 97 == 0 { 10.0 } else { 1.0 };
            wide * (1.0 + lcg.below(1000) as f32 / 1000.0)
        })
        .collect();
    let rows: Vec<f32> = (0..n * width)
        .map(|i| sigma[i % width] * lcg.normal())
        .collect();
    let channels = Channels::new(&vec![0.0; width], &sigma).map(Arc::new);
    let mut scratch = Scratch::calibrated(channels);
    let origin = Origin {
        pair_tag: PAIR_TAG,
        first_position: 100,
        width,
    };
    let expect = Expect {
        pair_tag: PAIR_TAG,
        width,
        max_rows: n,
    };
    let (mut frame, mut back) = (Vec::new(), Vec::new());
    for step in [0.5, 0.7, 1.0] {
        let codec = Codec::Tcq(Tcq { step });
        let (mut encoding, mut decoding) = (Vec::new(), Vec::new());
        for _ in 0..2000 / n.min(200) {
            let begun = Instant::now();
            encode(&codec, &origin, &rows, &mut scratch, &mut frame)?;
            encoding.push(begun.elapsed().as_secs_f64() * 1e6);
            let begun = Instant::now();
            decode(&frame, &expect, &mut scratch, &mut back)?;
            decoding.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let each = |mut v: Vec<f64>| {
            v.sort_by(f64::total_cmp);
            (v[0] / n as f64, v[v.len() / 2] / n as f64)
        };
        let ((e0, e), (d0, d)) = (each(encoding), each(decoding));
        println!(
            "{codec}, {n} rows of {width}: {:.1} bytes a row, encode {e0:.1} µs at best, {e:.1} in the \
             median, decode {d0:.1} and {d:.1}, a row",
            frame.len() as f64 / n as f64
        );
    }
    let good = frame;
    let mut refused = 0;
    for _ in 0..fuzzed {
        let mut bytes = good.clone();
        bytes.truncate(1 + lcg.below(good.len()));
        for _ in 0..lcg.below(8) {
            let at = lcg.below(bytes.len().min(64));
            bytes[at] = lcg.below(256) as u8;
        }
        refused += usize::from(decode(&bytes, &expect, &mut scratch, &mut back).is_err());
        assert!(back.capacity() <= n * width, "more than the rows allowed");
    }
    if fuzzed > 0 {
        println!("{fuzzed} damaged frames: {refused} refused, none panicked");
    }
    Ok(())
}
