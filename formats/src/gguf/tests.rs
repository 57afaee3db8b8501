//! Round trips, hostile headers, and mutations.

use std::io::Write as _;
use std::path::PathBuf;

use super::*;
use crate::blocks::BlockType;

fn sample() -> Vec<u8> {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string("llama"));
    m.set("a.u8", Value::u8(200));
    m.set("a.i32", Value::i32(-7));
    m.set("a.f32", Value::f32(f32::from_bits(0x7fc0_1234)));
    m.set("a.bool", Value::bool(true));
    m.set(
        "a.tokens",
        Value::string_array(&[b"a".as_slice(), b"\xff\xfe", b""]),
    );
    m.set("a.scores", Value::f32_array(&[0.5, -1.0]));
    m.set("a.types", Value::i32_array(&[1, -3]));
    let decls = vec![
        TensorDecl {
            name: "x".into(),
            dims: vec![32, 3],
            block_type: BlockType::Q8_0,
        },
        TensorDecl {
            name: "y".into(),
            dims: vec![5],
            block_type: BlockType::F32,
        },
    ];
    let mut w = Writer::new(Vec::new(), &m, decls).unwrap();
    w.write(&[1; 34]).unwrap();
    w.write(&[2; 68]).unwrap();
    w.write(&[3; 20]).unwrap();
    w.finish().unwrap()
}

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::File::create(&path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
    (dir, path)
}

fn open(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let (_dir, path) = on_disk(bytes);
    Gguf::open(&path)
}

#[test]
fn what_is_written_is_read_bit_for_bit() {
    let bytes = sample();
    let (_dir, path) = on_disk(&bytes);
    let g = Gguf::open(&path).unwrap();
    assert_eq!(
        g.metadata().get("a.u8").unwrap().value_type(),
        ValueType::U8
    );
    assert_eq!(g.metadata().get("a.i32").unwrap().as_i64(), Some(-7));
    assert_eq!(
        g.metadata()
            .get("a.f32")
            .unwrap()
            .as_f32()
            .unwrap()
            .to_bits(),
        0x7fc0_1234
    );
    let tokens = g.metadata().get("a.tokens").unwrap().as_array().unwrap();
    assert_eq!(
        tokens.strings().unwrap().collect::<Vec<_>>(),
        [b"a".as_slice(), b"\xff\xfe", b""]
    );
    assert_eq!(
        g.tensor("x")
            .map(|t| (t.row_len(), t.rows(), t.row_bytes())),
        Some((32, 3, 34))
    );
    assert_eq!(g.data(g.tensor("y").unwrap()), [3; 20]);

    // Written again from what was read, the bytes are the same.
    let decls = g
        .tensors()
        .iter()
        .map(|t| TensorDecl {
            name: t.name.clone(),
            dims: t.dims.clone(),
            block_type: t.block_type,
        })
        .collect();
    let mut w = Writer::new(Vec::new(), g.metadata(), decls).unwrap();
    for t in g.tensors() {
        w.write(g.data(t)).unwrap();
    }
    assert_eq!(w.finish().unwrap(), bytes);
}

#[test]
fn gguf_rs_sees_the_same_file() {
    let mut bytes = sample();
    // gguf-rs mends bad UTF-8 silently, which is no disagreement about structure.
    let (_dir, path) = on_disk(&bytes);
    Gguf::open(&path).unwrap().second_opinion().unwrap();
    bytes[4] = 2;
    let (_dir, path) = on_disk(&bytes);
    assert_eq!(Gguf::open(&path).unwrap().version(), 2);
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = sample();
    let data_end = bytes.len() - (bytes.len() % 32 + 12);
    for n in 0..data_end {
        assert!(
            open(&bytes[..n]).is_err(),
            "{n} of {} bytes were accepted",
            bytes.len()
        );
    }
}

#[test]
fn versions_and_byte_orders_have_their_own_errors() {
    let mut b = sample();
    b[4..8].copy_from_slice(&1_u32.to_le_bytes());
    assert!(matches!(
        open(&b).unwrap_err().kind,
        GgufErrorKind::Version(1)
    ));
    b[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert!(matches!(
        open(&b).unwrap_err().kind,
        GgufErrorKind::BigEndian
    ));
    assert!(matches!(
        open(b"GGML....").unwrap_err().kind,
        GgufErrorKind::NotGguf { .. }
    ));
    assert!(matches!(
        open(b"").unwrap_err().kind,
        GgufErrorKind::NotGguf { .. }
    ));
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    for at in [8, 16] {
        let mut b = sample();
        b[at..at + 8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
        assert!(matches!(
            open(&b).unwrap_err().kind,
            GgufErrorKind::AbsurdCount { .. }
        ));
    }
}

#[test]
fn overlapping_and_far_tensors_are_named() {
    let m = Metadata::new();
    let decls: Vec<_> = ["first", "second"]
        .map(|n| TensorDecl {
            name: n.into(),
            dims: vec![16],
            block_type: BlockType::F32,
        })
        .into();
    let h = encode_header(&m, &decls).unwrap();
    let offset_at = h.bytes.windows(6).position(|w| w == b"second").unwrap() + 6 + 4 + 8 + 4;
    for (offset, far) in [(32_u64, false), (1 << 40, true), (u64::MAX - 31, true)] {
        let mut b = h.bytes.clone();
        b[offset_at..offset_at + 8].copy_from_slice(&offset.to_le_bytes());
        b.resize(h.file_bytes, 0);
        let e = open(&b).unwrap_err();
        assert!(e.to_string().contains("second"), "{e}");
        assert_eq!(
            matches!(e.kind, GgufErrorKind::TensorOutOfFile { .. }),
            far,
            "{e}"
        );
    }
}

#[test]
fn nested_arrays_end() {
    let mut payload = Vec::new();
    for _ in 0..40 {
        payload.extend(9_u32.to_le_bytes());
        payload.extend(1_u64.to_le_bytes());
    }
    payload.extend(0_u32.to_le_bytes());
    payload.extend(0_u64.to_le_bytes());
    let mut m = Metadata::new();
    m.set("deep", Value::from_checked(ValueType::Array, payload));
    let b = encode_header(&m, &[]).unwrap().bytes;
    assert!(open(&b).unwrap_err().to_string().contains("nested"));
}

#[test]
fn writers_check_sizes() {
    let decls = vec![TensorDecl {
        name: "x".into(),
        dims: vec![32],
        block_type: BlockType::Q8_0,
    }];
    let mut w = Writer::new(Vec::new(), &Metadata::new(), decls.clone()).unwrap();
    assert!(w.write(&[0; 35]).is_err());
    w.write(&[0; 33]).unwrap();
    assert!(w.finish().is_err());
    let bad = vec![TensorDecl {
        name: "x".into(),
        dims: vec![33],
        block_type: BlockType::Q8_0,
    }];
    assert!(Writer::new(Vec::new(), &Metadata::new(), bad).is_err());
}

#[test]
fn shards_are_read_as_one_from_any_of_them() {
    let dir = tempfile::tempdir().unwrap();
    for no in 0..2_u16 {
        let mut m = Metadata::new();
        m.set("split.no", Value::u16(no));
        m.set("split.count", Value::u16(2));
        m.set("split.tensors.count", Value::i32(2));
        let decls = vec![TensorDecl {
            name: format!("t{no}"),
            dims: vec![8],
            block_type: BlockType::F32,
        }];
        let mut w = Writer::new(Vec::new(), &m, decls).unwrap();
        w.write(&[no as u8; 32]).unwrap();
        let name = shard_name("m", usize::from(no), 2);
        std::fs::write(dir.path().join(name), w.finish().unwrap()).unwrap();
    }
    for no in 0..2 {
        let set = GgufSet::open(&dir.path().join(shard_name("m", no, 2))).unwrap();
        let (file, t) = set.tensor("t1").unwrap();
        assert_eq!(file.data(t), [1; 32]);
        assert_eq!(set.tensors().count(), 2);
    }
    std::fs::remove_file(dir.path().join(shard_name("m", 1, 2))).unwrap();
    let e = GgufSet::open(&dir.path().join(shard_name("m", 0, 2))).unwrap_err();
    assert!(e.to_string().contains("m-00002-of-00002.gguf"), "{e}");
}

#[test]
fn two_thousand_mutations_neither_panic_nor_lie_about_ranges() {
    let good = sample();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut accepted = 0;
    for _ in 0..2000 {
        let mut b = good.clone();
        for _ in 0..=next() % 4 {
            let i = next() as usize % b.len();
            b[i] = match next() % 4 {
                0 => 0xff,
                1 => 0,
                _ => next() as u8,
            };
        }
        if next().is_multiple_of(5) {
            b.truncate(next() as usize % b.len());
        }
        std::fs::write(&path, &b).unwrap();
        if let Ok(g) = Gguf::open(&path) {
            accepted += 1;
            for t in g.tensors() {
                assert_eq!(g.data(t).len(), t.bytes);
            }
            // Whatever we accept must be safe for gguf-rs to read, whether or not it agrees.
            let _ = g.second_opinion();
        }
    }
    assert!(accepted > 0, "the mutations never left a readable file");
}
