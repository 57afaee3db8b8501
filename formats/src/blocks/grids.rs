//! The codebooks of GGML's IQ types: which groups of 8 (or 4) magnitudes a code stands for.
//!
//! They are kept packed in `grids.bin` (`fixtures/grids.py` makes it and says how) and unpacked at
//! compile time.

const PACKED: &[u8] = include_bytes!("grids.bin");

/// Unpacks `N` entries of `V` values that start at byte `start`.
const fn unpack<const N: usize, const V: usize>(start: usize, levels: &[i8]) -> [[i8; V]; N] {
    let width = bits(levels.len());
    let mut out = [[0; V]; N];
    let mut at = start * 8;
    let mut n = 0;
    while n < N {
        let mut v = 0;
        while v < V {
            let (mut code, mut bit) = (0, 0);
            while bit < width {
                code |= (PACKED[at / 8] as usize >> (at % 8) & 1) << bit;
                at += 1;
                bit += 1;
            }
            out[n][v] = levels[code];
            v += 1;
        }
        n += 1;
    }
    out
}

/// Bits that tell `n` levels apart.
const fn bits(n: usize) -> usize {
    usize::BITS as usize - (n - 1).leading_zeros() as usize
}

/// Bytes of a packed table.
const fn size(entries: usize, values: usize, levels: &[i8]) -> usize {
    (entries * values * bits(levels.len())).div_ceil(8)
}

const TERNARY: &[i8] = &[-1, 0, 1];
const TWO: &[i8] = &[8, 25, 43];
const THREE_XXS: &[i8] = &[4, 12, 20, 28, 36, 44, 52, 62];
const THREE_S: &[i8] = &[1, 3, 5, 7, 9, 11, 13, 15];

const AT_2XXS: usize = size(2048, 8, TERNARY);
const AT_2XS: usize = AT_2XXS + size(256, 8, TWO);
const AT_2S: usize = AT_2XS + size(512, 8, TWO);
const AT_3XXS: usize = AT_2S + size(1024, 8, TWO);
const AT_3S: usize = AT_3XXS + size(256, 4, THREE_XXS);
const _: () = assert!(PACKED.len() == AT_3S + size(512, 4, THREE_S));

/// Codebook of `IQ1_S` and `IQ1_M`: −1, 0 or 1.
pub static IQ1_GRID: [[i8; 8]; 2048] = unpack(0, TERNARY);
/// Codebook of `IQ2_XXS`: 8, 25 or 43.
pub static IQ2_XXS_GRID: [[i8; 8]; 256] = unpack(AT_2XXS, TWO);
/// Codebook of `IQ2_XS`: 8, 25 or 43.
pub static IQ2_XS_GRID: [[i8; 8]; 512] = unpack(AT_2XS, TWO);
/// Codebook of `IQ2_S`: 8, 25 or 43.
pub static IQ2_S_GRID: [[i8; 8]; 1024] = unpack(AT_2S, TWO);
/// Codebook of `IQ3_XXS`: 4 to 62.
pub static IQ3_XXS_GRID: [[i8; 4]; 256] = unpack(AT_3XXS, THREE_XXS);
/// Codebook of `IQ3_S`: the odd numbers 1 to 15.
pub static IQ3_S_GRID: [[i8; 4]; 512] = unpack(AT_3S, THREE_S);

/// The signs of eight weights by the seven bits that are stored of them: set bits are negative,
/// and their number is even, so the eighth follows from the others.
pub static EVEN_SIGNS: [u8; 128] = {
    let mut out = [0; 128];
    let mut seven = 0;
    while seven < 128 {
        out[seven] = seven as u8 | (seven.count_ones() as u8 & 1) << 7;
        seven += 1;
    }
    out
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codebooks_have_no_entry_twice() {
        fn distinct<const V: usize>(grid: &[[i8; V]]) -> bool {
            let mut all = grid.to_vec();
            all.sort_unstable();
            all.dedup();
            all.len() == grid.len()
        }
        assert!(distinct(&IQ1_GRID) && distinct(&IQ2_XXS_GRID) && distinct(&IQ2_XS_GRID));
        assert!(distinct(&IQ2_S_GRID) && distinct(&IQ3_XXS_GRID) && distinct(&IQ3_S_GRID));
        assert_eq!(IQ3_S_GRID[0], [1, 1, 1, 1]);
        assert_eq!(IQ1_GRID[0], [-1; 8]);
    }

    #[test]
    fn signs_are_even() {
        for (seven, signs) in EVEN_SIGNS.into_iter().enumerate() {
            assert_eq!(signs.count_ones() % 2, 0);
            assert_eq!(usize::from(signs & 127), seven);
        }
    }
}
