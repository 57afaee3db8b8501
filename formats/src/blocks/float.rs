//! F32, F16 and BF16: little-endian floats, blocks of one weight.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Weights converted per call of the vectorised half-float conversion.
const STRIP: usize = 64;

pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (v, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *v = f32::from_le_bytes(*b);
    }
}

pub(super) fn encode_f32(row: &[f32], out: &mut [u8]) {
    for (b, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(row) {
        *b = v.to_le_bytes();
    }
}

pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    // Through an aligned strip, so that the conversion may use the processor's instruction.
    let mut strip = [f16::ZERO; STRIP];
    for (values, bytes) in out.chunks_mut(STRIP).zip(bytes.chunks(2 * STRIP)) {
        for (h, b) in strip.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *h = f16::from_le_bytes(*b);
        }
        strip[..values.len()].convert_to_f32_slice(values);
    }
}

pub(super) fn encode_f16(row: &[f32], out: &mut [u8]) {
    let mut strip = [f16::ZERO; STRIP];
    for (values, bytes) in row.chunks(STRIP).zip(out.chunks_mut(2 * STRIP)) {
        strip[..values.len()].convert_from_f32_slice(values);
        for ((b, h), v) in bytes
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(strip)
            .zip(values)
        {
            // A large weight is off by a little when it saturates, and ruins a row as infinity.
            let h = if h.is_infinite() && v.is_finite() {
                f16::MAX.copysign(h)
            } else {
                h
            };
            *b = h.to_le_bytes();
        }
    }
}

pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (v, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *v = bf16::from_le_bytes(*b).to_f32();
    }
}

pub(super) fn encode_bf16(row: &[f32], out: &mut [u8]) {
    for (b, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(row) {
        let h = bf16::from_f32(*v);
        let h = if h.is_infinite() && v.is_finite() {
            bf16::MAX.copysign(h)
        } else {
            h
        };
        *b = h.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_saturate_finite_values_and_keep_the_others() {
        let row = [1e30, -1e30, f32::INFINITY, f32::NAN, 1.0];
        let mut bytes = [0; 10];
        let mut back = [0.0; 5];
        encode_f16(&row, &mut bytes);
        decode_f16(&bytes, &mut back);
        assert_eq!(back[..3], [65504.0, -65504.0, f32::INFINITY]);
        assert!(back[3].is_nan());
        encode_bf16(&[f32::MAX, f32::NEG_INFINITY], &mut bytes[..4]);
        decode_bf16(&bytes[..4], &mut back[..2]);
        assert_eq!(back[..2], [bf16::MAX.to_f32(), f32::NEG_INFINITY]);
    }
}
