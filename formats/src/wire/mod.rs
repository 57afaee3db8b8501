//! The activation frame: hidden rows on their way from one half to the other, in a few hundred
//! bytes a token.
//!
//! `docs/wire-format.md` specifies the bytes. Here: [`Codec`] says how rows are coded, [`encode`]
//! writes one frame, [`decode`] reads one and trusts none of it. Both are pure functions over
//! slices; what they keep from call to call lives in the caller's [`Scratch`].
//!
//! | file | idea |
//! |---|---|
//! | `codec` | the coding and its `SPEC` |
//! | `frame` | header, checksum, assembly |
//! | `ts` | threshold splitting: outliers travel exactly |
//! | `tab_q` | token-wise adaptive bit quantisation of the rest |
//! | `bits` | packing of codes |
//! | `thin` | the second version of the frame, for calibrated pairs |
//! | `channels` | what calibration knows of a cut |
//! | `statistics` | what a pair carries of its cut |
//! | `tcq` | rows to symbols and back |
//! | `trellis` | trellis-coded quantisation |
//! | `entropy` | probabilities and the coder |
//! | `dense` | f32, f16, int8 |
//! | `baselines` | what others do, to compare with |
//! | `cursor` | integers of variable length, a reader that cannot run over |
//! | `error` | what can be wrong with rows, and with a stranger's bytes |
//!
//! ```
//! use formats::wire::{Codec, Expect, Origin, PairTag, Scratch, decode, encode};
//!
//! let pair_tag = PairTag(*b"pair");
//! // An absolute threshold: a row of four is too short for a sigma without its spike.
//! let codec: Codec = "ts-tabq:tau=100,bits=6,delta=0".parse()?;
//! let rows = [0.5, -0.25, 22_000.0, 0.125, 1.0, -1.0, 0.5, 0.0];
//! let (mut scratch, mut frame, mut back) = (Scratch::default(), Vec::new(), Vec::new());
//!
//! let origin = Origin { pair_tag, first_position: 7, width: 4 };
//! let stats = encode(&codec, &origin, &rows, &mut scratch, &mut frame)?;
//! assert_eq!((stats.bytes, stats.outliers), (frame.len(), 1));
//!
//! let expect = Expect { pair_tag, width: 4, max_rows: 512 };
//! let header = decode(&frame, &expect, &mut scratch, &mut back)?;
//! assert_eq!((header.first_position, header.rows), (7, 2));
//! assert_eq!(back[2], 22_000.0);
//! assert!(rows.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.02));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod baselines;
mod bits;
mod channels;
mod codec;
mod cursor;
mod dense;
mod entropy;
mod error;
mod frame;
mod statistics;
mod tab_q;
mod tcq;
mod thin;
mod trellis;
mod ts;

#[cfg(test)]
mod tests;

pub use channels::Channels;
pub use codec::{Codec, SpecError, Tau, Tcq, TsTabQ};
pub use error::{DecodeError, EncodeError};
pub use frame::{
    Coding, Expect, FrameHeader, FrameStats, MAX_WIDTH, Origin, PairTag, Scratch, VERSION, decode,
    encode,
};
pub use statistics::{CutStatistics, KL_STEPS};
pub use ts::trimmed_sigma;

/// How many rows `frame` says that it has, at a glance: nothing else of it is looked at.
pub fn rows_at_a_glance(frame: &[u8]) -> Option<u32> {
    frame::rows_at_a_glance(frame).or_else(|| thin::rows_at_a_glance(frame))
}

/// Rows that a model in order computes: NaN or an infinity is an error that says where it is.
fn check_finite(rows: &[f32], width: usize) -> Result<(), EncodeError> {
    // A maximum of integers vectorises where a search does not.
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    if rows.iter().map(magnitude).max() < Some(f32::INFINITY.to_bits()) {
        return Ok(());
    }
    let at = rows.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(EncodeError::NotFinite {
        row: at / width,
        channel: at % width,
        value: rows.get(at).map_or_else(String::new, f32::to_string),
    })
}
