//! The frame, version 2: what both ends know already takes no bytes.
//!
//! Pair, width and calibration go into the seed of the entropy coder, which the decoder gets back
//! behind the last value: a frame of others, or a damaged one, ends elsewhere.

use super::channels::Channels;
use super::codec::Tcq;
use super::cursor::{Reader, put_varint};
use super::entropy;
use super::frame::{CODEC, MARK, PairTag, Scratch};
use super::tcq::Head;
use super::{Coding, DecodeError, EncodeError, Expect, FrameHeader, FrameStats, Origin};

/// Version of the format that this module writes and reads.
pub(super) const VERSION: u8 = 2;
/// Coding number of [`Coding::Tcq`].
const TCQ: u8 = 4;
/// The number of rows follows the position; without it there is one.
const FLAG_MANY: u8 = 0x10;
/// State of the coder.
const STATE_LEN: usize = 4;

/// What the decoder must know without being told, and all bytes in front of the coder's.
fn seed(pair_tag: PairTag, width: usize, front: &[u8]) -> u32 {
    let mut hash = blake3::Hasher::new();
    hash.update(&pair_tag.0);
    hash.update(&(width as u32).to_le_bytes());
    hash.update(front);
    let [a, b, ..] = *hash.finalize().as_bytes();
    u32::from(u16::from_le_bytes([a, b])) & ((1 << entropy::SEED_BITS) - 1)
}

/// [`super::rows_at_a_glance`] of a frame of this version.
pub(super) fn rows_at_a_glance(frame: &[u8]) -> Option<u32> {
    let mut r = Reader::new(frame);
    let [mark, coding] = r.array("header").ok()?;
    r.varint("first position").ok()?;
    if mark != MARK | VERSION {
        return None;
    }
    if coding & FLAG_MANY == 0 {
        return Some(1);
    }
    r.varint("number of rows").ok()
}

/// Writes `rows`, which `super::encode` has checked to be whole ones.
pub(super) fn encode(
    params: Tcq,
    origin: &Origin,
    rows: &[f32],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<FrameStats, EncodeError> {
    let width = origin.width;
    let channels = scratch.channels.clone();
    let channels: &Channels = channels.as_deref().ok_or(EncodeError::NotCalibrated)?;
    if channels.width() != width {
        return Err(EncodeError::Channels {
            channels: channels.width(),
            width,
        });
    }
    let n = rows.len() / width;
    let many = if n == 1 { 0 } else { FLAG_MANY };
    out.extend_from_slice(&[MARK | VERSION, TCQ | many]);
    put_varint(out, origin.first_position);
    if n != 1 {
        put_varint(out, n as u32);
    }
    let buffers = &mut scratch.tcq;
    buffers.clear();
    for (i, row) in rows.chunks_exact(width).enumerate() {
        let position = origin.first_position + i as u32;
        let head = buffers.quantise(row, position, params, channels);
        out.extend_from_slice(&[head.spread, head.step]);
    }
    let front = out.len();
    let seed = seed(origin.pair_tag, width, out);
    buffers.write(seed, out);
    Ok(FrameStats {
        bytes: out.len(),
        rows: n,
        outliers: buffers.exact.len(),
        code_bits: 8 * (out.len() - front),
        compressed: true,
    })
}

/// Reads a frame whose first byte was looked at.
pub(super) fn decode(
    bytes: &[u8],
    expect: &Expect,
    scratch: &mut Scratch,
    rows: &mut Vec<f32>,
) -> Result<FrameHeader, DecodeError> {
    let &Expect {
        pair_tag,
        width,
        max_rows,
    } = expect;
    let mut r = Reader::new(bytes);
    let [_, coding] = r.array("header")?;
    if coding & CODEC != TCQ {
        let id = coding & CODEC;
        return Err(DecodeError::Coding { id });
    }
    let flags = coding & !CODEC;
    if flags & !FLAG_MANY != 0 {
        return Err(DecodeError::Flags { flags });
    }
    let first_position = r.varint("first position")?;
    let n = match flags {
        0 => 1,
        _ => r.varint("number of rows")?,
    };
    if flags != 0 && n == 1 {
        return Err(DecodeError::Malformed {
            what: "number of rows",
        });
    }
    if n as usize > max_rows {
        return Err(DecodeError::TooManyRows {
            rows: n,
            max: max_rows,
        });
    }
    if first_position.checked_add(n).is_none() {
        return Err(DecodeError::Position {
            first_position,
            rows: n,
        });
    }
    let channels = scratch.channels.clone();
    let channels = channels
        .as_deref()
        .filter(|c| c.width() == width)
        .ok_or(DecodeError::NotCalibrated)?;
    let n = n as usize;
    let heads = r.take(2 * n, "row heads")?;
    let front = bytes.len() - r.left();
    if r.left() < STATE_LEN {
        return Err(DecodeError::Truncated { what: "codes" });
    }
    let what = "codes";
    let mut coder = entropy::Reader::new(r.rest()).ok_or(DecodeError::Malformed { what })?;
    rows.resize(n * width, 0.0);
    let (heads, _) = heads.as_chunks::<2>();
    for (&[spread, step], row) in heads.iter().zip(rows.chunks_exact_mut(width)) {
        let head = Head { spread, step };
        scratch.tcq.read(&mut coder, head, channels, row);
    }
    let expected = seed(pair_tag, width, &bytes[..front]);
    if coder.finish() != Some(expected) {
        return Err(DecodeError::Seed);
    }
    Ok(FrameHeader {
        coding: Coding::Tcq,
        first_position,
        rows: n,
        width,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::{Codec, decode, encode};
    use super::*;

    const TAG: PairTag = PairTag(*b"pair");

    fn calibrated(width: usize) -> Scratch {
        let mean: Vec<f32> = (0..width).map(|i| (i % 7) as f32 - 3.0).collect();
        let sigma: Vec<f32> = (0..width).map(|i| 1.0 + (i % 5) as f32).collect();
        Scratch::calibrated(Channels::new(&mean, &sigma).map(Arc::new))
    }

    fn frame(step: f32, first_position: u32, width: usize, rows: &[f32]) -> Vec<u8> {
        let origin = Origin {
            pair_tag: TAG,
            first_position,
            width,
        };
        let mut out = Vec::new();
        let codec = Codec::Tcq(Tcq { step });
        let stats = encode(&codec, &origin, rows, &mut calibrated(width), &mut out).unwrap();
        assert_eq!((stats.bytes, stats.rows), (out.len(), rows.len() / width));
        out
    }

    fn expect(width: usize) -> Expect {
        Expect {
            pair_tag: TAG,
            width,
            max_rows: 64,
        }
    }

    fn read(bytes: &[u8], width: usize) -> Result<Vec<f32>, DecodeError> {
        let mut rows = Vec::new();
        decode(bytes, &expect(width), &mut calibrated(width), &mut rows).map(|_| rows)
    }

    /// Nearly normal rows with the means and spreads of `calibrated`.
    fn rows(n: usize, width: usize) -> Vec<f32> {
        let mut x = 12345u32;
        let mut noise = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) as f32 / (1 << 24) as f32
        };
        (0..n * width)
            .map(|i| {
                let c = i % width;
                let z = (0..12).map(|_| noise()).sum::<f32>() - 6.0;
                (c % 7) as f32 - 3.0 + z * (1.0 + (c % 5) as f32)
            })
            .collect()
    }

    #[test]
    fn a_frame_is_the_same_everywhere() {
        let frame = frame(0.5, 300, 64, &rows(3, 64));
        assert_eq!(frame[..5], [0xa2, 0x14, 0xac, 0x02, 3]);
        let hash = blake3::hash(&frame).to_hex();
        assert_eq!(&hash[..16], "3883610ce66c4639", "{}", frame.len());
    }

    #[test]
    fn rows_cost_what_their_entropy_is() {
        // A Gaussian at 2.0 bits a value and more would take half a bit more in steps of its own.
        let width = 2048;
        let rows = rows(8, width);
        let frame = frame(1.0, 1, width, &rows);
        let bits = 8.0 * frame.len() as f64 / rows.len() as f64;
        let back = read(&frame, width).unwrap();
        let square = |c: usize| (1 + c % 5).pow(2) as f64;
        let mut rate = 0.0;
        for (i, (a, b)) in rows.iter().zip(&back).enumerate() {
            let e = f64::from(a - b);
            rate += e * e / square(i % width) / rows.len() as f64;
        }
        assert!(rate < 0.2 && bits < 2.6, "{rate} at {bits} bits");
    }

    #[test]
    fn one_row_spends_ten_bytes_beside_its_codes() {
        // Nothing to say: every value is where it is expected.
        let mean: Vec<f32> = (0..640).map(|i| (i % 7) as f32 - 3.0).collect();
        assert!(frame(8.0, 100, 640, &mean).len() <= 3 + 2 + 4 + 2);
    }

    #[test]
    fn odd_rows_survive() {
        for width in [1, 2, 576, 16_384] {
            let mut row = vec![0.0; width];
            let back = read(&frame(0.5, 0, width, &row), width).unwrap();
            assert!(back.iter().all(|x| x.abs() < 4.0));
            row[width - 1] = f32::MIN_POSITIVE / 4.0;
            row[0] = 22_000.0;
            row[width / 2] = -3e38;
            let back = read(&frame(0.5, 0, width, &row), width).unwrap();
            assert_eq!(back[width / 2].to_bits(), row[width / 2].to_bits());
            if width > 2 {
                assert_eq!(back[0].to_bits(), row[0].to_bits());
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        let mut out = vec![1];
        let origin = Origin {
            pair_tag: TAG,
            first_position: 0,
            width: 4,
        };
        let codec = Codec::Tcq(Tcq { step: 0.5 });
        let mut rows = [0.0; 12];
        let mut try_it = |rows: &[f32], scratch: &mut Scratch| {
            let e = encode(&codec, &origin, rows, scratch, &mut out).unwrap_err();
            assert!(out.is_empty());
            e.to_string()
        };
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            rows[9] = bad;
            let text = try_it(&rows, &mut calibrated(4));
            for part in ["row 2", "channel 1", &bad.to_string()] {
                assert!(text.contains(part), "{text}");
            }
        }
        rows[9] = 0.0;
        assert!(try_it(&rows, &mut Scratch::default()).contains("splitrun calibrate"));
        assert!(try_it(&rows, &mut calibrated(5)).contains("rows of 5"));
    }

    #[test]
    fn frames_of_others_and_damaged_ones_are_refused() {
        let good = frame(0.5, 7, 32, &rows(2, 32));
        assert!(read(&good, 32).is_ok());
        let other = Expect {
            pair_tag: PairTag(*b"PAIR"),
            ..expect(32)
        };
        let got = decode(&good, &other, &mut calibrated(32), &mut Vec::new());
        assert_eq!(got.unwrap_err(), DecodeError::Seed);
        let got = decode(&good, &expect(32), &mut Scratch::default(), &mut Vec::new());
        assert_eq!(got.unwrap_err(), DecodeError::NotCalibrated);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(read(&bad, 32).is_err(), "bit {bit} of byte {at}");
            }
            assert!(read(&good[..at], 32).is_err(), "{at} bytes");
        }
        let mut long = good.clone();
        long.extend([0; 2]);
        assert!(read(&long, 32).is_err());
    }

    #[test]
    fn any_bytes_are_rows_or_an_error() {
        let good = frame(0.5, 7, 32, &rows(2, 32));
        let mut x = 99u32;
        let mut random = move |n: usize| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 10) as usize % n
        };
        let (mut scratch, mut back) = (calibrated(32), Vec::new());
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            bytes.truncate(1 + random(good.len()));
            for _ in 0..random(6) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            if decode(&bytes, &expect(32), &mut scratch, &mut back).is_err() {
                assert!(back.is_empty());
            }
            assert!(back.capacity() <= 64 * 32);
        }
    }

    proptest! {
        #[test]
        fn outliers_are_exact_and_the_rest_within_a_step(
            seed in proptest::collection::vec(any::<u32>(), 1..120),
            width in 1usize..40,
            step in 0.01f32..8.0,
            tame in any::<bool>(),
        ) {
            let all: Vec<f32> = seed.iter().map(|s| {
                let x = if tame { (s % 20_000) as f32 / 1000.0 - 10.0 } else { f32::from_bits(*s) };
                if x.is_finite() { x } else { 0.0 }
            }).collect();
            let rows = &all[..all.len() / width * width];
            let n = rows.len() / width;
            prop_assume!(n > 0 && n <= 64);
            let bytes = frame(step, 1, width, rows);
            let back = read(&bytes, width).unwrap();
            let heads = if n == 1 { 3 } else { 4 };
            let channels = calibrated(width).channels.unwrap();
            for (i, (a, b)) in rows.iter().zip(&back).enumerate() {
                let at = heads + 2 * (i / width);
                let size = Head { spread: bytes[at], step: bytes[at + 1] }.size(&channels);
                let rounding = (a.abs() + 3.0) * 1e-6;
                prop_assert!(a.to_bits() == b.to_bits() || (a - b).abs() <= 2.0 * size + rounding,
                    "{} became {} in steps of {}", a, b, size);
            }
        }
    }
}
