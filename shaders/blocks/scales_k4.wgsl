// Scales and minima of Q4_K and Q5_K.
//#include blocks/half.wgsl

/// Step and offset of sub-block `g`, from the first 16 bytes of a block: two halves, then twelve
/// bytes of scales and minima. Sub-blocks 0 to 3 keep six bits in place; 4 to 7 keep four bits in
/// the last word and their upper two in the top of the other words.
fn unpack_scale_min(head: vec4<u32>, g: u32) -> vec2<f32> {
    let words = head.yzw >> vec3<u32>((g & 3u) << 3u);
    let early = words.xy & vec2<u32>(63u);
    let late = (vec2<u32>(words.z, words.z >> 4u) & vec2<u32>(15u)) | ((words.xy >> vec2<u32>(2u)) & vec2<u32>(48u));
    let factors = unpack_halves(head.x);
    return vec2<f32>(factors.x, -factors.y) * vec2<f32>(select(late, early, g < 4u));
}
