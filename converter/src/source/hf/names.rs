//! What a tensor of a Hugging Face checkpoint is called in a GGUF, and which shape it must have.

use super::config::Config;

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is part of the model.
    Used(Known),
    /// A table that follows from the configuration.
    Ignored,
    /// Nothing that such a model has.
    Unknown,
}

/// A tensor that is part of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// Its name in a GGUF.
    pub(super) name: String,
    /// Its shape as PyTorch writes it: rows first.
    pub(super) shape: Vec<u64>,
    /// Whether its rows belong to rotated heads that llama.cpp stores interleaved.
    pub(super) interleave: bool,
}

/// Hugging Face's name of the embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Hugging Face's name of the head.
pub(super) const HEAD: &str = "lm_head.weight";

/// The matrices and norms that every layer has, without `.weight`.
pub(super) const LAYER: [&str; 9] = [
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// What becomes of the tensor called `name`, given the tokens of the vocabulary.
pub(super) fn fate(name: &str, config: &Config, n_vocab: u64) -> Fate {
    let tables = [
        ".rotary_emb.inv_freq",
        ".attention.masked_bias",
        ".attention.bias",
    ];
    if tables.iter().any(|t| name.ends_with(t)) {
        return Fate::Ignored;
    }
    let embd = u64::from(config.n_embd);
    let used = |name: &str, shape: Vec<u64>| {
        Fate::Used(Known {
            name: name.to_owned(),
            shape,
            interleave: false,
        })
    };
    match name {
        EMBEDDING => return used("token_embd.weight", vec![n_vocab, embd]),
        HEAD => return used("output.weight", vec![n_vocab, embd]),
        "model.norm.weight" => return used("output_norm.weight", vec![embd]),
        _ => {}
    }
    layer(name, config).map_or(Fate::Unknown, Fate::Used)
}

fn layer(name: &str, config: &Config) -> Option<Known> {
    let (number, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let plain = number.bytes().all(|b| b.is_ascii_digit());
    let number: u32 = number.parse().ok().filter(|_| plain)?;
    if number >= config.n_layer {
        return None;
    }
    let (part, kind) = rest.rsplit_once('.')?;
    let (embd, ff) = (u64::from(config.n_embd), u64::from(config.n_ff));
    let (q, kv) = (config.q_dim(), config.kv_dim());
    let (name, rows, columns) = match part {
        "input_layernorm" => ("attn_norm", embd, None),
        "post_attention_layernorm" => ("ffn_norm", embd, None),
        "self_attn.q_proj" => ("attn_q", q, Some(embd)),
        "self_attn.k_proj" => ("attn_k", kv, Some(embd)),
        "self_attn.v_proj" => ("attn_v", kv, Some(embd)),
        "self_attn.o_proj" => ("attn_output", embd, Some(q)),
        "mlp.gate_proj" => ("ffn_gate", ff, Some(embd)),
        "mlp.up_proj" => ("ffn_up", ff, Some(embd)),
        "mlp.down_proj" => ("ffn_down", embd, Some(ff)),
        _ => return None,
    };
    let shape = match (kind, columns) {
        ("weight", Some(columns)) => vec![rows, columns],
        ("weight", None) => vec![rows],
        // Qwen2 always has these, a Llama may.
        ("bias", Some(_)) if matches!(name, "attn_q" | "attn_k" | "attn_v") => vec![rows],
        _ => return None,
    };
    Some(Known {
        name: format!("blk.{number}.{name}.{kind}"),
        shape,
        interleave: config.arch.interleaves() && matches!(name, "attn_q" | "attn_k"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(class: &str) -> Config {
        let json = json!({
            "architectures": [class], "hidden_size": 64, "intermediate_size": 256,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 12
        });
        Config::read("config.json".into(), json).unwrap()
    }

    #[test]
    fn places() {
        let (llama, qwen) = (config("MistralForCausalLM"), config("Qwen2ForCausalLM"));
        let known = |name: &str, config: &Config| match fate(name, config, 320) {
            Fate::Used(known) => Some((known.name, known.shape, known.interleave)),
            _ => None,
        };
        let q = "model.layers.11.self_attn.q_proj.weight";
        let name = || "blk.11.attn_q.weight".to_owned();
        assert_eq!(known(q, &llama), Some((name(), vec![64, 64], true)));
        assert_eq!(known(q, &qwen), Some((name(), vec![64, 64], false)));
        let bias = "model.layers.0.self_attn.k_proj.bias";
        let name = || "blk.0.attn_k.bias".to_owned();
        assert_eq!(known(bias, &llama), Some((name(), vec![32], true)));
        assert_eq!(known(bias, &qwen), Some((name(), vec![32], false)));
        for part in LAYER {
            assert!(known(&format!("model.layers.3.{part}.weight"), &llama).is_some());
        }
        for no in [
            "model.layers.12.self_attn.q_proj.weight",
            "model.layers.+1.self_attn.q_proj.weight",
            "model.layers.1.self_attn.q_norm.weight",
            "model.layers.1.self_attn.o_proj.bias",
            "model.layers.1.mlp.down_proj.bias",
            "model.layers.1.self_attn.q_proj.qweight",
            "lm_head.bias",
        ] {
            assert_eq!(fate(no, &qwen, 320), Fate::Unknown, "{no}");
        }
        let table = "model.layers.0.self_attn.rotary_emb.inv_freq";
        assert_eq!(fate(table, &llama, 320), Fate::Ignored);
    }
}
