//! The block types against GGML's reference quantisers, and properties of the encoders.
//!
//! `fixtures/blocks.bin` holds what the reference wrote and decoded (see `blocks.py` beside it);
//! the rows themselves are computed here by the same formulas.

use formats::blocks::{BlockType, Effort, RowError, dequantize_row, quantize_row};
use proptest::prelude::*;

const GOLDEN: &[u8] = include_bytes!("../fixtures/blocks.bin");
const ROWS: usize = 8;
const DECODED: usize = 3;
const WIDTH: usize = 256;
/// Blocks of noise whose decoding the fixture has as a hash.
const HASHED: usize = 256;
const ORDER: [BlockType; 25] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::BF16,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::Q5_K,
    BlockType::Q6_K,
    BlockType::IQ4_NL,
    BlockType::IQ4_XS,
    BlockType::IQ3_S,
    BlockType::TQ1_0,
    BlockType::TQ2_0,
    BlockType::MXFP4,
    BlockType::IQ1_S,
    BlockType::IQ1_M,
    BlockType::IQ2_XXS,
    BlockType::IQ2_XS,
    BlockType::IQ2_S,
    BlockType::IQ3_XXS,
];

/// Types whose rows the reference encoded.
fn written() -> impl Iterator<Item = BlockType> {
    ORDER.into_iter().filter(|t| t.can_encode())
}

/// Of those, the ones with scales.
fn quantised() -> impl Iterator<Item = BlockType> {
    written().filter(|t| t.block_len() > 1)
}

struct Lcg(u32);

impl Lcg {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn uniform(&mut self) -> f32 {
        self.next() as f32 * (-23f32).exp2() - 1.0
    }
}

/// The rows of `blocks.py`.
fn row(kind: u32) -> Vec<f32> {
    let mut g = Lcg(kind + 1);
    (0..WIDTH)
        .map(|i| {
            let bell = (g.uniform() + g.uniform() + g.uniform()) * 0.5;
            let tail = 0.05 + g.uniform().abs();
            let kept = g.next().is_multiple_of(8);
            match kind {
                0 => bell,
                1 => bell / tail,
                2 => bell / (tail * tail) * 0.001,
                3 => bell * 0.0625 + if i % 97 == 5 { 8.0 } else { 0.0 },
                4 => bell * 0.25 + 3.0,
                5 => bell * (i / 16) as f32 * 0.125,
                6 if kept => bell,
                6 => 0.0,
                _ => bell * 1e-4 / tail,
            }
        })
        .collect()
}

struct Golden {
    ty: BlockType,
    coded: Vec<&'static [u8]>,
    decoded: Vec<Vec<f32>>,
    /// The decoding of generator bytes, and a hash of the decoding of more; none for the float
    /// types.
    noise: Option<(Vec<f32>, u64)>,
}

/// Generator bytes as blocks of `ty`, with scales that are finite.
fn noise(ty: BlockType, seed: u32, blocks: usize) -> Vec<u8> {
    let mut lcg = Lcg(seed);
    let size = ty.block_bytes();
    let mut bytes: Vec<u8> = (0..blocks * size)
        .map(|_| (lcg.next() >> 4) as u8)
        .collect();
    // The byte with the exponent's first bit; at the end in types that have codes first.
    let exponents: &[(usize, u8)] = match ty {
        BlockType::Q2_K => &[(81, 0xbf), (83, 0xbf)],
        BlockType::Q4_K | BlockType::Q5_K | BlockType::Q4_1 | BlockType::Q5_1 => {
            &[(1, 0xbf), (3, 0xbf)]
        }
        BlockType::Q3_K | BlockType::Q6_K | BlockType::TQ1_0 | BlockType::TQ2_0 => {
            &[(size - 1, 0xbf)]
        }
        BlockType::IQ1_M => &[(55, 0xbf)],
        BlockType::MXFP4 => &[(0, 0x7f)],
        _ => &[(1, 0xbf)],
    };
    for block in bytes.chunks_exact_mut(size) {
        for (at, mask) in exponents {
            block[*at] &= mask;
        }
    }
    bytes
}

/// FNV-1a over the little-endian bits.
fn hash(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn golden() -> Vec<Golden> {
    let mut rest = GOLDEN;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let all = ORDER
        .map(|ty| {
            let bytes = ty.row_bytes(WIDTH).unwrap();
            let (rows, decoded) = if ty.can_encode() {
                (ROWS, DECODED)
            } else {
                (0, 0)
            };
            Golden {
                ty,
                coded: (0..rows).map(|_| take(bytes)).collect(),
                decoded: (0..decoded).map(|_| floats(take(4 * WIDTH))).collect(),
                noise: (ty.block_len() > 1).then(|| {
                    let values = floats(take(4 * WIDTH));
                    let hash = take(8).try_into().unwrap();
                    (values, u64::from_le_bytes(hash))
                }),
            }
        })
        .into();
    assert!(rest.is_empty(), "{} bytes left in blocks.bin", rest.len());
    all
}

fn decode(ty: BlockType, bytes: &[u8]) -> Vec<f32> {
    let n = bytes.len() / ty.block_bytes() * ty.block_len();
    let mut out = vec![0.0; n];
    dequantize_row(ty, bytes, &mut out).unwrap();
    out
}

fn encode(ty: BlockType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0; ty.row_bytes(row.len()).unwrap()];
    quantize_row(ty, row, importance, Effort::Normal, &mut out).unwrap();
    out
}

/// Root of the (weighted) sum of squared errors.
fn error(x: &[f32], y: &[f32], w: Option<&[f32]>) -> f64 {
    let square = |i: usize| (f64::from(x[i]) - f64::from(y[i])).powi(2);
    let sum: f64 = (0..x.len())
        .map(|i| w.map_or(1.0, |w| f64::from(w[i])) * square(i))
        .sum();
    sum.sqrt()
}

fn assert_bits(ty: BlockType, what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(same, "{ty}, {what}, weight {i}: {a:e} is not {b:e}");
    }
}

#[test]
fn decoding_agrees_with_the_reference_bit_for_bit() {
    for g in golden() {
        for (r, expected) in g.decoded.iter().enumerate() {
            assert_bits(
                g.ty,
                &format!("row {r}"),
                &decode(g.ty, g.coded[r]),
                expected,
            );
        }
        if let Some((expected, expected_hash)) = &g.noise {
            let bytes = noise(g.ty, 99, WIDTH / g.ty.block_len());
            assert_bits(g.ty, "noise", &decode(g.ty, &bytes), expected);
            let more = decode(g.ty, &noise(g.ty, 100, HASHED));
            assert_eq!(hash(&more), *expected_hash, "{}: more noise", g.ty);
        }
    }
}

#[test]
fn the_rows_are_those_the_reference_encoded() {
    let f32s = golden().swap_remove(0);
    for (kind, coded) in f32s.coded.iter().enumerate() {
        assert_bits(
            f32s.ty,
            "formula",
            &row(kind as u32),
            &decode(f32s.ty, coded),
        );
    }
}

#[test]
fn float_types_encode_as_the_reference_does() {
    for g in golden().into_iter().take(3) {
        for (kind, coded) in g.coded.iter().enumerate() {
            assert_eq!(
                encode(g.ty, &row(kind as u32), None),
                *coded,
                "{} row {kind}",
                g.ty
            );
        }
    }
}

#[test]
fn encoding_errs_no_more_than_the_reference() {
    let mut worse = Vec::new();
    for g in golden() {
        for (kind, coded) in g.coded.iter().enumerate() {
            let x = row(kind as u32);
            let ours = error(&x, &decode(g.ty, &encode(g.ty, &x, None)), None);
            let theirs = error(&x, &decode(g.ty, coded), None);
            if ours > theirs * 1.001 {
                worse.push(format!("{} row {kind}: {ours:e} against {theirs:e}", g.ty));
            }
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

/// A deeper search may end elsewhere on one row, but not worse on the whole.
#[test]
fn more_effort_errs_less() {
    let mut deeper = 0;
    for ty in written().filter(|t| t.block_len() > 1) {
        let mut sums = [0.0; 2];
        for kind in 0..ROWS as u32 {
            let x = row(kind);
            for (effort, sum) in Effort::ALL.into_iter().zip(&mut sums) {
                let mut bytes = vec![0; ty.row_bytes(WIDTH).unwrap()];
                quantize_row(ty, &x, None, effort, &mut bytes).unwrap();
                *sum += error(&x, &decode(ty, &bytes), None) / error(&x, &[0.0; WIDTH], None);
            }
        }
        let [normal, high] = sums;
        assert!(high <= normal * 1.0001, "{ty}: {high} over {normal}");
        deeper += usize::from(high < normal * 0.999);
    }
    assert!(deeper >= 4, "only {deeper} types have a deeper search");
}

#[test]
fn importance_moves_the_error_to_where_it_matters_less() {
    let mut lcg = Lcg(7);
    let w: Vec<f32> = (0..WIDTH)
        .map(|_| lcg.uniform().powi(4) * 100.0 + 0.01)
        .collect();
    for ty in quantised() {
        for kind in 0..2 {
            let x = row(kind);
            let with = error(&x, &decode(ty, &encode(ty, &x, Some(&w))), Some(&w));
            let without = error(&x, &decode(ty, &encode(ty, &x, None)), Some(&w));
            assert!(
                with < without,
                "{ty} row {kind}: {with:e} against {without:e}"
            );
        }
    }
}

#[test]
fn what_cannot_be_quantised_becomes_something_finite() {
    let bad = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        -1e-42,
        1e12,
        -0.0,
    ];
    let rows = [
        (0..WIDTH).map(|i| bad[i % bad.len()]).collect::<Vec<_>>(),
        vec![f32::NAN; WIDTH],
        vec![f32::NEG_INFINITY; WIDTH],
        vec![1e-40; WIDTH],
        (0..WIDTH)
            .map(|i| if i == 3 { f32::NAN } else { 1.0 })
            .collect(),
    ];
    for ty in quantised() {
        for x in &rows {
            for w in [None, Some(&rows[0][..]), Some(&[0.0; WIDTH][..])] {
                let y = decode(ty, &encode(ty, x, w));
                assert!(y.iter().all(|v| v.is_finite()), "{ty}: {y:?}");
            }
        }
        let y = decode(ty, &encode(ty, &rows[4], None));
        // IQ3_S has no zero, and few entries with a small level beside large ones.
        let most = if ty == BlockType::IQ3_S { 0.25 } else { 0.1 };
        let (nan, one) = (y[3].abs(), (y[4] - 1.0).abs());
        assert!(nan < most && one < most, "{ty}: {nan} and {one}");
    }
}

#[test]
fn zeros_and_constants_are_kept() {
    for ty in written() {
        let zeros = [0.0; WIDTH];
        assert_eq!(decode(ty, &encode(ty, &zeros, None)), zeros, "{ty}");
        for c in [0.75, -0.75] {
            for v in decode(ty, &encode(ty, &[c; WIDTH], None)) {
                assert!((v - c).abs() < 1e-3, "{ty}: {v} for {c}");
            }
        }
    }
}

#[test]
fn a_type_without_an_encoder_is_refused_by_name() {
    for ty in ORDER.into_iter().filter(|t| !t.can_encode()) {
        let mut out = vec![0; ty.block_bytes()];
        let e = quantize_row(ty, &[0.5; WIDTH], None, Effort::Normal, &mut out).unwrap_err();
        assert_eq!(e, RowError::NoEncoder { ty });
        let said = e.to_string();
        assert!(
            said.starts_with(ty.name()) && said.contains("Q4_K"),
            "{said}"
        );
    }
    assert_eq!(BlockType::encodable().count(), written().count());
}

#[test]
fn sizes_that_do_not_go_together_are_named() {
    let e = quantize_row(
        BlockType::Q4_K,
        &[0.0; 100],
        None,
        Effort::Normal,
        &mut [0; 144],
    )
    .unwrap_err();
    assert!(matches!(
        e,
        RowError::Bytes {
            weights: 100,
            bytes: 144,
            ..
        }
    ));
    let said = e.to_string();
    assert!(
        said.contains("Q4_K stores 256 weights in 144 bytes"),
        "{said}"
    );
    assert!(dequantize_row(BlockType::Q8_0, &[0; 35], &mut [0.0; 32]).is_err());
    let e = quantize_row(
        BlockType::F32,
        &[0.0; 4],
        Some(&[1.0]),
        Effort::Normal,
        &mut [0; 16],
    )
    .unwrap_err();
    let said = e.to_string();
    assert!(
        said.contains("1 importances given for 4 F32 weights"),
        "{said}"
    );
    assert!(dequantize_row(BlockType::Q6_K, &[], &mut []).is_ok());
}

fn any_type() -> impl Strategy<Value = BlockType> {
    proptest::sample::select(ORDER.to_vec())
}

fn any_written() -> impl Strategy<Value = BlockType> {
    proptest::sample::select(written().collect::<Vec<_>>())
}

/// A row whose groups of 16 weights differ in magnitude, at any scale a model might have.
fn any_row() -> impl Strategy<Value = Vec<f32>> {
    let group = (0.0f32..3.0, proptest::collection::vec(-1.0f32..1.0, 16))
        .prop_map(|(size, v)| v.into_iter().map(|x| x * size.exp2()).collect::<Vec<_>>());
    (
        proptest::collection::vec(group, WIDTH / 16),
        -10i32..8,
        prop_oneof![Just(0.0f32), -1.0f32..1.0],
    )
        .prop_map(|(groups, size, offset)| {
            let scale = (size as f32).exp2();
            let groups = groups.concat();
            groups.iter().map(|v| (v + offset) * scale).collect()
        })
}

proptest! {
    #[test]
    fn arbitrary_bytes_decode(
        ty in any_type(),
        seed in any::<u32>(),
        blocks in 1usize..4,
        skew in 0usize..4,
    ) {
        let mut lcg = Lcg(seed);
        let bytes: Vec<u8> = (0..blocks * ty.block_bytes() + skew)
            .map(|_| (lcg.next() >> 4) as u8)
            .collect();
        // From any address, as in a memory map.
        let y = decode(ty, &bytes[skew..]);
        prop_assert_eq!(y.len(), blocks * ty.block_len());
        // What was decoded can be encoded, NaN and infinities included.
        prop_assume!(ty.can_encode());
        prop_assert_eq!(encode(ty, &y, None).len(), bytes.len() - skew);
    }

    #[test]
    fn the_error_stays_within_the_step(ty in any_written(), x in any_row()) {
        // Steps over twice the largest magnitude. A K-quant with few bits also rounds its scales.
        let steps = match ty {
            BlockType::F32 => 1e7,
            BlockType::F16 => 2048.0,
            BlockType::BF16 | BlockType::Q8_0 => 254.0,
            BlockType::Q2_K => 3.0,
            BlockType::Q3_K => 7.0,
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4_K => 15.0,
            BlockType::IQ4_NL | BlockType::IQ4_XS => 10.0,
            BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5_K => 31.0,
            BlockType::Q6_K => 63.0,
            BlockType::MXFP4 => 6.0,
            BlockType::IQ3_S => 5.0,
            _ => 1.5,
        };
        let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let half_step = f64::from(largest) / steps;
        let y = decode(ty, &encode(ty, &x, None));
        for (a, b) in x.chunks(32).zip(y.chunks(32)) {
            let rms = error(a, b, None) / (a.len() as f64).sqrt();
            prop_assert!(rms <= half_step * 1.01 + 1e-7, "{}: {} over {}", ty, rms, half_step);
        }
    }

    #[test]
    fn encoding_is_deterministic_and_block_by_block(
        ty in any_written(),
        a in any_row(),
        b in any_row(),
    ) {
        let both = encode(ty, &[a.clone(), b.clone()].concat(), None);
        let apart = [encode(ty, &a, None), encode(ty, &b, None)].concat();
        prop_assert_eq!(both, apart);
    }

    #[test]
    fn uniform_importance_is_no_importance(ty in any_written(), x in any_row()) {
        prop_assert_eq!(encode(ty, &x, Some(&[0.25; WIDTH])), encode(ty, &x, None));
    }
}
