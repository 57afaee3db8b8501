//! The plain codings of a row: f32, f16, and int8 with one scale a row.

use half::f16;

use super::DecodeError;
use super::cursor::Reader;
use super::ts::{HUGE, Sparse};

/// Magnitudes from here on round to infinity in f16.
const F16_OVERFLOW: f32 = 65_520.0;
/// Largest code of int8; -128 is never written.
const INT8_MAX: f32 = 127.0;

/// Appends every bit of `rows`.
pub(super) fn write_f32(rows: &[f32], out: &mut Vec<u8>) {
    out.reserve(4 * rows.len());
    for x in rows {
        out.extend_from_slice(&x.to_bits().to_le_bytes());
    }
}

/// Fills `rows`.
pub(super) fn read_f32(r: &mut Reader<'_>, rows: &mut [f32]) -> Result<(), DecodeError> {
    let (bytes, _) = r.take(4 * rows.len(), "f32 values")?.as_chunks::<4>();
    for (x, b) in rows.iter_mut().zip(bytes) {
        *x = f32::from_le_bytes(*b);
    }
    Ok(())
}

/// Appends `rows` in f16. What f16 cannot hold (65 520 and more in magnitude, infinities, NaN) is
/// split off and travels exactly.
pub(super) fn write_f16(
    rows: &[f32],
    width: usize,
    sparse: &mut Sparse,
    dense: &mut Vec<f32>,
    out: &mut Vec<u8>,
) {
    for row in rows.chunks_exact(width) {
        sparse.split(row, F16_OVERFLOW, dense);
    }
    sparse.write(out);
    out.reserve(2 * dense.len());
    for &x in dense.iter() {
        out.extend_from_slice(&f16::from_f32(x).to_le_bytes());
    }
}

/// Fills `rows`.
pub(super) fn read_f16(
    r: &mut Reader<'_>,
    width: usize,
    sparse: &Sparse,
    rows: &mut [f32],
) -> Result<(), DecodeError> {
    let what = "f16 values";
    for (row, range) in rows.chunks_exact_mut(width).zip(sparse.ranges()) {
        let bytes = r.take(2 * (width - range.len()), what)?;
        let (values, _) = bytes.as_chunks::<2>();
        sparse.merge(range, row, |skip, slot| {
            for (x, b) in slot.iter_mut().zip(&values[skip..]) {
                *x = f16::from_le_bytes(*b).to_f32();
                if !x.is_finite() {
                    return Err(DecodeError::Malformed { what });
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Appends for each row a scale and one signed byte a value. Only NaN, infinities and magnitudes
/// of 2^120 and more are split off: a spike takes the scale of its whole row.
pub(super) fn write_int8(
    rows: &[f32],
    width: usize,
    sparse: &mut Sparse,
    dense: &mut Vec<f32>,
    out: &mut Vec<u8>,
) {
    for row in rows.chunks_exact(width) {
        sparse.split(row, HUGE, dense);
    }
    sparse.write(out);
    let mut rest = &dense[..];
    for range in sparse.ranges() {
        let (row, tail) = rest.split_at(width - range.len());
        rest = tail;
        let top = row.iter().fold(0f32, |top, x| top.max(x.abs()));
        let scale = top / INT8_MAX;
        out.extend_from_slice(&scale.to_le_bytes());
        // Below the smallest number there is, `scale` is zero and so is every code.
        let scale = if scale > 0.0 { scale } else { f32::INFINITY };
        out.extend(row.iter().map(|x| {
            let code = (x / scale).round_ties_even().clamp(-INT8_MAX, INT8_MAX);
            (code as i8).cast_unsigned()
        }));
    }
}

/// Fills `rows`.
pub(super) fn read_int8(
    r: &mut Reader<'_>,
    width: usize,
    sparse: &Sparse,
    rows: &mut [f32],
) -> Result<(), DecodeError> {
    for (row, range) in rows.chunks_exact_mut(width).zip(sparse.ranges()) {
        let scale = f32::from_le_bytes(r.array("int8 scale")?);
        if !(scale >= 0.0 && (scale * INT8_MAX).is_finite()) {
            return Err(DecodeError::Malformed { what: "int8 scale" });
        }
        let codes = r.take(width - range.len(), "int8 codes")?;
        sparse.merge(range, row, |skip, slot| {
            for (x, &code) in slot.iter_mut().zip(&codes[skip..]) {
                let code = code.cast_signed();
                if code == i8::MIN {
                    return Err(DecodeError::Malformed { what: "int8 codes" });
                }
                *x = f32::from(code) * scale;
            }
            Ok(())
        })?;
    }
    Ok(())
}
