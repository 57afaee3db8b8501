//! Half floats through zstd, low bytes before high ones where that is shorter.

use half::f16;

use super::super::{DecodeError, EncodeError};

/// Slow and small.
const LEVEL: i32 = 19;

pub(super) fn write(rows: &[f32], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let most = f16::MAX.to_f32();
    let halves = rows.iter().map(|x| f16::from_f32(x.clamp(-most, most)));
    let plain: Vec<u8> = halves.flat_map(f16::to_le_bytes).collect();
    let planes = || {
        plain
            .iter()
            .step_by(2)
            .chain(plain.iter().skip(1).step_by(2))
    };
    let planes: Vec<u8> = planes().copied().collect();
    let pack = |bytes: &[u8]| {
        zstd::bulk::compress(bytes, LEVEL).map_err(|e| EncodeError::Zstd {
            cause: e.to_string(),
        })
    };
    let (a, b) = (pack(&plain)?, pack(&planes)?);
    let (flag, shorter) = if b.len() < a.len() { (1, b) } else { (0, a) };
    out.push(flag);
    out.extend_from_slice(&shorter);
    Ok(())
}

pub(super) fn read(bytes: &[u8], rows: &mut [f32]) -> Result<(), DecodeError> {
    let what = "compressed payload";
    let (&flag, bytes) = bytes.split_first().ok_or(DecodeError::Truncated { what })?;
    let fail = |e: std::io::Error| DecodeError::Zstd {
        cause: e.to_string(),
    };
    let plain = zstd::bulk::decompress(bytes, 2 * rows.len()).map_err(fail)?;
    if plain.len() != 2 * rows.len() || flag > 1 {
        return Err(DecodeError::Malformed { what });
    }
    let n = rows.len();
    for (i, x) in rows.iter_mut().enumerate() {
        let (low, high) = if flag == 1 {
            (i, n + i)
        } else {
            (2 * i, 2 * i + 1)
        };
        *x = f16::from_le_bytes([plain[low], plain[high]]).to_f32();
    }
    Ok(())
}
