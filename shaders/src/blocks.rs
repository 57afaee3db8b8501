//! The GGML block types on the GPU: for each the WGSL that decodes a run of 32 weights, and how
//! its blocks are cut into planes so that every load is aligned.
//!
//! A *plane* is one byte range of every block of a matrix, block after block and nothing between
//! them; [`crate::repack`] makes planes from GGML's rows. A *run* is 32 weights of a row.

/// Most planes of a block type, the table counted.
pub const MAX_PLANES: usize = 4;

/// A plane: bytes `start..end` of each block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// First byte in the block.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

impl Plane {
    /// Bytes of each block in this plane.
    pub const fn bytes(self) -> usize {
        self.end - self.start
    }
}

/// A codebook, which the caller appends to the matrix as its last plane: the entries one after the other,
/// each magnitude a byte (two's complement), so that a cast of the grid to bytes is the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// 2048 entries of 8, for `IQ1_S` and `IQ1_M`.
    Iq1,
    /// 256 entries of 8.
    Iq2Xxs,
    /// 512 entries of 8.
    Iq2Xs,
    /// 1024 entries of 8.
    Iq2S,
    /// 256 entries of 4.
    Iq3Xxs,
    /// 512 entries of 4.
    Iq3S,
}

impl Table {
    /// Words of the table.
    pub const fn words(self) -> usize {
        match self {
            Self::Iq1 => 4096,
            Self::Iq2S => 2048,
            Self::Iq2Xs => 1024,
            Self::Iq2Xxs | Self::Iq3S => 512,
            Self::Iq3Xxs => 256,
        }
    }
}

/// One block type.
///
/// The source defines `fn unpack32(run: u32) -> array<vec4<f32>, 8>`: weights `32·run` to
/// `32·run + 31` of the matrix (`run = row · matrix.runs + k / 32`), with the values that GGML's
/// scalar decoder gives, and helpers whose names begin with `unpack_`. Its lines `//#include blocks/PIECE.wgsl`
/// name [`PIECES`]. It expects the kernel to declare `weights: array<vec4<u32>>` with all planes,
/// `matrix` with the planes' first words in `matrix.plane`, and `fn word(i: u32) -> u32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShader {
    /// GGML's name, as `Q4_K`.
    pub name: &'static str,
    /// Weights of a block: 1, 32 or 256.
    pub block_len: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// The planes; every byte of a block is in exactly one.
    pub planes: &'static [Plane],
    /// The table that follows the planes, if the type has one.
    pub table: Option<Table>,
    /// The WGSL.
    pub source: &'static str,
}

impl BlockShader {
    /// Whether the source also defines `fn codes32(run: u32) -> Codes`: the same weights as signed
    /// bytes, with a step and an offset for each 16 (`blocks/codes.wgsl`).
    pub fn has_codes(&self) -> bool {
        self.source.contains("fn codes32(")
    }
}

/// A row of [`ALL`].
macro_rules! block {
    ($name:literal, $len:literal, $bytes:literal, [$($start:literal .. $end:literal),+], $table:expr, $file:literal) => {
        BlockShader {
            name: $name,
            block_len: $len,
            block_bytes: $bytes,
            planes: &[$(Plane { start: $start, end: $end }),+],
            table: $table,
            source: include_str!(concat!("../blocks/", $file, ".wgsl")),
        }
    };
}

/// All block types, in the order of their GGUF ids.
#[rustfmt::skip]
pub const ALL: &[BlockShader] = &[
    block!("F32", 1, 4, [0..4], None, "f32"),
    block!("F16", 1, 2, [0..2], None, "f16"),
    block!("Q4_0", 32, 18, [2..18, 0..2], None, "q4_0"),
    block!("Q4_1", 32, 20, [4..20, 0..4], None, "q4_1"),
    block!("Q5_0", 32, 22, [6..22, 2..6, 0..2], None, "q5_0"),
    block!("Q5_1", 32, 24, [8..24, 0..8], None, "q5_1"),
    block!("Q8_0", 32, 34, [2..34, 0..2], None, "q8_0"),
    block!("Q2_K", 256, 84, [16..80, 0..16, 80..84], None, "q2_k"),
    block!("Q3_K", 256, 110, [32..96, 0..32, 96..108, 108..110], None, "q3_k"),
    block!("Q4_K", 256, 144, [16..144, 0..16], None, "q4_k"),
    block!("Q5_K", 256, 176, [48..176, 16..48, 0..16], None, "q5_k"),
    block!("Q6_K", 256, 210, [0..128, 128..192, 192..208, 208..210], None, "q6_k"),
    block!("IQ2_XXS", 256, 66, [2..66, 0..2], Some(Table::Iq2Xxs), "iq2_xxs"),
    block!("IQ2_XS", 256, 74, [2..66, 66..74, 0..2], Some(Table::Iq2Xs), "iq2_xs"),
    block!("IQ3_XXS", 256, 98, [2..66, 66..98, 0..2], Some(Table::Iq3Xxs), "iq3_xxs"),
    block!("IQ1_S", 256, 50, [2..34, 34..50, 0..2], Some(Table::Iq1), "iq1_s"),
    block!("IQ4_NL", 32, 18, [2..18, 0..2], None, "iq4_nl"),
    block!("IQ3_S", 256, 110, [2..66, 66..110, 0..2], Some(Table::Iq3S), "iq3_s"),
    block!("IQ2_S", 256, 82, [2..66, 66..82, 0..2], Some(Table::Iq2S), "iq2_s"),
    block!("IQ4_XS", 256, 136, [8..136, 0..8], None, "iq4_xs"),
    block!("IQ1_M", 256, 56, [0..32, 32..48, 48..56], Some(Table::Iq1), "iq1_m"),
    block!("BF16", 1, 2, [0..2], None, "bf16"),
    block!("TQ1_0", 256, 54, [0..48, 48..52, 52..54], None, "tq1_0"),
    block!("TQ2_0", 256, 66, [0..64, 64..66], None, "tq2_0"),
    block!("MXFP4", 32, 17, [1..17, 0..1], None, "mxfp4"),
];

/// The block type of GGML's name, as `Q4_K`.
pub fn block(name: &str) -> Option<&'static BlockShader> {
    ALL.iter().find(|b| b.name == name)
}

/// A row of [`PIECES`].
macro_rules! piece {
    ($path:literal) => {
        ($path, include_str!(concat!("../", $path)))
    };
}

/// What the sources include: path and WGSL.
pub const PIECES: &[(&str, &str)] = &[
    piece!("blocks/bytes.wgsl"),
    piece!("blocks/codes.wgsl"),
    piece!("blocks/fifth_bits.wgsl"),
    piece!("blocks/half.wgsl"),
    piece!("blocks/levels.wgsl"),
    piece!("blocks/scales_k4.wgsl"),
    piece!("blocks/signed.wgsl"),
    piece!("blocks/tables.wgsl"),
    piece!("blocks/tables1.wgsl"),
    piece!("blocks/tables4.wgsl"),
    piece!("blocks/tables8.wgsl"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_take_every_byte_once() {
        for b in ALL {
            let mut planes = b.planes.to_vec();
            planes.sort_by_key(|p| p.start);
            let end = planes.iter().fold(0, |at, p| {
                assert!(p.start == at && p.end > at, "{}", b.name);
                p.end
            });
            assert_eq!(end, b.block_bytes, "{}", b.name);
            let planes = b.planes.len() + usize::from(b.table.is_some());
            assert!(planes <= MAX_PLANES, "{}", b.name);
        }
    }
}
