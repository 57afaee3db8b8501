//! Rows through a codec at a cut.
//!
//! How far a codec moves the rows at a cut costs one coding and no layer, so it is known of all of
//! them ([`codings`]), and what a codec costs goes with it: on SmolLM2-135M, whose 139 measured
//! figures lie between 0.0009 and 0.1 nats, all but those of `int8` are estimated from a third of
//! them within 16 % (root mean square of logarithms, each from the others). `int8` has one scale a
//! row: what it leaves of the first row, which all others look at, hangs on the cut.

use std::sync::Arc;

use formats::measured::CodecPoint;
use formats::wire::{Channels, Codec, CutStatistics, Scratch};

use super::{figure, finite, fit};
use crate::exec::Executor as _;
use crate::measure::boundary::Boundary;
use crate::measure::sensitivity::{Undisturbed, each};
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
/// The codec whose cost at a cut the others say least of.
const ODD: &str = "int8";

/// Cuts of a model of `n_layer` layers and places in [`CODECS`]: all codecs in the middle, [`ODD`]
/// everywhere, then at each cut always another one.
pub(super) fn cuts(n_layer: usize) -> Vec<(usize, usize)> {
    let cuts = fit::spread(n_layer.saturating_sub(1));
    let cuts: Vec<usize> = cuts.iter().map(|c| c + 1).collect();
    let middle = n_layer / 2;
    let mut out: Vec<(usize, usize)> = Vec::new();
    if cuts.contains(&middle) {
        out.extend((0..CODECS.len()).map(|spec| (middle, spec)));
    }
    let rest: Vec<usize> = cuts.into_iter().filter(|c| *c != middle).collect();
    let (odd, others): (Vec<usize>, Vec<usize>) =
        (0..CODECS.len()).partition(|s| CODECS[*s] == ODD);
    out.extend(
        odd.iter()
            .flat_map(|s| rest.iter().map(move |cut| (*cut, *s))),
    );
    for turn in 0..others.len() {
        for (at, &cut) in rest.iter().enumerate() {
            out.push((cut, others[(turn + at) % others.len()]));
        }
    }
    out
}

/// The place in [`CODECS`] of the first codec of the family of one.
pub(super) fn family(spec: usize) -> usize {
    let name = |s: &str| s.split(':').next().map(str::to_owned);
    let own = CODECS.get(spec).and_then(|s| name(s));
    (CODECS.iter()).position(|s| name(s) == own).unwrap_or(spec)
}

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
    let rows = &model.before[cut];
    let known =
        channels.get_or_insert_with(|| statistics(rows, model.window, width).channels(width));
    let run = |frame_rows: usize| travel(codec, known, rows, (model.window, width), frame_rows);
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

/// The rows at the cut after `cut` layers as the codec `spec` leaves them, each in a frame of its
/// own.
pub(super) fn coded(model: &Undisturbed<'_>, cut: usize, spec: &str) -> Result<Vec<f32>, RunError> {
    let codec: Codec = spec
        .parse()
        .map_err(|e| RunError::Request(format!("codec {spec}: {e}")))?;
    let width = model.layers[0].0.hparams().n_embd;
    let rows = &model.before[cut];
    let known = statistics(rows, model.window, width).channels(width);
    travel(codec, &known, rows, (model.window, width), 1).map(|(coded, _)| coded)
}

/// `rows`, in windows of so many values, as `codec` makes them of frames of so many rows, and the
/// mean bytes of one.
fn travel(
    codec: Codec,
    known: &Known,
    rows: &[f32],
    (window, width): (usize, usize),
    frame_rows: usize,
) -> Result<(Vec<f32>, f64), RunError> {
    let scratch = Scratch::calibrated(known.clone());
    let mut boundary = Boundary::with_scratch(codec, scratch, frame_rows);
    let mut coded = rows.to_vec();
    for window in coded.chunks_mut(window.max(1)) {
        boundary.pass(0, width, window)?;
    }
    let bytes = boundary.bytes as f64 / boundary.rows.max(1) as f64;
    Ok((coded, figure(bytes)))
}

/// What a codec does to the rows at a cut, whatever is behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coding {
    pub(super) cut: usize,
    /// Place in [`CODECS`].
    pub(super) spec: usize,
    /// Bytes of a frame of one row, and of a row in one of many.
    pub(super) bytes: [f64; 2],
    /// Logarithm of the squared error of a row by its squared length, mean of the rows behind the
    /// first of their window; minus infinity where rows come back as they were.
    pub(super) error: f64,
}

/// Values that are coded for [`codings`], all together; and rows of a cut at least.
const CODED: usize = 1 << 26;
const CODED_ROWS: usize = 64;

/// All codecs at all cuts, over the rows of the first windows, of at most so many that it takes
/// seconds.
pub(super) fn codings(model: &Undisturbed<'_>) -> Result<Vec<Coding>, RunError> {
    let (cuts, width) = (model.layers.len(), model.layers[0].0.hparams().n_embd);
    let most = (CODED / (cuts * CODECS.len() * width).max(1)).max(CODED_ROWS);
    let found = each(1..cuts, model.threads(), |cut| {
        let rows = &model.before[cut];
        let known = statistics(rows, model.window, width).channels(width);
        let rows = &rows[..rows.len().min(most * width)];
        let one = |(spec, text): (usize, &&str)| {
            let codec: Codec = text
                .parse()
                .map_err(|e| RunError::Request(format!("codec {text}: {e}")))?;
            let run = |n| travel(codec, &known, rows, (model.window, width), n);
            let (coded, bytes) = run(1)?;
            let (_, prompt) = run(PROMPT_ROWS)?;
            Ok(Coding {
                cut,
                spec,
                bytes: [bytes, prompt],
                error: error(rows, &coded, (model.window, width)).ln(),
            })
        };
        CODECS.iter().enumerate().map(one).collect()
    });
    let found: Result<Vec<Vec<Coding>>, RunError> = found.into_iter().collect();
    Ok(found?.concat())
}

/// The mean squared error of a row by its squared length, first rows of windows apart: they are
/// far larger than all others in many models, and what is behind them looks at them in its own way.
fn error(rows: &[f32], coded: &[f32], (window, width): (usize, usize)) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    let windows = rows.chunks(window.max(1)).zip(coded.chunks(window.max(1)));
    for (rows, coded) in windows {
        let pairs = rows.chunks_exact(width).zip(coded.chunks_exact(width));
        for (row, coded) in pairs.skip(1) {
            let (mut off, mut all) = (0.0_f64, 0.0_f64);
            for (x, y) in row.iter().zip(coded) {
                off += f64::from(x - y).powi(2);
                all += f64::from(*x).powi(2);
            }
            if all > 0.0 {
                sum += off / all;
                n += 1.0;
            }
        }
    }
    sum / f64::max(n, 1.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_rows_behind_the_first() {
        // Two windows of two rows of two values.
        let rows = [9.0, 9.0, 3.0, 4.0, 1.0, 1.0, 0.0, 2.0];
        let mut coded = rows;
        let of = |coded: &[f32]| error(&rows, coded, (4, 2));
        assert_eq!(of(&coded), 0.0);
        coded[0] = 0.0;
        coded[4] = 7.0;
        assert_eq!(of(&coded), 0.0, "first rows do not count");
        coded[2] = 2.0;
        coded[7] = 1.0;
        // 1 of 25 and 1 of 4.
        assert!((of(&coded) - f64::midpoint(0.04, 0.25)).abs() < 1e-12);
        assert_eq!(error(&[0.0; 8], &[0.0; 8], (4, 2)), 0.0);
    }

    #[test]
    fn finer_codings_err_less_and_take_more() {
        let width = 32;
        let rows: Vec<f32> = (0..64 * width)
            .map(|i| libm::sinf(i as f32 * 1.7) * (1.0 + (i % 5) as f32))
            .collect();
        let known = statistics(&rows, rows.len(), width).channels(width);
        let of = |spec: &str| {
            let codec = spec.parse().unwrap();
            let (coded, bytes) = travel(codec, &known, &rows, (rows.len(), width), 1).unwrap();
            (error(&rows, &coded, (rows.len(), width)), bytes)
        };
        let (fine, coarse) = (of("tcq:step=0.3"), of("tcq:step=1.4"));
        assert!(
            fine.0 < coarse.0 && fine.1 > coarse.1,
            "{fine:?} {coarse:?}"
        );
        assert_eq!(of("f32").0, 0.0);
    }
}
