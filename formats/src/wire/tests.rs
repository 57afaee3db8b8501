//! Whole frames: round trips, pinned bytes, and everything a stranger may send.

use proptest::prelude::*;

use super::*;
use crate::pair::PairId;

mod odd;

const OURS: PairTag = PairTag([0xde, 0xad, 0xbe, 0xef]);

fn origin(width: usize) -> Origin {
    Origin {
        pair_tag: OURS,
        first_position: 300,
        width,
    }
}

fn expect(width: usize) -> Expect {
    Expect {
        pair_tag: OURS,
        width,
        max_rows: 64,
    }
}

fn codec(spec: &str) -> Codec {
    spec.parse().unwrap()
}

fn frame(spec: &str, width: usize, rows: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    let stats = encode(
        &codec(spec),
        &origin(width),
        rows,
        &mut Scratch::default(),
        &mut out,
    )
    .unwrap();
    assert_eq!(stats.bytes, out.len());
    assert_eq!(stats.rows * width, rows.len());
    out
}

fn read(bytes: &[u8], width: usize) -> Result<Vec<f32>, DecodeError> {
    let mut rows = Vec::new();
    decode(bytes, &expect(width), &mut Scratch::default(), &mut rows).map(|h| {
        assert_eq!((h.first_position, h.rows * h.width), (300, rows.len()));
        rows
    })
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|x| x.to_bits()).collect()
}

/// A small generator with one answer everywhere.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// Nearly normal, variance 1.
    fn normal(&mut self) -> f32 {
        (0..12)
            .map(|_| self.next() as f32 / (1u32 << 31) as f32)
            .sum::<f32>()
            - 6.0
    }

    /// Rows like those between two layers: sigma 1, five heavy columns.
    fn rows(&mut self, n: usize, width: usize) -> Vec<f32> {
        let mut rows: Vec<f32> = (0..n * width).map(|_| self.normal()).collect();
        for row in rows.chunks_mut(width) {
            for c in [3, 77, 200, 301, 500] {
                row[c % width] = 25.0 * (1.5 + self.normal());
            }
        }
        rows
    }
}

const ALL: [&str; 7] = [
    "f32",
    "f16",
    "int8",
    "ts-tabq",
    "ts-tabq:tau=20,delta=0,bits=4",
    "ts-tabq:tau=inf,delta=0.5,bits=7",
    "auto",
];

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        write!(s, "{b:02x}").unwrap();
        s
    })
}

fn unhex(s: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&s[at..at + 2], 16).unwrap();
    (0..s.len()).step_by(2).map(digit).collect()
}

#[test]
fn golden_bytes() {
    // These bytes are the format. If they have to change, so has the version.
    let rows = [1.0, -1.0, 300.0, 0.0];
    for (spec, id, payload) in [
        ("f32", "00", "0000803f 000080bf 00009643 00000000"),
        ("f16", "01", "00 003c 00bc b05c 0000"),
        // 300 / 127, then the codes.
        ("int8", "02", "00 5d2e1740 00 00 7f 00"),
        // One outlier, in column 2; 4 bits from -1 in steps of just above 2 / 15.
        (
            "ts-tabq:tau=100,delta=0,bits=4",
            "03",
            "01 02 00009643 04 00bc 4530 0f07",
        ),
    ] {
        let payload = payload.replace(' ', "");
        let want = format!("a1{id}deadbeefac020104{payload}");
        let got = frame(spec, 4, &rows);
        assert_eq!(got, sealed(unhex(&want)), "{spec}: {}", hex(&got));
    }
    // And the checksum.
    assert_eq!(hex(&frame("f32", 4, &rows)[26..]), "504b0d54");
}

#[test]
fn compressed_golden_bytes_decode() {
    // What zstd writes may change with its release; what was written must stay readable.
    let rows: Vec<f32> = (0..128).map(|i| [0.0, 1.0, 2.0, 3.0, 7.0][i % 5]).collect();
    for (spec, frame) in [
        (
            "ts-tabq:tau=7,delta=0,bits=2",
            "a113deadbeefac02024020a3fd0000800c0d0400040000e040020000003ce424050038205004ddbb4980c1061802aee95774",
        ),
        (
            "ts-tabq:tau=7,delta=0,bits=3",
            "a133deadbeefac02024020f00d0100900c0d0400040000e040030000dc360002050705006097088aa07b370930d800435d88461a",
        ),
    ] {
        let back = read(&unhex(frame), 64).unwrap();
        let now = read(&self::frame(spec, 64, &rows), 64).unwrap();
        assert_eq!(bits(&back), bits(&now));
        for (a, b) in rows.iter().zip(&back) {
            assert!((a - b).abs() <= 0.25 && (*a != 7.0 || *b == 7.0));
        }
    }
}

#[test]
fn a_real_sized_row_fits_its_budget() {
    let mut lcg = Lcg(7);
    for _ in 0..50 {
        let rows = lcg.rows(1, 576);
        let f = frame("auto", 576, &rows);
        assert!(f.len() <= 440, "{}", f.len());
        let back = read(&f, 576).unwrap();
        let sigma = ts::trimmed_sigma(&rows);
        for (a, b) in rows.iter().zip(&back) {
            if f64::from(a.abs()) >= 5.0 * sigma {
                assert_eq!(a.to_bits(), b.to_bits());
            }
            // Half of a 31st of at most ten sigmas, and what rounding to f16 adds.
            assert!(f64::from((a - b).abs()) <= 0.164 * sigma);
        }
    }
}

#[test]
fn headers_of_one_row_stay_small() {
    let mut out = Vec::new();
    let width = MAX_WIDTH;
    let o = Origin {
        first_position: u32::MAX - 1,
        ..origin(width)
    };
    encode(
        &Codec::F32,
        &o,
        &vec![0.0; width],
        &mut Scratch::default(),
        &mut out,
    )
    .unwrap();
    assert_eq!(out.len() - 4 * width, 19);
}

#[test]
fn edge_shapes_round_trip() {
    for spec in ALL {
        for width in [1, 2, 7, 8, 576] {
            assert_eq!(read(&frame(spec, width, &[]), width), Ok(vec![]), "{spec}");
            for value in [0.0, -0.0, 1.5, 1e-42, -22_000.0, f32::MAX] {
                let rows = vec![value; 3 * width];
                let back = read(&frame(spec, width, &rows), width).unwrap();
                for (a, b) in rows.iter().zip(&back) {
                    let near = (a - b).abs() <= a.abs() * 1e-3 + 1e-30;
                    assert!(
                        near || a.to_bits() == b.to_bits(),
                        "{spec} {width}: {a} {b}"
                    );
                }
            }
        }
    }
}

#[test]
fn f16_sends_what_it_cannot_hold_exactly() {
    let rows = [65_504.0, 65_519.0, 65_520.0, -22_000.5, 1e30, -1e-9];
    let back = read(&frame("f16", 6, &rows), 6).unwrap();
    let want = [65_504.0, 65_504.0, 65_520.0, -22_000.0, 1e30, -0.0];
    assert_eq!(bits(&back), bits(&want));
}

#[test]
fn scratch_and_position_leave_no_trace() {
    let mut lcg = Lcg(1);
    let (mut warm, mut out, mut rows) = (Scratch::default(), vec![9; 9], vec![1.0; 3]);
    for spec in ALL.iter().chain(&ALL) {
        let x = lcg.rows(3, 40);
        encode(&codec(spec), &origin(40), &x, &mut warm, &mut out).unwrap();
        assert_eq!(out, frame(spec, 40, &x), "{spec}");
        decode(&out, &expect(40), &mut warm, &mut rows).unwrap();
        assert_eq!(bits(&rows), bits(&read(&out, 40).unwrap()));
        // A failure in between leaves a scratch as good as new.
        decode(&out[1..], &expect(40), &mut warm, &mut rows).unwrap_err();
        assert!(rows.is_empty());
    }
}

#[test]
fn rows_do_not_feel_their_neighbours() {
    let x = Lcg(3).rows(8, 96);
    for spec in ALL {
        let together = read(&frame(spec, 96, &x), 96).unwrap();
        for (row, want) in x.chunks(96).zip(together.chunks(96)) {
            assert_eq!(bits(&read(&frame(spec, 96, row), 96).unwrap()), bits(want));
        }
    }
}

#[test]
fn encoding_refuses_what_is_no_frame() {
    let mut out = vec![1];
    let mut try_it = |codec: Codec, o: Origin, rows: &[f32]| {
        let e = encode(&codec, &o, rows, &mut Scratch::default(), &mut out).unwrap_err();
        assert!(out.is_empty());
        e.to_string()
    };
    let auto = Codec::default();
    assert!(try_it(auto, origin(0), &[]).contains("width must be"));
    assert!(try_it(auto, origin(MAX_WIDTH + 1), &[]).contains("width must be"));
    assert!(try_it(auto, origin(4), &[0.0; 7]).contains("7 values are not whole rows of 4"));
    let late = Origin {
        first_position: u32::MAX,
        ..origin(1)
    };
    assert!(try_it(auto, late, &[0.0]).contains("run past"));
    let bits9 = Codec::TsTabQ(TsTabQ {
        bits: 9,
        ..TsTabQ::default()
    });
    assert!(try_it(bits9, origin(1), &[0.0]).contains("1 to 8"));
    assert!(try_it(Codec::Auto { max_kl: f32::NAN }, origin(1), &[]).contains("max-kl"));
}

/// `body` with the checksum that makes it whole.
fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    let sum = *blake3::hash(&body).as_bytes();
    body.extend_from_slice(&sum[..4]);
    body
}

#[test]
fn each_fault_has_its_name() {
    let good = frame("int8", 4, &[1.0, 2.0, 3.0, 4.0]);
    let body = &good[..good.len() - 4];
    let with = |at: usize, byte: u8| {
        let mut b = body.to_vec();
        b[at] = byte;
        read(&sealed(b), 4).unwrap_err()
    };
    assert!(read(&sealed(body.to_vec()), 4).is_ok());
    assert_eq!(read(&[], 4), Err(DecodeError::Truncated { what: "header" }));
    assert_eq!(with(0, b'G'), DecodeError::NotAFrame { first: b'G' });
    assert_eq!(with(0, 0xa3), DecodeError::Version { theirs: 3 });
    assert_eq!(with(1, 9), DecodeError::Coding { id: 9 });
    for flags in [0x10, 0x20, 0x30, 0x40, 0x80] {
        assert_eq!(with(1, flags | 2), DecodeError::Flags { flags });
    }
    for flags in [0x20, 0x40, 0x50, 0x80] {
        assert_eq!(with(1, flags | 3), DecodeError::Flags { flags });
    }
    let other = PairTag([0xde, 0xad, 0xbe, 0xee]);
    let said = with(5, 0xee);
    assert_eq!(
        said,
        DecodeError::OtherPair {
            ours: OURS,
            theirs: other
        }
    );
    assert!(said.to_string().contains("deadbeef") && said.to_string().contains("deadbeee"));
    assert_eq!(with(9, 5), DecodeError::Width { ours: 4, theirs: 5 });
    assert_eq!(with(8, 65), DecodeError::TooManyRows { rows: 65, max: 64 });
    assert!(matches!(with(8, 2), DecodeError::Truncated { .. }));
    let mut b = body.to_vec();
    b.push(0);
    assert_eq!(read(&sealed(b), 4), Err(DecodeError::Trailing { left: 1 }));
    let mut b = body.to_vec();
    b.splice(6..8, [0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(
        read(&sealed(b), 4),
        Err(DecodeError::Position { rows: 1, .. })
    ));
    for i in 0..good.len() {
        for bit in 0..8 {
            let mut b = good.clone();
            b[i] ^= 1 << bit;
            assert!(read(&b, 4).is_err(), "byte {i} bit {bit}");
        }
    }
    let e = Expect {
        max_rows: usize::MAX,
        ..expect(4)
    };
    let got = decode(&good, &e, &mut Scratch::default(), &mut Vec::new());
    assert!(matches!(got, Err(DecodeError::Expect { .. })));
}

#[test]
fn the_tag_is_the_start_of_the_pair_id() {
    let id: PairId = "deadbeef00112233445566778899aabb".parse().unwrap();
    assert_eq!(PairTag::from(id), OURS);
}

/// The header of a compressed frame of one row, and `payload` behind it without its magic.
fn compressed(flags: u8, width: u8, payload: &[u8]) -> Vec<u8> {
    let mut b = vec![0xa1, 3 | flags, 0xde, 0xad, 0xbe, 0xef, 0xac, 2, 1, width];
    b.extend_from_slice(&payload[4..]);
    sealed(b)
}

#[test]
fn bombs_are_refused_by_their_claim() {
    let bomb = zstd::bulk::compress(&vec![0; 50 << 20], 19).unwrap();
    assert!(bomb.len() < 10_000);
    let mut scratch = Scratch::default();
    let f = compressed(0x10, 4, &bomb);
    let got = decode(&f, &expect(4), &mut scratch, &mut Vec::new());
    assert_eq!(
        got,
        Err(DecodeError::TooLarge {
            claimed: 50 << 20,
            most: 42
        })
    );
    assert!(scratch.capacity() < 2 * bomb.len());

    // A frame that claims little and holds much.
    let mut liar = zstd::bulk::compress(&[0; 200], 3).unwrap();
    assert_eq!(liar[5], 200);
    liar[5] = 40;
    assert!(matches!(
        read(&compressed(0x10, 4, &liar), 4),
        Err(DecodeError::Zstd { .. })
    ));
    // One that says nothing of its size.
    let mut c = zstd::bulk::Compressor::new(3).unwrap();
    c.include_contentsize(false).unwrap();
    let silent = c.compress(&[0; 20]).unwrap();
    let malformed = Err(DecodeError::Malformed {
        what: "compressed payload",
    });
    assert_eq!(read(&compressed(0x10, 4, &silent), 4), malformed);
    // Two in a row.
    let mut twice = zstd::bulk::compress(&[0; 20], 3).unwrap();
    twice.extend(twice.clone());
    assert_eq!(read(&compressed(0x10, 4, &twice), 4), malformed);
}

#[test]
fn twenty_thousand_bad_frames_are_answered() {
    let mut lcg = Lcg(20_000);
    let good: Vec<Vec<u8>> = ALL
        .iter()
        .flat_map(|spec| [1, 2, 9].map(|n| (spec, n)))
        .map(|(spec, n)| frame(spec, 48, &Lcg(n as u64).rows(n, 48)))
        .collect();
    let (mut scratch, mut rows) = (Scratch::default(), Vec::new());
    let (mut refused, mut deep) = (0, 0);
    for round in 0..20_000 {
        let mut b = good[lcg.below(good.len())].clone();
        match round % 4 {
            0 => b = (0..lcg.below(200)).map(|_| lcg.next() as u8).collect(),
            1 => b.truncate(lcg.below(b.len())),
            _ => {
                for _ in 0..=lcg.below(6) {
                    // Lengths and heads stand in front: visit them often.
                    let end = if lcg.below(2) == 0 { 24 } else { b.len() };
                    let at = lcg.below(end.min(b.len()));
                    match lcg.below(4) {
                        0 => b[at] ^= 1 << lcg.below(8),
                        1 => b[at] = lcg.next() as u8,
                        2 => drop(b.remove(at)),
                        _ => b.insert(at, lcg.next() as u8),
                    }
                    if b.len() < 16 {
                        break;
                    }
                }
            }
        }
        // Half of them with a checksum that lets them in, and a header that is nearly right.
        if round % 8 >= 4 && b.len() > 12 {
            b.truncate(b.len() - 4);
            b[0] = 0xa1;
            b[2..6].copy_from_slice(&OURS.0);
            b = sealed(b);
        }
        match decode(&b, &expect(48), &mut scratch, &mut rows) {
            Ok(h) => assert_eq!(rows.len(), h.rows * 48),
            Err(e) => {
                assert!(rows.is_empty() && !e.to_string().is_empty());
                refused += 1;
                deep += usize::from(matches!(
                    e,
                    DecodeError::Malformed { .. }
                        | DecodeError::Truncated { .. }
                        | DecodeError::Trailing { .. }
                        | DecodeError::Zstd { .. }
                ));
            }
        }
    }
    assert!(refused > 15_000 && deep > 4_000, "{refused} {deep}");
    // 64 rows of 48: what `decode` promises.
    assert!(scratch.capacity() + 4 * rows.capacity() <= 64 * 48 * 40);
}

#[test]
fn a_steady_stream_allocates_nothing() {
    let mut lcg = Lcg(5);
    let (mut scratch, mut out, mut rows) = (Scratch::default(), Vec::new(), Vec::new());
    let mut warm = None;
    for round in 0..60 {
        let x = lcg.rows(1, 576);
        for spec in ALL {
            encode(&codec(spec), &origin(576), &x, &mut scratch, &mut out).unwrap();
            decode(&out, &expect(576), &mut scratch, &mut rows).unwrap();
        }
        let now = scratch.capacity() + out.capacity() + rows.capacity();
        if round >= 30 {
            assert_eq!(*warm.get_or_insert(now), now);
        }
    }
}

#[test]
fn scratch_may_move_between_threads() {
    fn send<T: Send>() {}
    send::<Scratch>();
}

/// Bytes per row and root mean square error of rows like those of a model.
fn cost(spec: &str, rows_per_frame: usize) -> (f64, f64) {
    let x = Lcg(11).rows(512, 576);
    let (mut scratch, mut out, mut back) = (Scratch::default(), Vec::new(), Vec::new());
    let (mut bytes, mut err) = (0, 0.0);
    for rows in x.chunks(rows_per_frame * 576) {
        encode(&codec(spec), &origin(576), rows, &mut scratch, &mut out).unwrap();
        decode(&out, &expect(576), &mut scratch, &mut back).unwrap();
        bytes += out.len();
        let squares = rows
            .iter()
            .zip(&back)
            .map(|(a, b)| f64::from((a - b).powi(2)));
        err += squares.sum::<f64>();
    }
    (bytes as f64 / 512.0, (err / x.len() as f64).sqrt())
}

#[test]
fn fewer_bits_cost_fewer_bytes_and_more_error() {
    let (auto, auto_error) = cost("auto", 1);
    assert!(auto <= 440.0, "{auto} bytes a row");
    let (three, three_error) = cost("ts-tabq:delta=0,bits=3", 1);
    let (six, six_error) = cost("ts-tabq:delta=0,bits=6", 1);
    assert!(three < auto && auto < six, "{three} {auto} {six}");
    assert!(three_error > auto_error && auto_error > six_error && six_error > 0.0);
    let (many, many_error) = cost("auto", 32);
    assert!(
        many < auto,
        "{many} bytes a row in frames of 32, {auto} alone"
    );
    // The same codes; only the order of the test's own sum differs.
    assert!((many_error / auto_error - 1.0).abs() < 1e-9);
}

/// A value of any size, from any bits.
fn finite(bits: u32) -> f32 {
    let x = f32::from_bits(bits);
    if x.is_finite() { x } else { 0.0 }
}

proptest! {
    #[test]
    fn f32_is_exact_for_every_number(
        raw in proptest::collection::vec(any::<u32>(), 0..300),
        width in 1usize..50,
    ) {
        let rows: Vec<f32> = raw.iter().copied().map(finite).collect();
        let rows = &rows[..(rows.len() / width).min(64) * width];
        prop_assert_eq!(bits(&read(&frame("f32", width, rows), width).unwrap()), bits(rows));
    }

    #[test]
    fn outliers_are_exact_under_every_coding(
        raw in proptest::collection::vec(any::<u32>(), 1..300),
        width in 1usize..50,
        tau in 0f32..100.0,
        top in 1u8..=8,
        delta in 0f32..0.5,
    ) {
        let rows: Vec<f32> = raw.iter().copied().map(finite).collect();
        let rows = &rows[..(rows.len() / width).min(64) * width];
        let spec = format!("ts-tabq:tau={tau},bits={top},delta={delta}");
        let back = read(&frame(&spec, width, rows), width).unwrap();
        for (a, b) in rows.iter().zip(&back) {
            prop_assert!(a.abs() < tau || a.to_bits() == b.to_bits());
        }
        for spec in ["f16", "int8", "auto"] {
            let back = read(&frame(spec, width, rows), width).unwrap();
            for (a, b) in rows.iter().zip(&back) {
                prop_assert!(b.is_finite());
                prop_assert!(a.abs() < 3e38 || a.to_bits() == b.to_bits());
            }
        }
    }

    #[test]
    fn int8_errs_by_half_a_step(rows in proptest::collection::vec(-1e6f32..1e6, 1..200)) {
        let top = rows.iter().fold(0f32, |t, x| t.max(x.abs()));
        let back = read(&frame("int8", rows.len(), &rows), rows.len()).unwrap();
        for (a, b) in rows.iter().zip(&back) {
            prop_assert!((a - b).abs() <= top / 127.0 * 0.5001);
        }
    }
}
