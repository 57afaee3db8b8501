//! Codings that others use for activations, to be compared with. No peer speaks them.
//!
//! Each is what its paper does to the activations of one matrix, with everything that calibration
//! can learn, in real bytes: a header as that of version 1 in front, a checksum behind.
//!
//! | name | after |
//! |---|---|
//! | `int4` | one symmetric scale a row |
//! | `smoothquant` | Xiao et al. 2023: channels divided by a power of their largest value, then one scale a row |
//! | `atom` | Zhao et al. 2024: the channels with the largest values in 8 bits, the others in groups of 4 bits |
//! | `omniquant` | Shao et al. 2024: shift, scale and clipping learned on calibration rows |
//! | `zstd-f16` | half floats through a general compressor |

mod atom;
mod general;
mod uniform;

use std::fmt;
use std::str::FromStr;

use super::cursor::{Reader, put_varint};
use super::{DecodeError, EncodeError, Expect, MAX_WIDTH, Origin, PairTag};

use atom::Atom;
use uniform::Uniform;

/// First byte: the mark of frames, and a version that there is none of.
const FIRST: u8 = 0xaf;
/// Bytes of the checksum.
const CHECKSUM: usize = 4;

/// One of the codings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// Four bits, one scale a row.
    Int4,
    /// Channels smoothed by calibration, then one scale a row, in so many bits.
    Smooth(u8),
    /// Outlier channels in 8 bits, the others in groups of 4 bits.
    Atom,
    /// Shift, scale and clipping learned, in so many bits.
    Omni(u8),
    /// f16 and zstd.
    ZstdF16,
}

impl Baseline {
    /// All that are compared.
    pub const ALL: [Self; 8] = [
        Self::ZstdF16,
        Self::Int4,
        Self::Smooth(8),
        Self::Smooth(4),
        Self::Atom,
        Self::Omni(6),
        Self::Omni(4),
        Self::Omni(3),
    ];

    /// Whether it must see rows first.
    pub fn needs_calibration(self) -> bool {
        matches!(self, Self::Smooth(_) | Self::Atom | Self::Omni(_))
    }

    fn id(self) -> u8 {
        match self {
            Self::Int4 => 0,
            Self::Smooth(_) => 1,
            Self::Atom => 2,
            Self::Omni(_) => 3,
            Self::ZstdF16 => 4,
        }
    }

    /// Learns from `rows` of `width` what this coding wants to know.
    ///
    /// # Errors
    /// When the width is none, the rows are not whole or not finite, or none are given where some
    /// are needed.
    pub fn fit(self, rows: &[f32], width: usize) -> Result<Fitted, EncodeError> {
        check(rows, width)?;
        if self.needs_calibration() && rows.is_empty() {
            return Err(EncodeError::NotCalibrated);
        }
        let coder = match self {
            Self::Int4 => Coder::Uniform(Uniform::plain(4, width)),
            Self::Smooth(bits) => Coder::Uniform(Uniform::smooth(bits, rows, width)),
            Self::Omni(bits) => Coder::Uniform(Uniform::learn(bits, rows, width)),
            Self::Atom => Coder::Atom(Atom::fit(rows, width)),
            Self::ZstdF16 => Coder::ZstdF16,
        };
        Ok(Fitted {
            baseline: self,
            width,
            coder,
        })
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int4 => f.write_str("int4"),
            Self::Smooth(bits) => write!(f, "smoothquant:bits={bits}"),
            Self::Atom => f.write_str("atom"),
            Self::Omni(bits) => write!(f, "omniquant:bits={bits}"),
            Self::ZstdF16 => f.write_str("zstd-f16"),
        }
    }
}

impl FromStr for Baseline {
    type Err = ();

    /// The names of [`Baseline::ALL`], and other bits from 2 to 8.
    fn from_str(s: &str) -> Result<Self, ()> {
        let (name, bits) = s
            .split_once(":bits=")
            .map_or((s, None), |(n, b)| (n, Some(b)));
        let bits = match bits {
            None => None,
            Some(b) => Some(b.parse().ok().filter(|b| (2..=8).contains(b)).ok_or(())?),
        };
        match (name, bits) {
            ("int4", None) => Ok(Self::Int4),
            ("smoothquant", Some(bits)) => Ok(Self::Smooth(bits)),
            ("atom", None) => Ok(Self::Atom),
            ("omniquant", Some(bits)) => Ok(Self::Omni(bits)),
            ("zstd-f16", None) => Ok(Self::ZstdF16),
            _ => Err(()),
        }
    }
}

/// How rows are written and read, once what is to be learned is learned.
#[derive(Clone, Debug)]
enum Coder {
    Uniform(Uniform),
    Atom(Atom),
    ZstdF16,
}

/// A coding with what it has learned.
#[derive(Clone, Debug)]
pub struct Fitted {
    baseline: Baseline,
    width: usize,
    coder: Coder,
}

/// Whole, finite rows.
fn check(rows: &[f32], width: usize) -> Result<(), EncodeError> {
    if width == 0 || width > MAX_WIDTH {
        return Err(EncodeError::Width { width });
    }
    if !rows.len().is_multiple_of(width) {
        let len = rows.len();
        return Err(EncodeError::NotWholeRows { len, width });
    }
    super::check_finite(rows, width)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

impl Fitted {
    /// Writes rows as one frame. `out` is replaced.
    ///
    /// # Errors
    /// When the rows are not whole ones of the fitted width, or not finite.
    pub fn encode(
        &self,
        origin: &Origin,
        rows: &[f32],
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        out.clear();
        check(rows, self.width)?;
        let n = (rows.len() / self.width) as u32;
        out.extend_from_slice(&[FIRST, self.baseline.id()]);
        out.extend_from_slice(&origin.pair_tag.0);
        put_varint(out, origin.first_position);
        put_varint(out, n);
        put_varint(out, self.width as u32);
        match &self.coder {
            Coder::Uniform(u) => rows.chunks_exact(self.width).for_each(|r| u.write(r, out)),
            Coder::Atom(a) => rows.chunks_exact(self.width).for_each(|r| a.write(r, out)),
            Coder::ZstdF16 => general::write(rows, out)?,
        }
        let sum = checksum(out);
        out.extend_from_slice(&sum);
        Ok(())
    }

    /// Reads such a frame; `rows` is replaced.
    ///
    /// # Errors
    /// When the bytes are no frame of this coding, these rows or this pair.
    pub fn decode(
        &self,
        bytes: &[u8],
        expect: &Expect,
        rows: &mut Vec<f32>,
    ) -> Result<(), DecodeError> {
        rows.clear();
        let what = "header";
        let (body, stored) = bytes
            .split_last_chunk::<CHECKSUM>()
            .ok_or(DecodeError::Truncated { what })?;
        let computed = checksum(body);
        if computed != *stored {
            return Err(DecodeError::Checksum {
                stored: u32::from_le_bytes(*stored),
                computed: u32::from_le_bytes(computed),
            });
        }
        let mut r = Reader::new(body);
        let [first, id] = r.array(what)?;
        if first != FIRST {
            return Err(DecodeError::NotAFrame { first });
        }
        if id != self.baseline.id() {
            return Err(DecodeError::Coding { id });
        }
        let theirs = PairTag(r.array(what)?);
        if theirs != expect.pair_tag {
            let ours = expect.pair_tag;
            return Err(DecodeError::OtherPair { ours, theirs });
        }
        let _position = r.varint("first position")?;
        let n = r.varint("number of rows")?;
        let width = r.varint("width")?;
        if width as usize != self.width {
            return Err(DecodeError::Width {
                ours: self.width,
                theirs: width,
            });
        }
        if n as usize > expect.max_rows {
            return Err(DecodeError::TooManyRows {
                rows: n,
                max: expect.max_rows,
            });
        }
        let width = self.width;
        rows.resize(n as usize * width, 0.0);
        let mut each = rows.chunks_exact_mut(width);
        match &self.coder {
            Coder::Uniform(u) => each.try_for_each(|row| u.read(&mut r, row))?,
            Coder::Atom(a) => each.try_for_each(|row| a.read(&mut r, row))?,
            Coder::ZstdF16 => return general::read(r.rest(), rows),
        }
        r.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: PairTag = PairTag(*b"pair");

    fn rows(n: usize, width: usize) -> Vec<f32> {
        let mut x = 7u32;
        (0..n * width)
            .map(|i| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let noise = (x >> 8) as f32 / (1 << 23) as f32 - 1.0;
                // One channel in forty is thirty times as wide.
                noise * if i % width % 40 == 3 { 30.0 } else { 1.0 }
            })
            .collect()
    }

    fn travel(b: Baseline, rows: &[f32], width: usize) -> (usize, Vec<f32>) {
        let fitted = b.fit(&self::rows(64, width), width).unwrap();
        let origin = Origin {
            pair_tag: TAG,
            first_position: 5,
            width,
        };
        let expect = Expect {
            pair_tag: TAG,
            width,
            max_rows: 64,
        };
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        fitted.encode(&origin, rows, &mut bytes).unwrap();
        fitted.decode(&bytes, &expect, &mut back).unwrap();
        for at in 0..bytes.len() {
            assert!(
                fitted
                    .decode(&bytes[..at], &expect, &mut Vec::new())
                    .is_err()
            );
        }
        (bytes.len(), back)
    }

    fn error(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let square: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        (square / a.len() as f32).sqrt()
    }

    #[test]
    fn each_comes_back_near_and_costs_what_it_says() {
        let (n, width) = (3, 320);
        let rows = rows(n, width);
        // Root mean square 0.58 in all but the wide channels.
        for (baseline, bytes, most) in [
            (Baseline::Int4, 172, 1.3),
            (Baseline::Smooth(8), 332, 0.08),
            (Baseline::Smooth(4), 172, 1.0),
            (Baseline::Atom, 181, 0.12),
            (Baseline::Omni(6), 256, 0.12),
            (Baseline::Omni(4), 176, 0.45),
            (Baseline::Omni(3), 136, 0.9),
            (Baseline::ZstdF16, 645, 0.01),
        ] {
            let (len, back) = travel(baseline, &rows, width);
            let e = error(&rows, &back);
            assert!(e <= most, "{baseline}: error {e}");
            assert!(len <= n * bytes + 20, "{baseline}: {len} bytes");
        }
    }

    #[test]
    fn learned_clipping_beats_none() {
        let (width, four) = (320, Baseline::Omni(4));
        let rows = rows(8, width);
        let learned = error(&rows, &travel(four, &rows, width).1);
        let plain = error(&rows, &travel(Baseline::Int4, &rows, width).1);
        assert!(learned < 0.5 * plain, "{learned} {plain}");
    }

    #[test]
    fn odd_rows_come_back() {
        for b in Baseline::ALL {
            for width in [1, 2, 130] {
                let zeros = vec![0.0; 2 * width];
                let (_, back) = travel(b, &zeros, width);
                assert!(error(&zeros, &back) < 0.5, "{b}, {width}");
                let mut wild = zeros.clone();
                wild[width - 1] = 3e38;
                wild[width] = -22_000.0;
                let (_, back) = travel(b, &wild, width);
                assert!(back.iter().all(|x| x.is_finite()), "{b}, {width}");
            }
            let bad = [0.0, f32::NAN, 1.0];
            let text = b.fit(&rows(4, 3), 3).unwrap();
            let origin = Origin {
                pair_tag: TAG,
                first_position: 0,
                width: 3,
            };
            let e = text.encode(&origin, &bad, &mut Vec::new()).unwrap_err();
            assert!(e.to_string().contains("channel 1"), "{e}");
            assert_eq!(b.to_string().parse(), Ok(b));
        }
        for bad in ["omniquant", "omniquant:bits=9", "int5", "atom:bits=4"] {
            assert_eq!(bad.parse::<Baseline>(), Err(()));
        }
        assert!(Baseline::Atom.fit(&[], 4).is_err());
    }
}
