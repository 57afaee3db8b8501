// TQ1_0. Planes: 48 bytes of five digits each, 4 of four digits, a half.
//#include blocks/half.wgsl
//#include blocks/bytes.wgsl

/// The digit before the ternary point of the four fractions `w`, after `power` has moved it there.
fn unpack_digits(w: u32, power: vec4<u32>) -> u32 {
    let fraction = ((vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) * power) & vec4<u32>(255u);
    let digit = (fraction * 3u) >> vec4<u32>(8u);
    return digit.x | (digit.y << 8u) | (digit.z << 16u) | (digit.w << 24u);
}

fn unpack_sixteen(w: vec4<u32>, power: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(
        unpack_digits(w.x, vec4<u32>(power.x)),
        unpack_digits(w.y, vec4<u32>(power.y)),
        unpack_digits(w.z, vec4<u32>(power.z)),
        unpack_digits(w.w, vec4<u32>(power.w)),
    );
}

/// 3 to the power of `n`, for `n` up to 4.
fn unpack_power(n: u32) -> u32 {
    return select(1u, 3u, (n & 1u) != 0u) * select(1u, 9u, (n & 2u) != 0u) * select(1u, 81u, (n & 4u) != 0u);
}

fn unpack32(run: u32) -> array<vec4<f32>, 8> {
    let block = run >> 3u;
    let g = run & 7u;
    let i = (matrix.plane.x >> 2u) + block * 3u;
    let d = unpack_half_at(matrix.plane.z, block);
    // Sub-blocks 0 to 4 are one digit of the first 32 bytes; 5 to 7 are two digits of the next
    // 16, of which the last has none left and takes those of the four bytes of its own.
    let wide = g < 5u;
    let last = g == 7u;
    let n = select((g - 5u) << 1u, g, wide);
    let a = weights[i + select(2u, 0u, wide)];
    let b = select(weights[i + select(2u, 1u, wide)], vec4<u32>(word(matrix.plane.y + block)), last);
    let powers = vec4<u32>(unpack_power(select(n + 1u, n, wide)));
    return unpack_affine(
        unpack_sixteen(a, vec4<u32>(unpack_power(n))),
        unpack_sixteen(b, select(powers, vec4<u32>(1u, 3u, 9u, 27u), last)),
        vec2<f32>(d),
        vec2<f32>(-d),
    );
}
