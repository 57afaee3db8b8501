//! Putting a frame together and taking it apart: header, payload, checksum.

use std::fmt;
use std::sync::Arc;

use zstd::bulk::{Compressor, Decompressor};

use super::channels::Channels;
use super::codec::{Codec, TsTabQ};
use super::cursor::{Reader, put_varint};
use super::tab_q::Scale;
use super::ts::{self, Sparse};
use super::{DecodeError, EncodeError, bits, check_finite, dense, tcq, thin};

/// Newest version of the format that is written and read. The codings of version 1 are written as
/// version 1, which every reader knows.
pub const VERSION: u8 = thin::VERSION;
/// The version of the frames put together here.
const FIRST_VERSION: u8 = 1;
/// Widest row a frame may carry; far above any model's.
pub const MAX_WIDTH: usize = 1 << 20;
/// First byte: a mark in the upper half, the version in the lower.
pub(super) const MARK: u8 = 0xa0;
const FLAG_ZSTD: u8 = 0x10;
const FLAG_BYTE_CODES: u8 = 0x20;
pub(super) const CODEC: u8 = 0x0f;
const CHECKSUM_LEN: usize = 4;
/// Every zstd frame starts so; ours leave it out.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// zstd's own default: on a single row higher levels find nothing more.
const ZSTD_LEVEL: i32 = 3;
/// Bytes that a row of TS + TAB-Q takes at most beside its values: a count and a wide head.
const ROW_OVERHEAD: usize = 5 + 9;
/// Bytes that a value takes at most: a column and an exact value.
const VALUE_MAX: usize = 3 + 4;

/// The first four bytes of a pair id, enough for a half to refuse a stranger's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairTag(pub [u8; 4]);

impl fmt::Display for PairTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Where the rows of a frame come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The pair of the sending half.
    pub pair_tag: PairTag,
    /// Position of the first row in its sequence; the others follow without a gap.
    pub first_position: u32,
    /// Values in a row, 1 to [`MAX_WIDTH`].
    pub width: usize,
}

/// What a receiver accepts. Bounds everything that decoding allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The pair of the receiving half.
    pub pair_tag: PairTag,
    /// Values in a row.
    pub width: usize,
    /// Most rows in one frame.
    pub max_rows: usize,
}

/// The coding of a frame as its header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Coding {
    /// [`Codec::F32`].
    F32,
    /// [`Codec::F16`].
    F16,
    /// [`Codec::Int8`].
    Int8,
    /// [`Codec::TsTabQ`], also as the choice of [`Codec::Auto`].
    TsTabQ,
    /// [`Codec::Tcq`], also as the choice of [`Codec::Auto`].
    Tcq,
}

/// What a decoded frame said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the rows were coded.
    pub coding: Coding,
    /// Position of the first row in its sequence.
    pub first_position: u32,
    /// Rows in the frame.
    pub rows: usize,
    /// Values in a row.
    pub width: usize,
}

/// What encoding a frame came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameStats {
    /// Bytes of the frame, header and checksum included.
    pub bytes: usize,
    /// Rows in the frame.
    pub rows: usize,
    /// Values that travel exactly beside the dense part.
    pub outliers: usize,
    /// Bits of the codes of all rows before zstd; over `rows · width` the mean width.
    pub code_bits: usize,
    /// Whether zstd made the payload smaller.
    pub compressed: bool,
}

/// Buffers and zstd contexts that live from frame to frame, so that encoding and decoding
/// allocate nothing once warm, and what is known of the pair's rows. One a thread.
#[derive(Default)]
pub struct Scratch {
    pub(super) channels: Option<Arc<Channels>>,
    pub(super) tcq: tcq::Buffers,
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
    sparse: Sparse,
    sigmas: Vec<f64>,
    scales: Vec<Scale>,
    dense: Vec<f32>,
    codes: Vec<u8>,
    /// The payload, codes packed or plain; decoding: uncompressed.
    payload: Vec<u8>,
    /// The payload with one code a byte; decoding: as zstd wants it.
    spread: Vec<u8>,
    zstd: [Vec<u8>; 2],
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").finish_non_exhaustive()
    }
}

/// The first four bytes of the BLAKE3 hash.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let [a, b, c, d, ..] = *blake3::hash(bytes).as_bytes();
    [a, b, c, d]
}

/// Writes `rows` (`n × origin.width`, row after row; `n` may be 0) as one frame. `out` is
/// replaced.
///
/// # Errors
/// When the codec's options, the width or the positions are out of range, `rows` is not whole
/// rows, or a value is NaN or infinite. `out` is then empty.
pub fn encode(
    codec: &Codec,
    origin: &Origin,
    rows: &[f32],
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<FrameStats, EncodeError> {
    out.clear();
    codec.check()?;
    // Whoever knows the pair's calibration has resolved `auto` by it.
    let codec = codec.resolve(None);
    let width = origin.width;
    if width == 0 || width > MAX_WIDTH {
        return Err(EncodeError::Width { width });
    }
    if !rows.len().is_multiple_of(width) {
        let len = rows.len();
        return Err(EncodeError::NotWholeRows { len, width });
    }
    let first_position = origin.first_position;
    let n = rows.len() / width;
    let count = u32::try_from(n)
        .ok()
        .filter(|n| first_position.checked_add(*n).is_some())
        .ok_or(EncodeError::Position {
            first_position,
            rows: n,
        })?;
    check_finite(rows, width)?;

    if let Codec::Tcq(params) = codec {
        let done = thin::encode(params, origin, rows, scratch, out);
        if done.is_err() {
            out.clear();
        }
        return done;
    }
    scratch.sparse.clear();
    scratch.dense.clear();
    scratch.payload.clear();
    let Scratch {
        sparse,
        dense,
        payload,
        ..
    } = scratch;
    let mut flags = 0;
    let mut compressed = None;
    let (id, code_bits) = match codec {
        Codec::F32 => {
            dense::write_f32(rows, payload);
            (0, 32 * rows.len())
        }
        Codec::F16 => {
            dense::write_f16(rows, width, sparse, dense, payload);
            (1, 16 * dense.len())
        }
        Codec::Int8 => {
            dense::write_int8(rows, width, sparse, dense, payload);
            (2, 8 * dense.len())
        }
        // `resolve` leaves no `Auto`; were there one, its choice would be the right answer.
        Codec::Auto { .. } | Codec::TsTabQ(_) | Codec::Tcq(_) => {
            let params = match codec {
                Codec::TsTabQ(params) => params,
                _ => Codec::auto_default(),
            };
            let code_bits = scratch.write_ts_tab_q(params, rows, width);
            if n > 0 {
                (flags, compressed) = scratch.compress()?;
            }
            (3, code_bits)
        }
    };

    out.extend_from_slice(&[MARK | FIRST_VERSION, id | flags]);
    out.extend_from_slice(&origin.pair_tag.0);
    put_varint(out, first_position);
    put_varint(out, count);
    put_varint(out, width as u32);
    match compressed {
        Some(which) => out.extend_from_slice(&scratch.zstd[which][ZSTD_MAGIC.len()..]),
        None => out.extend_from_slice(&scratch.payload),
    }
    let sum = checksum(out);
    out.extend_from_slice(&sum);
    Ok(FrameStats {
        bytes: out.len(),
        rows: n,
        outliers: scratch.sparse.values.len(),
        code_bits,
        compressed: compressed.is_some(),
    })
}

impl Scratch {
    /// Buffers for a pair whose rows were calibrated: what [`Codec::Tcq`] needs on both ends.
    pub fn calibrated(channels: Option<Arc<Channels>>) -> Self {
        Self {
            channels,
            ..Self::default()
        }
    }

    /// Bytes held, but for zstd's own.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        let vecs = [&self.codes, &self.payload, &self.spread];
        let bytes = vecs.into_iter().chain(&self.zstd).map(Vec::capacity);
        bytes.sum::<usize>()
            + 4 * (self.dense.capacity() + self.sparse.values.capacity())
            + 4 * (self.sparse.columns.capacity() + self.sparse.counts.capacity())
            + 8 * self.sigmas.capacity()
            + size_of::<Scale>() * self.scales.capacity()
    }

    /// Leaves the payload with packed codes in `payload`, the one with a byte a code in `spread`
    /// (empty where it is the same). Answers the bits of all codes.
    fn write_ts_tab_q(&mut self, params: TsTabQ, rows: &[f32], width: usize) -> usize {
        let Self {
            sparse,
            sigmas,
            scales,
            dense,
            codes,
            payload,
            spread,
            ..
        } = self;
        sigmas.clear();
        scales.clear();
        codes.clear();
        spread.clear();
        for row in rows.chunks_exact(width) {
            let sigma = ts::trimmed_sigma(row);
            sparse.split(row, ts::limit(params.tau, sigma), dense);
            sigmas.push(sigma);
        }
        sparse.write(payload);

        let mut rest = &dense[..];
        for (range, &sigma) in sparse.ranges().zip(&*sigmas) {
            let (row, tail) = rest.split_at(width - range.len());
            rest = tail;
            // A row of nothing but outliers has no head.
            if !row.is_empty() {
                let scale = Scale::choose(row, sigma, params.bits, params.delta);
                scale.write(payload);
                scale.encode(row, codes);
                scales.push(scale);
            }
        }
        spread.extend_from_slice(payload);
        spread.extend_from_slice(codes);

        let mut code_bits = 0;
        let mut rest = &codes[..];
        let heads = sparse.ranges().map(|r| width - r.len()).filter(|&n| n != 0);
        for (n, scale) in heads.zip(&*scales) {
            if scale.bits == 0 {
                continue;
            }
            let (row, tail) = rest.split_at(n);
            rest = tail;
            bits::pack(row, scale.bits, payload);
            code_bits += n * usize::from(scale.bits);
        }
        if spread == payload {
            spread.clear();
        }
        code_bits
    }

    /// Compresses both forms of the payload and picks the smallest of all: the flags, and which
    /// of `self.zstd` it is, `None` for `payload` as it is.
    fn compress(&mut self) -> Result<(u8, Option<usize>), EncodeError> {
        let fail = |e: std::io::Error| EncodeError::Zstd {
            cause: e.to_string(),
        };
        let compressor = match &mut self.compressor {
            Some(c) => c,
            none => none.insert(Compressor::new(ZSTD_LEVEL).map_err(fail)?),
        };
        let mut best = (self.payload.len(), 0, None);
        let forms = [
            (&self.payload, FLAG_ZSTD),
            (&self.spread, FLAG_ZSTD | FLAG_BYTE_CODES),
        ];
        for (which, ((form, flags), to)) in forms.into_iter().zip(&mut self.zstd).enumerate() {
            if form.is_empty() {
                continue;
            }
            to.clear();
            to.reserve(zstd::zstd_safe::compress_bound(form.len()));
            compressor.compress_to_buffer(form, to).map_err(fail)?;
            let len = to.len() - ZSTD_MAGIC.len();
            if to.starts_with(&ZSTD_MAGIC) && len < best.0 {
                best = (len, flags, Some(which));
            }
        }
        Ok((best.1, best.2))
    }

    /// Decompresses `bytes` into `payload`, which never grows over `most`.
    fn decompress(&mut self, bytes: &[u8], most: usize) -> Result<(), DecodeError> {
        let malformed = DecodeError::Malformed {
            what: "compressed payload",
        };
        self.spread.clear();
        self.spread.extend_from_slice(&ZSTD_MAGIC);
        self.spread.extend_from_slice(bytes);
        // One frame that says how much it holds, nothing behind it.
        if !zstd::zstd_safe::find_frame_compressed_size(&self.spread)
            .is_ok_and(|len| len == self.spread.len())
        {
            return Err(malformed);
        }
        let Ok(Some(claimed)) = zstd::zstd_safe::get_frame_content_size(&self.spread) else {
            return Err(malformed);
        };
        let len = usize::try_from(claimed)
            .ok()
            .filter(|len| *len <= most)
            .ok_or(DecodeError::TooLarge { claimed, most })?;
        let fail = |e: std::io::Error| DecodeError::Zstd {
            cause: e.to_string(),
        };
        let decompressor = match &mut self.decompressor {
            Some(d) => d,
            none => none.insert(Decompressor::new().map_err(fail)?),
        };
        self.payload.clear();
        self.payload.resize(len, 0);
        let got = decompressor
            .decompress_to_buffer(&self.spread, &mut self.payload[..])
            .map_err(fail)?;
        if got == len { Ok(()) } else { Err(malformed) }
    }

    /// Reads rows coded with TS + TAB-Q behind their sparse section.
    fn read_ts_tab_q(
        &mut self,
        r: &mut Reader<'_>,
        spread: bool,
        width: usize,
        rows: &mut [f32],
    ) -> Result<(), DecodeError> {
        let what = "codes";
        self.scales.clear();
        for range in self.sparse.ranges() {
            // A row of nothing but outliers has no head; this one is never looked at.
            self.scales.push(if range.len() == width {
                Scale {
                    bits: 0,
                    min: 0.0,
                    step: 0.0,
                }
            } else {
                Scale::read(r)?
            });
        }
        let each = self.sparse.ranges().zip(&self.scales);
        for (row, (range, &scale)) in rows.chunks_exact_mut(width).zip(each) {
            let n = width - range.len();
            self.codes.clear();
            if spread && scale.bits != 0 {
                self.codes.extend_from_slice(r.take(n, what)?);
                if self.codes.iter().any(|c| u32::from(*c) >> scale.bits != 0) {
                    return Err(DecodeError::Malformed { what });
                }
            } else {
                let packed = r.take(bits::packed_len(n, scale.bits), what)?;
                if !bits::unpack(packed, n, scale.bits, &mut self.codes) {
                    return Err(DecodeError::Malformed { what });
                }
            }
            self.sparse.merge(range, row, |skip, slot| {
                for (x, &code) in slot.iter_mut().zip(&self.codes[skip..]) {
                    *x = scale.value(code);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Reads one frame. `rows` is replaced by its values (`header.rows × width`, row after row).
///
/// Checks of a frame of version 1, in this order: mark and version, checksum, pair, coding and flags, positions, rows,
/// width, payload; every byte must be accounted for. Allocates at most what `expect` implies:
/// about 20 bytes for each value of a full frame, whatever the bytes claim.
///
/// # Errors
/// The first check that fails. `rows` is then empty.
pub fn decode(
    bytes: &[u8],
    expect: &Expect,
    scratch: &mut Scratch,
    rows: &mut Vec<f32>,
) -> Result<FrameHeader, DecodeError> {
    rows.clear();
    let result = decode_into(bytes, expect, scratch, rows);
    if result.is_err() {
        rows.clear();
    }
    result
}

/// [`super::rows_at_a_glance`] of a frame put together here.
pub(super) fn rows_at_a_glance(frame: &[u8]) -> Option<u32> {
    let mut r = Reader::new(frame);
    let [mark, _] = r.array("header").ok()?;
    let _: [u8; 4] = r.array("pair").ok()?;
    r.varint("first position").ok()?;
    let rows = r.varint("number of rows").ok()?;
    (mark == MARK | FIRST_VERSION).then_some(rows)
}

fn decode_into(
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
    if width == 0 || width > MAX_WIDTH || max_rows.checked_mul(width * 64).is_none() {
        return Err(DecodeError::Expect { width, max_rows });
    }
    let what = "header";
    let first = *bytes.first().ok_or(DecodeError::Truncated { what })?;
    if first & 0xf0 != MARK {
        return Err(DecodeError::NotAFrame { first });
    }
    if first == MARK | VERSION {
        return thin::decode(bytes, expect, scratch, rows);
    }
    if first != MARK | FIRST_VERSION {
        let theirs = first & 0x0f;
        return Err(DecodeError::Version { theirs });
    }
    let (body, stored) = bytes
        .split_last_chunk::<CHECKSUM_LEN>()
        .ok_or(DecodeError::Truncated { what })?;
    let computed = checksum(body);
    if computed != *stored {
        return Err(DecodeError::Checksum {
            stored: u32::from_le_bytes(*stored),
            computed: u32::from_le_bytes(computed),
        });
    }
    let mut r = Reader::new(body);
    let [_, coding] = r.array(what)?;
    let theirs = PairTag(r.array(what)?);
    if theirs != pair_tag {
        let ours = pair_tag;
        return Err(DecodeError::OtherPair { ours, theirs });
    }
    let flags = coding & !CODEC;
    let coding = match coding & CODEC {
        0 => Coding::F32,
        1 => Coding::F16,
        2 => Coding::Int8,
        3 => Coding::TsTabQ,
        id => return Err(DecodeError::Coding { id }),
    };
    if flags != 0
        && (coding != Coding::TsTabQ
            || (flags != FLAG_ZSTD && flags != FLAG_ZSTD | FLAG_BYTE_CODES))
    {
        return Err(DecodeError::Flags { flags });
    }
    let first_position = r.varint("first position")?;
    let n = r.varint("number of rows")?;
    let their_width = r.varint("width")?;
    if their_width as usize != width {
        return Err(DecodeError::Width {
            ours: width,
            theirs: their_width,
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
    let n = n as usize;

    // The payload leaves the scratch while it is read, and comes back for its allocation.
    let mut payload = Vec::new();
    let mut r = if flags & FLAG_ZSTD == 0 {
        r
    } else {
        scratch.decompress(r.rest(), n * (ROW_OVERHEAD + VALUE_MAX * width))?;
        payload = std::mem::take(&mut scratch.payload);
        Reader::new(&payload)
    };
    let result =
        read_payload(&mut r, coding, flags, (n, width), scratch, rows).and_then(|()| r.finish());
    if payload.capacity() != 0 {
        scratch.payload = payload;
    }
    result.map(|()| FrameHeader {
        coding,
        first_position,
        rows: n,
        width,
    })
}

fn read_payload(
    r: &mut Reader<'_>,
    coding: Coding,
    flags: u8,
    (n, width): (usize, usize),
    scratch: &mut Scratch,
    rows: &mut Vec<f32>,
) -> Result<(), DecodeError> {
    // Before anything grows: each row takes at least one byte (four without a sparse section).
    if r.left() < n {
        return Err(DecodeError::Truncated { what: "payload" });
    }
    if coding != Coding::F32 {
        scratch.sparse.read(r, n, width)?;
    }
    rows.resize(n * width, 0.0);
    match coding {
        Coding::F32 => dense::read_f32(r, rows),
        Coding::F16 => dense::read_f16(r, width, &scratch.sparse, rows),
        Coding::Int8 => dense::read_int8(r, width, &scratch.sparse, rows),
        Coding::TsTabQ | Coding::Tcq => {
            scratch.read_ts_tab_q(r, flags & FLAG_BYTE_CODES != 0, width, rows)
        }
    }
}
