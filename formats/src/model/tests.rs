use std::collections::BTreeMap;

use super::*;
use crate::blocks::RowError;
use crate::gguf::{Metadata, Value};
use crate::pair::key;

/// Shapes by name, and the values of the frequency factors.
#[derive(Clone, Default)]
struct Fake {
    dims: BTreeMap<String, Vec<u64>>,
    factors: Vec<f32>,
}

impl TensorDirectory for Fake {
    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        self.dims.get(name).cloned()
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.dims.keys().map(String::as_str))
    }

    fn floats(&self, name: &str) -> Option<Result<Vec<f32>, RowError>> {
        self.dims.get(name).map(|_| Ok(self.factors.clone()))
    }
}

fn metadata(arch: Architecture) -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string(arch.name()));
    for (rest, n) in [
        ("block_count", 3),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("context_length", 128),
        ("vocab_size", 10),
    ] {
        m.set(&arch.key(rest), Value::u32(n));
    }
    let eps = arch.key("attention.layer_norm_rms_epsilon");
    m.set(&eps, Value::f32(1e-6));
    m
}

/// All that a model of `arch` must have, and a head.
fn whole(arch: Architecture) -> (Metadata, Fake) {
    let m = metadata(arch);
    let mut fake = Fake::default();
    let shape = HParams::read(&m, &fake).unwrap();
    let wanted = shape.tensors();
    fake.dims = wanted
        .filter(|t| t.required || t.place == Place::Output)
        .map(|t| (t.name, t.dims))
        .collect();
    (m, fake)
}

#[test]
fn keys_have_the_prefix_of_the_architecture() {
    for arch in Architecture::ALL {
        let (mut m, fake) = whole(arch);
        let shape = HParams::read(&m, &fake).unwrap();
        assert_eq!(
            (shape.architecture, shape.n_layer, shape.head_dim),
            (arch, 3, 16)
        );
        assert_eq!((shape.q_width(), shape.kv_width()), (64, 32));
        assert_eq!((shape.n_vocab, shape.tied), (10, false));
        assert_eq!(shape.rope.style, arch.rope_style());
        assert_eq!((shape.rope.dims, shape.rope.base), (16, 10_000.0));
        check_tensors(&shape, &fake).unwrap();
        // The keys of another architecture say nothing.
        let other = Architecture::ALL[(arch as usize + 1) % 2];
        m.set(&other.key("rope.freq_base"), Value::f32(7.0));
        assert_eq!(HParams::read(&m, &fake).unwrap(), shape);
        m.set(&arch.key("rope.freq_base"), Value::f32(1e6));
        assert_eq!(HParams::read(&m, &fake).unwrap().rope.base, 1e6);
        m.remove_if(|k| k == arch.key("block_count"));
        let e = HParams::read(&m, &fake).unwrap_err().to_string();
        assert!(
            e.contains(&format!("`{arch}.block_count` is missing")),
            "{e}"
        );
    }
}

#[test]
fn biases_are_needed_by_qwen2_and_allowed_in_llama() {
    let (m, mut fake) = whole(Architecture::Qwen2);
    let shape = HParams::read(&m, &fake).unwrap();
    assert_eq!(fake.dims["blk.2.attn_q.bias"], [64]);
    assert_eq!(fake.dims["blk.2.attn_v.bias"], [32]);
    fake.dims.remove("blk.1.attn_k.bias");
    fake.dims.remove("blk.2.attn_k.bias");
    let fault = check_tensors(&shape, &fake).unwrap_err();
    let (first, others) = ("blk.1.attn_k.bias".to_owned(), 1);
    assert_eq!(fault, ModelFault::MissingTensor { first, others });

    let (m, mut fake) = whole(Architecture::Llama);
    let shape = HParams::read(&m, &fake).unwrap();
    assert!(!fake.dims.contains_key("blk.1.attn_k.bias"));
    fake.dims.insert("blk.1.attn_k.bias".into(), vec![32]);
    check_tensors(&shape, &fake).unwrap();
    fake.dims.insert("blk.1.attn_k.bias".into(), vec![64]);
    let fault = check_tensors(&shape, &fake).unwrap_err();
    assert_eq!(fault.tensor(), Some("blk.1.attn_k.bias"));
}

#[test]
fn tensors_that_would_be_ignored_are_refused() {
    for arch in Architecture::ALL {
        let (m, fake) = whole(arch);
        let shape = HParams::read(&m, &fake).unwrap();
        for name in [
            "blk.3.attn_q.weight",
            "blk.0.attn_output.bias",
            "blk.0.attn_qkv.weight",
            "output.bias",
        ] {
            let mut fake = fake.clone();
            fake.dims.insert(name.into(), vec![64]);
            let e = check_tensors(&shape, &fake).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains(arch.name()), "{e}");
        }
    }
}

#[test]
fn factors_come_from_the_tensor_or_the_key() {
    let arch = Architecture::Llama;
    let (mut m, mut fake) = whole(arch);
    let factors = vec![2.0_f32; 8];
    m.set(key::ROPE_FREQS, Value::f32_array(&factors));
    let read = |m: &Metadata, fake: &Fake| HParams::read(m, fake);
    assert_eq!(read(&m, &fake).unwrap().rope.factors, Some(factors.clone()));
    m.set(key::ROPE_FREQS, Value::f32_array(&factors[1..]));
    assert!(read(&m, &fake).unwrap_err().to_string().contains("of 8"));
    // The tensor is asked first.
    fake.dims.insert("rope_freqs.weight".into(), vec![8]);
    fake.factors = vec![3.0; 8];
    let shape = read(&m, &fake).unwrap();
    assert_eq!(shape.rope.factors.as_deref(), Some(&[3.0_f32; 8][..]));
    check_tensors(&shape, &fake).unwrap();
    for bad in [f32::NAN, 0.0, -1.0] {
        fake.factors[5] = bad;
        let e = read(&m, &fake).unwrap_err().to_string();
        assert!(e.contains("rope_freqs.weight"), "{e}");
    }
}

#[test]
fn a_claim_of_layers_costs_nothing() {
    let arch = Architecture::Qwen2;
    let (mut m, fake) = whole(arch);
    m.set(&arch.key("block_count"), Value::u32(4096));
    let shape = HParams::read(&m, &fake).unwrap();
    let fault = check_tensors(&shape, &fake).unwrap_err();
    // 3 layers of 12 tensors and 3 others are there, so it looks no further than layer 39.
    let (first, others) = ("blk.3.attn_norm.weight".to_owned(), 37 * 12 - 1);
    assert_eq!(fault, ModelFault::MissingTensor { first, others });
}
