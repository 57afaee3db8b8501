use std::path::PathBuf;

use super::*;
use crate::gguf::{Metadata, Value};

fn entry(columns: usize, count: f32) -> Entry {
    Entry {
        sums: (0..columns).map(|i| i as f32 * 0.5).collect(),
        counts: vec![count],
    }
}

fn boundary() -> Boundary {
    let (width, cuts) = (4, 2);
    let wide = |scale: f32| (0..8).map(|i| i as f32 * scale).collect::<Vec<f32>>();
    Boundary {
        width,
        cuts,
        rows: 31,
        mean: wide(-0.5),
        sigma: wide(1.0),
        absmax: wide(3.0),
        first_row_absmax: wide(100.0),
        row_norms: vec![2.0; 14],
        outliers: vec![0.25; 14],
        kl: vec![0.5; 2 * crate::wire::KL_STEPS.len()],
    }
}

fn sensitivity() -> Sensitivity {
    let layer = |l: u8| [0_u8, 1, 2, 3, 4, 5, 6].map(|k| f32::from(l) + f32::from(k) * 0.25);
    Sensitivity {
        tokens: 256,
        layers: vec![layer(0), layer(1), layer(2)],
    }
}

fn sample() -> Imatrix {
    let mut im = Imatrix {
        datasets: vec!["a.txt".into(), "b.txt".into()],
        chunk_count: 3,
        chunk_size: 512,
        boundary: Some(boundary()),
        sensitivity: Some(sensitivity()),
        ..Imatrix::default()
    };
    im.entries
        .insert("blk.0.attn_q.weight".into(), entry(64, 1536.0));
    im.entries
        .insert("blk.0.ffn_down.weight".into(), entry(96, 1536.0));
    im.entries.insert("output.weight".into(), entry(64, 0.0));
    im
}

/// The `.dat` that llama-imatrix would write of `im`'s entries.
fn as_dat(im: &Imatrix, calls: i32) -> Vec<u8> {
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, n: i32| out.extend(n.to_le_bytes());
    put(&mut out, im.entries.len() as i32);
    for (name, e) in &im.entries {
        put(&mut out, name.len() as i32);
        out.extend(name.as_bytes());
        put(&mut out, calls);
        put(&mut out, e.sums.len() as i32);
        for s in &e.sums {
            let value = s / e.counts[0].max(1.0) * calls as f32;
            out.extend(value.to_le_bytes());
        }
    }
    put(&mut out, 3);
    put(&mut out, 5);
    out.extend(b"a.txt");
    out
}

fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("im");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn there_and_back() {
    let im = sample();
    let (_dir, path) = written(&im.to_gguf().unwrap());
    let back = Imatrix::open(&path).unwrap();
    assert_eq!(back, im);
    assert_eq!(back.digest(), im.digest());
    let mean = back.entries["blk.0.attn_q.weight"].mean().unwrap();
    assert_eq!(mean[3], 1.5 / 1536.0);
    assert_eq!(back.entries["output.weight"].mean(), None);
    // mean² + σ² over the second stretch: (4·0.5)² + 4² …
    let want = (4..8).map(|i| f64::from(i * i) * 1.25).sum::<f64>() / 4.0;
    assert_eq!(back.boundary.as_ref().unwrap().mean_square(2), Some(want));
    assert_eq!(back.boundary.unwrap().mean_square(3), None);
    let s = back.sensitivity.unwrap();
    assert_eq!(s.of(1, "attn_v"), Some(1.5));
    assert_eq!(s.of(2, "ffn_down"), Some(3.5));
    assert_eq!((s.of(3, "attn_v"), s.of(0, "attn_norm")), (None, None));
}

#[test]
fn without_sensitivities_there_are_none() {
    let mut im = sample();
    im.sensitivity = None;
    let (_dir, path) = written(&im.to_gguf().unwrap());
    assert_eq!(Imatrix::open(&path).unwrap(), im);
}

#[test]
fn the_older_form_means_the_same() {
    let im = sample();
    let (_dir, path) = written(&as_dat(&im, 8));
    let back = Imatrix::open(&path).unwrap();
    assert_eq!((back.chunk_count, back.datasets.len()), (3, 1));
    for (name, e) in &im.entries {
        if e.counts[0] == 0.0 {
            continue;
        }
        let (a, b) = (e.mean().unwrap(), back.entries[name].mean().unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= a * 1e-6, "{name}: {a} {b}");
        }
    }
}

#[test]
fn digest_feels_the_numbers_and_the_names() {
    let one = sample();
    let mut other = sample();
    other.datasets.clear();
    other.boundary = None;
    assert_eq!(one.digest(), other.digest(), "texts are not importances");
    other.entries.get_mut("blk.0.attn_q.weight").unwrap().sums[5] *= 2.0;
    assert_ne!(one.digest(), other.digest());
    let mut other = sample();
    let e = other.entries.remove("blk.0.attn_q.weight").unwrap();
    other.entries.insert("blk.0.attn_k.weight".into(), e);
    assert_ne!(one.digest(), other.digest());
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let (_dir, path) = written(bytes);
    let text = Imatrix::open(&path).unwrap_err().to_string();
    for w in words.iter().chain(&["im"]) {
        assert!(text.contains(w), "no {w:?} in: {text}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    refused(b"", &["neither a GGUF"]);
    refused(b"hello, this is some text", &["neither a GGUF"]);
    let mut model = Metadata::new();
    model.set("general.architecture", Value::string("llama"));
    let model = crate::gguf::encode_header(&model, &[]).unwrap().bytes;
    refused(&model, &["not an importance matrix"]);
    let mut im = sample();
    im.entries.clear();
    im.boundary = None;
    im.sensitivity = None;
    refused(&im.to_gguf().unwrap(), &["no tensor"]);
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut im = sample();
        im.entries.get_mut("blk.0.ffn_down.weight").unwrap().sums[7] = bad;
        refused(&im.to_gguf().unwrap(), &["blk.0.ffn_down.weight"]);
        refused(&as_dat(&im, 2), &["blk.0.ffn_down.weight"]);
        let mut im = sample();
        im.boundary.as_mut().unwrap().sigma[1] = bad;
        if !bad.is_finite() {
            refused(&im.to_gguf().unwrap(), &["splitconv.boundary.sigma"]);
        }
    }
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut im = sample();
        im.sensitivity.as_mut().unwrap().layers[1][6] = bad;
        refused(&im.to_gguf().unwrap(), &["`splitconv.sensitivity`"]);
    }
    // Another order of the kinds would give each matrix its neighbour's number.
    let mut bytes = sample().to_gguf().unwrap();
    let at = bytes.windows(6).position(|w| w == b"attn_q").unwrap();
    bytes[at + 5] = b'k';
    refused(&bytes, &["`splitconv.sensitivity`", "attn_q, attn_k"]);
    // [7, 3] becomes [3, 7] behind the last mention of the name, and the number of dimensions.
    let mut bytes = sample().to_gguf().unwrap();
    let name = b"splitconv.sensitivity";
    let at = bytes.windows(name.len()).rposition(|w| w == name).unwrap() + name.len() + 4;
    assert_eq!((bytes[at], bytes[at + 8]), (7, 3));
    bytes.swap(at, at + 8);
    refused(
        &bytes,
        &["`splitconv.sensitivity`", "[3, 7]", "[7, layers]"],
    );
    // A name changed in place: its counts stand alone.
    let mut bytes = sample().to_gguf().unwrap();
    let at = bytes.windows(7).position(|w| w == b"in_sum2").unwrap();
    bytes[at] = b'x';
    refused(&bytes, &["counts", "in_sum2"]);
    let mut im = sample();
    im.entries.get_mut("output.weight").unwrap().counts = vec![1.0; 5];
    assert!(im.to_gguf().is_err());
}

/// Bytes flipped, cut and repeated: an error or an importance matrix, never a panic.
#[test]
fn damaged_files_do_not_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % n
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("im");
    let im = sample();
    let (gguf, dat) = (im.to_gguf().unwrap(), as_dat(&im, 4));
    let (mut read, mut refused) = (0, 0);
    for round in 0..1500 {
        let mut bytes = if round % 3 == 0 {
            dat.clone()
        } else {
            gguf.clone()
        };
        for _ in 0..=random(4) {
            // Most of what decides stands in front.
            let span = if random(3) == 0 {
                bytes.len()
            } else {
                bytes.len().min(900)
            };
            let at = random(span);
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 => bytes[at] = [0, 0xff, 0x7f, 0x80][random(4)],
                _ => bytes.truncate(at.max(1)),
            }
        }
        if round % 3 == 0 {
            match dat::parse(&bytes) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
            continue;
        }
        std::fs::write(&path, &bytes).unwrap();
        match Imatrix::open(&path) {
            Ok(im) => {
                read += 1;
                im.digest();
            }
            Err(_) => refused += 1,
        }
    }
    assert!(
        read > 100 && refused > 100,
        "{read} read, {refused} refused"
    );
}
