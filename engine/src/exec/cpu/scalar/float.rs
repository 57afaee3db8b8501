//! Plain floats.

use half::{bf16, f16};

pub(super) fn f32s(bytes: &[u8], q: &mut [f32]) {
    for (b, q) in bytes.as_chunks::<4>().0.iter().zip(q) {
        *q = f32::from_le_bytes(*b);
    }
}

pub(super) fn f16s(bytes: &[u8], q: &mut [f32]) {
    for (b, q) in bytes.as_chunks::<2>().0.iter().zip(q) {
        *q = f16::from_le_bytes(*b).to_f32();
    }
}

pub(super) fn bf16s(bytes: &[u8], q: &mut [f32]) {
    for (b, q) in bytes.as_chunks::<2>().0.iter().zip(q) {
        *q = bf16::from_le_bytes(*b).to_f32();
    }
}
