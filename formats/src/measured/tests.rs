use std::path::Path;

use super::*;

fn profile() -> Profile {
    let curve = |rows: &[u32], ns: &[f64]| Curve {
        rows: rows.to_vec(),
        ns: ns.to_vec(),
    };
    Profile {
        format: Profile::FORMAT.into(),
        version: PROFILE_VERSION,
        machine: "a machine".into(),
        build: "splitrun 0.1.0".into(),
        device: "cpu (avx2)".into(),
        threads: 2,
        derived: false,
        loaded: false,
        notes: Vec::new(),
        matrices: vec![
            MatrixTime {
                block_type: "Q4_K".into(),
                curve: curve(&[1, 8, 128], &[0.05, 0.1, 1.3]),
            },
            MatrixTime {
                block_type: "Q8_0".into(),
                curve: curve(&[4], &[0.4]),
            },
        ],
        attention: [(256, 1.0), (1024, 3.0)]
            .map(|(positions, ns)| AttentionTime {
                positions,
                curve: curve(&[1], &[ns]),
            })
            .to_vec(),
        layer_fixed_ns: 1000.0,
        layer_value_ns: 0.5,
        pass_fixed_ns: 1e4,
        embed_value_ns: 1.0,
        sample_value_ns: 1.0,
        codecs: vec![CodecTime {
            codec: "tcq:step=0.4".into(),
            encode_fixed_ns: 1.0,
            encode_value_ns: 1.0,
            decode_fixed_ns: 1.0,
            decode_value_ns: 1.0,
        }],
        message_ns: None,
        memory_gb_per_s: 20.0,
        load_gb_per_s: 1.0,
        runtime_bytes: 10 << 20,
        memory_bytes: None,
    }
}

fn sensitivity() -> LayerSensitivity {
    LayerSensitivity {
        format: LayerSensitivity::FORMAT.into(),
        version: SENSITIVITY_VERSION,
        model: "m".into(),
        n_layer: 4,
        n_embd: 64,
        n_ff: 128,
        n_vocab: 100,
        build: "splitrun 0.1.0".into(),
        text: "t".into(),
        tokens: 512,
        perplexity: Some(16.0),
        quick: false,
        additivity: 1.1,
        front: Some(Front {
            layers: 2,
            additivity: 0.8,
        }),
        types: vec![TypeDamage {
            layer: 3,
            kind: "attn_v".into(),
            block_type: "Q2_K".into(),
            kl: 0.01,
            fitted: false,
        }],
        codecs: vec![CodecPoint {
            cut: 3,
            codec: "tcq:step=0.4".into(),
            bytes_per_token: 100.0,
            prompt_bytes_per_token: None,
            kl: 0.001,
            fitted: true,
        }],
    }
}

#[test]
fn written_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    std::fs::write(&path, profile().to_json()).unwrap();
    assert_eq!(Profile::open(&path).unwrap(), profile());
    let said = LayerSensitivity::open(&path).unwrap_err().to_string();
    assert!(said.contains("p.json"), "{said}");
    assert!(
        said.contains("expected a `splitconv.sensitivity`"),
        "{said}"
    );
    std::fs::write(&path, sensitivity().to_json()).unwrap();
    assert_eq!(LayerSensitivity::open(&path).unwrap(), sensitivity());
}

#[test]
fn divergences_go_with_the_logarithm_of_the_perplexity() {
    let mut s = sensitivity();
    assert!(s.read_at(4.0));
    assert_eq!(s.perplexity, Some(4.0));
    assert!((s.types[0].kl - 0.005).abs() < 1e-12 && (s.codecs[0].kl - 0.0005).abs() < 1e-12);
    assert_eq!(s.additivity, sensitivity().additivity);
    // A file of an older build does not say where it was measured.
    s.perplexity = None;
    let before = s.clone();
    assert!(!s.read_at(16.0));
    assert_eq!(s, before);
    assert!(s.check().is_ok());
}

#[test]
fn a_curve_between_and_beyond_its_points() {
    let p = profile();
    let (q4, own) = p.matrix(crate::blocks::BlockType::Q4_K).unwrap();
    assert!(own);
    assert_eq!(q4.at(0.0), 0.0);
    assert_eq!(q4.at(1.0), 0.05);
    assert!((q4.at(4.5) - 0.075).abs() < 1e-12);
    assert_eq!(q4.at(128.0), 1.3);
    assert!((q4.at(248.0) - 2.5).abs() < 1e-12);
    let (near, own) = p.matrix(crate::blocks::BlockType::F16).unwrap();
    assert!(!own);
    assert_eq!(near.at(1.0), 0.4, "no less than at the first point");
    assert_eq!(near.at(8.0), 0.8);
    assert_eq!(p.attention_ns(1.0, 100.0), 100.0);
    assert_eq!(p.attention_ns(1.0, 640.0), f64::midpoint(256.0, 3072.0));
    assert_eq!(p.attention_ns(1.0, 2048.0), 3.0 * 2048.0);
    let mut p = p;
    p.attention[1].curve.ns[0] = 0.1;
    assert!(p.attention_ns(1.0, 1024.0) >= p.attention_ns(1.0, 256.0));
    assert!(p.codec("tcq:step=0.8").is_some());
    assert!(p.codec("int8").is_none());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |change: fn(&mut Profile), key: &str| {
        let mut p = profile();
        change(&mut p);
        let said = p.check().unwrap_err().to_string();
        assert!(said.contains(key), "{said}");
    };
    assert!(profile().check().is_ok());
    refused(|p| p.matrices.clear(), "`matrices`");
    refused(|p| p.matrices[0].block_type = "Q9".into(), "matrices.Q9");
    refused(|p| p.matrices[1].block_type = "Q4_K".into(), "twice");
    refused(|p| p.matrices[0].curve.ns[1] = f64::NAN, "matrices.Q4_K.ns");
    refused(|p| p.matrices[0].curve.rows[1] = 1, "ascending");
    refused(|p| p.matrices[0].curve.ns.truncate(2), "2 times for 3");
    refused(|p| p.attention[1].positions = 256, "attention");
    refused(|p| p.layer_fixed_ns = -1.0, "layer_fixed_ns");
    refused(|p| p.memory_gb_per_s = 0.0, "memory_gb_per_s");
    refused(|p| p.codecs[0].encode_value_ns = f64::INFINITY, "tcq");
    refused(|p| p.pass_fixed_ns = 1e308, "that large");
    refused(|p| p.runtime_bytes = u64::MAX, "runtime_bytes");
    refused(|p| p.memory_bytes = Some(u64::MAX), "memory_bytes");
    refused(|p| p.threads = u32::MAX, "threads");
    let refused = |change: &dyn Fn(&mut LayerSensitivity), key: &str| {
        let mut s = sensitivity();
        change(&mut s);
        let said = s.check().unwrap_err().to_string();
        assert!(said.contains(key), "{said}");
    };
    assert!(sensitivity().check().is_ok());
    refused(&|s| s.n_layer = 0, "n_layer");
    let front = Front {
        layers: 5,
        additivity: 1.0,
    };
    refused(&|s| s.front = Some(front), "front.layers");
    let of = |layer| sensitivity().additivity_of(layer);
    assert_eq!([of(0), of(1), of(2)], [0.8, 0.8, 1.1]);
    refused(&|s| s.types[0].kl = 1e308, "that large");
    refused(&|s| s.codecs[0].bytes_per_token = f64::NAN, "at least 0");
    for additivity in [0.0, -1.0, 1e308, f64::NAN] {
        let s = LayerSensitivity {
            additivity,
            ..sensitivity()
        };
        assert!(s.check().unwrap_err().to_string().contains("additivity"));
        refused(
            &|s| {
                s.front = Some(Front {
                    layers: 1,
                    additivity,
                });
            },
            "front.additivity",
        );
    }
    for perplexity in [-1.0, 1.0, 1e308, f64::NAN] {
        let s = LayerSensitivity {
            perplexity: Some(perplexity),
            ..sensitivity()
        };
        assert!(s.check().unwrap_err().to_string().contains("perplexity"));
    }
    refused(&|s| s.types[0].layer = 4, "4 layers");
    refused(&|s| s.types[0].kind = "attn".into(), "ffn_down, layer");
    refused(&|s| s.types[0].kl = -0.1, "at least 0");
    refused(&|s| s.types.push(s.types[0].clone()), "twice");
    refused(&|s| s.codecs[0].cut = 0, "cuts 1 to 3");
    refused(&|s| s.codecs.push(s.codecs[0].clone()), "twice");
}

#[test]
fn hostile_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let said = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Profile::open(&path).unwrap_err().to_string()
    };
    assert!(said(b"").contains("EOF"));
    let deep = format!("{{\"notes\":{}", "[".repeat(100_000));
    assert!(said(deep.as_bytes()).contains("EOF"));
    let deep = format!("{{\"format\":{}", "[".repeat(100_000));
    assert!(said(deep.as_bytes()).contains("expected a string"));
    assert!(said(b"{\"format\":\"splitconv.profile\",\"version\":2}").contains("version 2"));
    assert!(said(b"{\"format\":\"splitconv.profile\",\"version\":1}").contains("missing field"));
    assert!(said(&[0xff; 10]).contains("splitrun bench --profile"));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(MAX_BYTES + 1).unwrap();
    assert!(
        Profile::open(&path)
            .unwrap_err()
            .to_string()
            .contains("bytes")
    );
    assert!(Profile::open(Path::new("/nowhere/p.json")).is_err());
}
