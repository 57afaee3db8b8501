//! Rows through a codec at a cut.

use std::sync::Arc;

use formats::measured::CodecPoint;
use formats::wire::{Channels, Codec, CutStatistics, Scratch};

use super::{figure, finite};
use crate::exec::Executor as _;
use crate::measure::boundary::Boundary;
use crate::measure::sensitivity::Undisturbed;
use crate::role::RunError;

/// The codecs that are measured at every cut.
pub const CODECS: [&str; 8] = [
    "int8",
    "ts-tabq:tau=5s,delta=0,bits=6",
    "ts-tabq:tau=5s,delta=0,bits=5",
    "ts-tabq:tau=4s,delta=0,bits=4",
    "tcq:step=0.3",
    "tcq:step=0.58",
    "tcq:step=1",
    "tcq:step=1.4",
];
/// Rows of a frame of a prompt: the default of `--chunk`.
const PROMPT_ROWS: usize = 64;

/// What calibration knows of the rows at one cut.
pub(super) type Known = Option<Arc<Channels>>;

/// Bytes and divergence of the codec `spec` at the cut after `cut` layers. `channels` is kept
/// from codec to codec of one cut.
pub(super) fn measure(
    model: &mut Undisturbed<'_>,
    cut: usize,
    spec: &str,
    channels: &mut Option<Known>,
) -> Result<CodecPoint, RunError> {
    let codec: Codec = spec
        .parse()
        .map_err(|e| RunError::Request(format!("codec {spec}: {e}")))?;
    let width = model.layers[0].0.hparams().n_embd;
    let rows = model.before[cut].clone();
    let known =
        channels.get_or_insert_with(|| statistics(&rows, model.window, width).channels(width));
    let run = |frame_rows: usize| {
        let scratch = Scratch::calibrated(known.clone());
        let mut boundary = Boundary::with_scratch(codec, scratch, frame_rows);
        let mut coded = rows.clone();
        for window in coded.chunks_mut(model.window) {
            boundary.pass(0, width, window)?;
        }
        let bytes = boundary.bytes as f64 / boundary.rows.max(1) as f64;
        Ok::<_, RunError>((coded, figure(bytes)))
    };
    let (coded, bytes_per_token) = run(1)?;
    let (_, prompt) = run(PROMPT_ROWS)?;
    let kl = finite(model.behind(cut, coded)?, spec)?;
    Ok(CodecPoint {
        cut: cut as u32,
        codec: spec.to_owned(),
        bytes_per_token,
        prompt_bytes_per_token: Some(prompt),
        kl,
        fitted: false,
    })
}

/// Mean and standard deviation of each channel, first rows of windows apart, as calibration takes
/// them.
fn statistics(rows: &[f32], window: usize, width: usize) -> CutStatistics {
    let (mut sums, mut squares, mut n) = (vec![0.0_f64; width], vec![0.0_f64; width], 0.0);
    for window in rows.chunks(window.max(1)) {
        for row in window.chunks_exact(width).skip(1) {
            n += 1.0;
            for ((x, sum), square) in row.iter().zip(&mut sums).zip(&mut squares) {
                let x = f64::from(*x);
                *sum += x;
                *square += x * x;
            }
        }
    }
    let n = f64::max(n, 1.0);
    let sigma = |(sum, square): (&f64, &f64)| {
        let mean = sum / n;
        (square / n - mean * mean).max(0.0).sqrt() as f32
    };
    CutStatistics {
        mean: sums.iter().map(|s| (s / n) as f32).collect(),
        sigma: sums.iter().zip(&squares).map(sigma).collect(),
        kl: Vec::new(),
    }
}
