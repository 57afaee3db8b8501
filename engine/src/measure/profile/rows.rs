//! What a row costs outside of the layers: codecs, the embedding, the choice of the token.

use std::sync::Arc;

use formats::blocks::BlockType;
use formats::measured::CodecTime;
use formats::wire::{self, Codec, CutStatistics, Expect, Origin, PairTag, Scratch};

use super::passes::median_ns;
use super::synthetic::{Noise, part};
use crate::exec::Executor;
use crate::model::{HParams, ModelPart};
use crate::role::RunError;
use crate::text::argmax;

/// The codecs of a profile, as `--codec` takes them.
const CODECS: [&str; 6] = [
    "f32",
    "f16",
    "int8",
    "ts-tabq:tau=5s,delta=0,bits=5",
    "tcq:step=0.4",
    "tcq:step=1",
];
/// Rows of one measurement.
const ROWS: usize = 32;

/// Times of coding rows of `width` values and of half as many, one row a frame.
pub(super) fn codecs(width: usize) -> Result<Vec<CodecTime>, RunError> {
    let widths = [width.div_ceil(2).max(1), width.max(2)];
    let mut out = Vec::new();
    for name in CODECS {
        let codec: Codec = name
            .parse()
            .map_err(|e| RunError::Request(format!("codec {name}: {e}")))?;
        let (small, large) = (times(&codec, widths[0])?, times(&codec, widths[1])?);
        let line = |a: f64, b: f64| {
            let value = ((b - a) / (widths[1] - widths[0]) as f64).max(0.0);
            let fixed = b - value * widths[1] as f64;
            // Where the larger row looks cheaper a line says nothing: all by width.
            if fixed < 0.0 {
                (0.0, b / widths[1] as f64)
            } else {
                (fixed, value)
            }
        };
        let (encode_fixed_ns, encode_value_ns) = line(small.0, large.0);
        let (decode_fixed_ns, decode_value_ns) = line(small.1, large.1);
        out.push(CodecTime {
            codec: name.to_owned(),
            encode_fixed_ns,
            encode_value_ns,
            decode_fixed_ns,
            decode_value_ns,
        });
    }
    Ok(out)
}

/// Nanoseconds to encode and to decode one row.
fn times(codec: &Codec, width: usize) -> Result<(f64, f64), RunError> {
    let mut noise = Noise(3);
    let rows: Vec<Vec<f32>> = (0..ROWS)
        .map(|r| {
            let mut row = noise.values(width);
            // A few far values, as rows of a Llama have.
            for i in 0..width.min(4) {
                row[(i * 97 + r) % width] *= 50.0;
            }
            row
        })
        .collect();
    let cut = CutStatistics {
        mean: vec![0.0; width],
        // That of a sum of four even ones.
        sigma: vec![(4.0_f32 / 12.0).sqrt(); width],
        kl: Vec::new(),
    };
    let mut scratch = Scratch::calibrated(cut.channels(width));
    let pair_tag = PairTag([0; 4]);
    let mut frames = vec![Vec::new(); ROWS];
    let encode = median_ns(|| {
        for (i, (row, frame)) in rows.iter().zip(&mut frames).enumerate() {
            let origin = Origin {
                pair_tag,
                first_position: 100 + i as u32,
                width,
            };
            wire::encode(codec, &origin, row, &mut scratch, frame)?;
        }
        Ok(())
    })?;
    let mut decoded = Vec::new();
    let decode = median_ns(|| {
        for frame in &frames {
            let expect = Expect {
                pair_tag,
                width,
                max_rows: 1,
            };
            wire::decode(frame, &expect, &mut scratch, &mut decoded)?;
        }
        Ok(())
    })?;
    Ok((encode / ROWS as f64, decode / ROWS as f64))
}

/// Nanoseconds to look up one value of an embedding of type `ty`.
pub(super) fn embed_value_ns(
    make: &dyn Fn(ModelPart) -> Result<Arc<dyn Executor>, RunError>,
    hp: &HParams,
    ty: BlockType,
) -> Result<f64, RunError> {
    const VOCAB: u32 = 4096;
    let exec = make(part(hp, ty, 1, VOCAB as usize)?)?;
    let ids: Vec<u32> = (0..64)
        .map(|i: u32| i.wrapping_mul(2_654_435_761) % VOCAB)
        .collect();
    let mut rows = Vec::new();
    let ns = median_ns(|| Ok(exec.embed(&ids, &mut rows)?))?;
    Ok(ns / (ids.len() * hp.n_embd) as f64)
}

/// Nanoseconds for each of `n_vocab` logits to find the largest.
pub(super) fn sample_value_ns(n_vocab: usize) -> f64 {
    let logits = Noise(5).values(n_vocab.max(1));
    let ns = median_ns(|| {
        std::hint::black_box(argmax(std::hint::black_box(&logits)));
        Ok(())
    });
    ns.unwrap_or(0.0) / logits.len() as f64
}
