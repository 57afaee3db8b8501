//! config.json: which model it is, and its sizes.
//!
//! Where a field is absent, the defaults are those of the `transformers` library (4.57), which
//! llama.cpp's conversion reads configurations with.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::HfError;

/// What can be converted, as people know it.
pub(super) const SUPPORTED: [&str; 3] = [
    "LlamaForCausalLM (Llama, SmolLM)",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
];

/// The kinds of model that can be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    Llama,
    /// A Llama by another name.
    Mistral,
    Qwen2,
}

impl Arch {
    fn from_class(name: &str) -> Option<Self> {
        Some(match name {
            "LlamaForCausalLM" | "LLaMAForCausalLM" => Self::Llama,
            "MistralForCausalLM" => Self::Mistral,
            "Qwen2ForCausalLM" => Self::Qwen2,
            _ => return None,
        })
    }

    /// `general.architecture`.
    pub(super) fn gguf(self) -> &'static str {
        match self {
            Self::Llama | Self::Mistral => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    /// Whether llama.cpp rotates neighbours where Hugging Face rotates halves, so that the rows
    /// of Q and K must be reordered.
    pub(super) fn interleaves(self) -> bool {
        self.gguf() == "llama"
    }

    fn default_context(self) -> u32 {
        match self {
            Self::Llama => 2_048,
            Self::Mistral => 131_072,
            Self::Qwen2 => 32_768,
        }
    }
}

/// How positions become angles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rope {
    /// By the base alone.
    Plain,
    /// Positions divided by a factor.
    Linear(f32),
    /// Llama 3.1's: each frequency by a factor of its own.
    Llama3(Llama3),
}

/// The parameters of Llama 3.1's scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) context: f64,
}

/// What config.json says.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) path: PathBuf,
    pub(super) json: Map<String, Json>,
    pub(super) arch: Arch,
    pub(super) n_layer: u32,
    pub(super) n_ctx: u32,
    pub(super) n_embd: u32,
    pub(super) n_ff: u32,
    pub(super) n_head: u32,
    pub(super) n_head_kv: u32,
    /// Values of one head; even.
    pub(super) head_dim: u32,
    /// Whether `attention.key_length` is stated: `transformers` fills the field in for some.
    pub(super) states_head_dim: bool,
    pub(super) n_vocab: Option<u32>,
    pub(super) eps: f32,
    pub(super) theta: f64,
    pub(super) rope: Rope,
    /// Whether Q, K and V have biases.
    pub(super) biases: bool,
    /// Rows that attention looks back at, where that is fewer than the context.
    pub(super) window: Option<u32>,
    /// Whether the head is the embedding, where that is said.
    pub(super) tied: Option<bool>,
}

impl Config {
    pub(super) fn read(path: PathBuf, json: Json) -> Result<Self, HfError> {
        let Json::Object(json) = json else {
            return Err(HfError::field(&path, "", "is not an object"));
        };
        let f = Fields {
            path: &path,
            json: &json,
        };
        let arch = f.architecture()?;
        f.quantised()?;
        f.refuse_what_is_not_computed()?;
        let required = |key: &str, max: u32| {
            f.whole(key, max)?
                .ok_or_else(|| HfError::field(&path, key, "is missing"))
        };
        let n_layer = required("num_hidden_layers", 4_096)?;
        let n_embd = required("hidden_size", 1 << 20)?;
        let n_ff = required("intermediate_size", 1 << 24)?;
        let n_head = required("num_attention_heads", 1 << 16)?;
        let n_head_kv = f.whole("num_key_value_heads", n_head)?.unwrap_or(n_head);
        let stated = f.whole("head_dim", 1 << 16)?;
        let head_dim = match stated {
            Some(n) => n,
            None if n_embd.is_multiple_of(n_head) => n_embd / n_head,
            None => {
                let why = format!("is {n_head}, which does not divide {n_embd}");
                return Err(HfError::field(&path, "num_attention_heads", why));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let why = format!("is {head_dim}, an odd number");
            return Err(HfError::field(&path, "head_dim", why));
        }
        if u64::from(n_head) * u64::from(head_dim) > 1 << 24 {
            let why = format!("is {head_dim}, too much for {n_head} heads");
            return Err(HfError::field(&path, "head_dim", why));
        }
        let (theta, rope) = f.rope()?;
        let eps = f.number(&json, "rms_norm_eps")?.unwrap_or(1e-6);
        let n_ctx = f
            .whole("max_position_embeddings", u32::MAX)?
            .unwrap_or_else(|| arch.default_context());
        let on = |key: &str| json.get(key).and_then(Json::as_bool) == Some(true);
        let windowed = match arch {
            Arch::Llama => false,
            Arch::Mistral => true,
            Arch::Qwen2 => on("use_sliding_window"),
        };
        let window = json.get("sliding_window").filter(|_| windowed);
        let window = window.and_then(Json::as_u64);
        let window = window.and_then(|w| u32::try_from(w).ok().filter(|w| *w < n_ctx));
        Ok(Self {
            arch,
            n_layer,
            n_ctx,
            biases: arch == Arch::Qwen2 || arch == Arch::Llama && on("attention_bias"),
            window,
            n_embd,
            n_ff,
            n_head,
            n_head_kv,
            head_dim,
            states_head_dim: stated.is_some() || arch != Arch::Qwen2,
            n_vocab: f.whole("vocab_size", 1 << 24)?,
            eps: eps as f32,
            theta,
            rope,
            tied: json.get("tie_word_embeddings").and_then(Json::as_bool),
            path,
            json,
        })
    }

    /// Values of all query heads.
    pub(super) fn q_dim(&self) -> u64 {
        u64::from(self.n_head) * u64::from(self.head_dim)
    }

    /// Values of all key heads.
    pub(super) fn kv_dim(&self) -> u64 {
        u64::from(self.n_head_kv) * u64::from(self.head_dim)
    }
}

struct Fields<'a> {
    path: &'a Path,
    json: &'a Map<String, Json>,
}

/// Names of methods in `quantization_config`, by what else stands there.
fn method(config: &Map<String, Json>) -> String {
    let text = |key| config.get(key).and_then(Json::as_str);
    let on = |key| config.get(key).and_then(Json::as_bool) == Some(true);
    match text("quant_method") {
        Some(name) => name.chars().take(64).collect(),
        None if on("load_in_4bit") || on("load_in_8bit") => "bitsandbytes".to_owned(),
        None => match text("quant_algo") {
            Some(name) => name.chars().take(64).collect(),
            None => "by a method without a name".to_owned(),
        },
    }
}

impl Fields<'_> {
    fn unsupported(&self, what: String) -> HfError {
        HfError::Unsupported {
            path: self.path.to_owned(),
            what,
            way_out: "splitrun would compute something else than the model does; choose another model",
        }
    }

    fn architecture(&self) -> Result<Arch, HfError> {
        let class = self.json.get("architectures").and_then(|a| a.get(0));
        let model_type = self.json.get("model_type").and_then(Json::as_str);
        let found = match (class.and_then(Json::as_str), model_type) {
            (Some(class), _) => class,
            (None, Some("llama")) => "LlamaForCausalLM",
            (None, Some("mistral")) => "MistralForCausalLM",
            (None, Some("qwen2")) => "Qwen2ForCausalLM",
            (None, Some(other)) => other,
            (None, None) => {
                return Err(HfError::field(self.path, "architectures", "is missing"));
            }
        };
        Arch::from_class(found).ok_or_else(|| HfError::Architecture {
            path: self.path.to_owned(),
            found: found.chars().take(64).collect(),
        })
    }

    fn quantised(&self) -> Result<(), HfError> {
        for key in ["quantization_config", "compression_config", "quantization"] {
            if let Some(Json::Object(config)) = self.json.get(key) {
                return Err(HfError::Quantised {
                    path: self.path.to_owned(),
                    method: method(config),
                });
            }
        }
        Ok(())
    }

    fn refuse_what_is_not_computed(&self) -> Result<(), HfError> {
        let act = self.json.get("hidden_act").and_then(Json::as_str);
        if let Some(act) = act.filter(|a| !matches!(*a, "silu" | "swish")) {
            let act: String = act.chars().take(64).collect();
            return Err(self.unsupported(format!("the activation `{act}` (hidden_act)")));
        }
        if self.json.get("is_causal").and_then(Json::as_bool) == Some(false) {
            return Err(self.unsupported("attention in both directions (is_causal)".to_owned()));
        }
        let part = self.number(self.json, "partial_rotary_factor")?;
        if let Some(part) = part.filter(|p| *p != 1.0) {
            let what = format!("rotating a part of each head (partial_rotary_factor {part})");
            return Err(self.unsupported(what));
        }
        Ok(())
    }

    /// A whole number from 1 to `max`; `None` when it is absent or null.
    fn whole(&self, key: &str, max: u32) -> Result<Option<u32>, HfError> {
        let value = match self.json.get(key) {
            None | Some(Json::Null) => return Ok(None),
            Some(value) => value,
        };
        let n = value.as_u64().and_then(|n| u32::try_from(n).ok());
        if let Some(n) = n.filter(|n| (1..=max).contains(n)) {
            return Ok(Some(n));
        }
        let shown: String = value.to_string().chars().take(64).collect();
        let why = format!("is {shown}, not a whole number in 1..={max}");
        Err(HfError::field(self.path, key, why))
    }

    /// A positive number; `None` when it is absent or null.
    fn number(&self, of: &Map<String, Json>, key: &str) -> Result<Option<f64>, HfError> {
        let value = match of.get(key) {
            None | Some(Json::Null) => return Ok(None),
            Some(value) => value,
        };
        // What is written is an f32; one that does not fit would become infinite or 0.
        let fits = |f: &f64| (*f as f32).is_finite() && *f as f32 > 0.0;
        if let Some(f) = value.as_f64().filter(fits) {
            return Ok(Some(f));
        }
        let shown: String = value.to_string().chars().take(64).collect();
        let why = format!("is {shown}, not a positive number");
        Err(HfError::field(self.path, key, why))
    }

    /// The base and the scaling.
    fn rope(&self) -> Result<(f64, Rope), HfError> {
        let empty = Map::new();
        let object = |key: &str| match self.json.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Object(o)) => Ok(Some(o)),
            Some(_) => Err(HfError::field(self.path, key, "is not an object")),
        };
        let scaling = match object("rope_parameters")? {
            Some(o) => o,
            None => object("rope_scaling")?.unwrap_or(&empty),
        };
        // Models with two kinds of layers give each its own; these have one.
        let scaling = match scaling.get("full_attention") {
            Some(Json::Object(o)) => o,
            _ => scaling,
        };
        let theta = match self.number(scaling, "rope_theta")? {
            Some(theta) => theta,
            None => self.number(self.json, "rope_theta")?.unwrap_or(10_000.0),
        };
        let name = ["rope_type", "type"].iter().find_map(|k| scaling.get(*k));
        let name = name.and_then(Json::as_str).unwrap_or("default");
        let factor = self.number(scaling, "factor")?;
        let or = |key: &str, default: f64| Ok(self.number(scaling, key)?.unwrap_or(default));
        let rope = match (name.to_lowercase().as_str(), factor) {
            // A factor that follows the length of the text is 1 up to the trained length.
            ("default" | "none" | "dynamic", _) => Rope::Plain,
            ("linear", Some(factor)) => Rope::Linear(factor as f32),
            ("llama3", factor) => Rope::Llama3(Llama3 {
                factor: factor.unwrap_or(8.0),
                low: or("low_freq_factor", 1.0)?,
                high: or("high_freq_factor", 4.0)?,
                context: or("original_max_position_embeddings", 8_192.0)?,
            }),
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(self.unsupported(format!("RoPE scaling `{name}`")));
            }
        };
        Ok((theta, rope))
    }
}

impl Llama3 {
    /// The factor of each frequency (of `head_dim / 2`), as llama.cpp's conversion computes it.
    pub(super) fn factors(&self, theta: f64, head_dim: u32) -> Vec<f32> {
        let (long, short) = (self.context / self.low, self.context / self.high);
        let one = |i: u32| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            // The system's power differs from machine to machine, and so would pair ids.
            let freq = 1.0 / libm::powf(theta as f32, exponent);
            let wave = f64::from(2.0 * std::f32::consts::PI / freq);
            if wave < short {
                1.0
            } else if wave > long {
                self.factor as f32
            } else {
                let smooth = (self.context / wave - self.low) / (self.high - self.low);
                (1.0 / ((1.0 - smooth) / self.factor + smooth)) as f32
            }
        };
        (0..head_dim / 2).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(change: &[(&str, Json)]) -> Result<Config, HfError> {
        let mut json = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 256,
            "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 320
        });
        for (key, value) in change {
            json[*key] = value.clone();
        }
        Config::read("config.json".into(), json)
    }

    #[track_caller]
    fn refused(change: &[(&str, Json)], word: &str) {
        let error = config(change).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn defaults_are_the_librarys() {
        let c = config(&[]).unwrap();
        assert_eq!((c.n_head_kv, c.head_dim, c.n_ctx), (4, 16, 2_048));
        assert_eq!((c.eps, c.theta, c.rope), (1e-6, 10_000.0, Rope::Plain));
        assert!(c.states_head_dim && c.tied.is_none());
        let qwen = config(&[("architectures", json!(["Qwen2ForCausalLM"]))]).unwrap();
        assert!(!qwen.states_head_dim && !qwen.arch.interleaves());
    }

    #[test]
    fn windows_count_where_the_library_has_them() {
        let window = |class: &str, on: bool, rows: u32| {
            let change = [
                ("architectures", json!([class])),
                ("max_position_embeddings", json!(2_048)),
                ("sliding_window", json!(rows)),
                ("use_sliding_window", json!(on)),
            ];
            config(&change).unwrap().window
        };
        assert_eq!(window("LlamaForCausalLM", true, 512), None);
        assert_eq!(window("MistralForCausalLM", false, 512), Some(512));
        assert_eq!(window("MistralForCausalLM", false, 4_096), None);
        assert_eq!(window("Qwen2ForCausalLM", false, 512), None);
        assert_eq!(window("Qwen2ForCausalLM", true, 512), Some(512));
        let mistral = [("architectures", json!(["MistralForCausalLM"]))];
        assert_eq!(config(&mistral).unwrap().window, None);
    }

    #[test]
    fn what_is_not_converted_is_named() {
        refused(&[("architectures", json!(["GemmaForCausalLM"]))], "Gemma");
        refused(&[("architectures", json!(["GemmaForCausalLM"]))], "Qwen2");
        for (config, name) in [
            (json!({"quant_method": "gptq", "bits": 4}), "gptq"),
            (json!({"quant_method": "awq"}), "awq"),
            (json!({"quant_method": "fp8"}), "fp8"),
            (json!({"load_in_4bit": true}), "bitsandbytes"),
        ] {
            refused(&[("quantization_config", config)], name);
        }
        refused(&[("hidden_act", json!("gelu"))], "gelu");
        refused(
            &[("rope_scaling", json!({"type": "yarn", "factor": 4}))],
            "yarn",
        );
        refused(&[("hidden_size", json!(-1))], "hidden_size");
        refused(&[("hidden_size", json!(66))], "num_attention_heads");
        refused(&[("rope_theta", json!("x"))], "rope_theta");
    }

    #[test]
    fn scaling_has_old_and_new_spellings() {
        let linear = json!({"type": "linear", "factor": 2});
        let c = config(&[("rope_scaling", linear)]).unwrap();
        assert_eq!(c.rope, Rope::Linear(2.0));
        let new = json!({"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32});
        let c = config(&[("rope_parameters", new)]).unwrap();
        assert_eq!(c.theta, 500_000.0);
        let Rope::Llama3(llama3) = c.rope else {
            panic!("{:?}", c.rope)
        };
        // Llama-3.2-1B: short waves keep their frequency, long ones are 32 times longer.
        let f = llama3.factors(c.theta, 64);
        assert_eq!((f.len(), f[0], f[31]), (32, 1.0, 32.0));
        assert!(f.windows(2).all(|w| w[0] <= w[1]));
        assert!(f.iter().any(|f| (1.5..30.0).contains(f)));
    }
}
