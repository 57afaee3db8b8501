// Half floats stored as bits.

/// The half in the low 16 bits of `h`. Halves below 2^-14 are common as scales of small weights,
/// and `unpack2x16float` may flush them: those are made from their integer.
fn unpack_half(h: u32) -> f32 {
    let size = h & 0x7fffu;
    let tiny = f32(size) * select(0x1p-24, -0x1p-24, (h & 0x8000u) != 0u);
    return select(unpack2x16float(h).x, tiny, size < 0x400u);
}

/// Both halves of a word, the low one first.
fn unpack_halves(w: u32) -> vec2<f32> {
    return vec2<f32>(unpack_half(w), unpack_half(w >> 16u));
}

/// Half `i` of the plane whose first word is `plane`.
fn unpack_half_at(plane: u32, i: u32) -> f32 {
    return unpack_half(word(plane + (i >> 1u)) >> ((i & 1u) << 4u));
}
