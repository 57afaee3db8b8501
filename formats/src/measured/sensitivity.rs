//! What types of weights and codecs of the boundary cost one model, in nats.
//!
//! Every figure is a mean Kullback-Leibler divergence per token, D(source ‖ changed), over the
//! text that the file names. The model of a whole plan is a sum: of the divergences of its
//! matrices, each taken to its type alone, times [`LayerSensitivity::additivity_of`] its layer, and of the
//! divergence of the codec at the cut.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{MeasuredError, MeasuredErrorKind as Kind, amount, value};
use super::file::{self, Form};
use crate::blocks::BlockType;
use crate::imatrix::KINDS;

/// The newest version of the file. The first has no [`LayerSensitivity::front`].
pub const SENSITIVITY_VERSION: u32 = 2;

/// The kind of an entry that is about all matrices of a layer together.
pub const WHOLE_LAYER: &str = "layer";

const FORM: Form = Form {
    name: "splitconv.sensitivity",
    version: SENSITIVITY_VERSION,
    maker: "`splitrun calibrate --sensitivity`",
};

/// The most layers of a model.
const MAX_LAYERS: u32 = 4096;
/// The most entries of each list.
const MAX_ENTRIES: usize = 200_000;
/// What many matrices cost together by the sum of their own figures: between these.
const ADDITIVITY: std::ops::RangeInclusive<f64> = 1e-3..=1e3;
/// Perplexities of a text: a text that says nothing new has no divergence to speak of.
const PERPLEXITY: std::ops::RangeInclusive<f64> = 1.01..=1e9;
/// The most codecs at one cut: the planner looks at every one with everything else.
const MAX_CODECS: usize = 64;

/// What was measured on one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerSensitivity {
    /// `splitconv.sensitivity`.
    pub format: String,
    /// [`SENSITIVITY_VERSION`].
    pub version: u32,
    /// `general.name` of the model, or its file's name.
    pub model: String,
    /// Layers of the model.
    pub n_layer: u32,
    /// Values of a boundary row.
    pub n_embd: u32,
    /// Values inside the feed-forward part.
    pub n_ff: u32,
    /// Tokens of the vocabulary.
    pub n_vocab: u32,
    /// The program that measured.
    pub build: String,
    /// The name of the text.
    pub text: String,
    /// Tokens scored.
    pub tokens: u64,
    /// The model's own perplexity where the text was measured; files of older builds have none.
    #[serde(default)]
    pub perplexity: Option<f64>,
    /// Whether only some figures were measured and the others fitted.
    pub quick: bool,
    /// The divergence of many matrices changed together by the sum of their own ones, as measured,
    /// and by what figures of few tokens are taken to more of the text; 1 when it was not.
    #[serde(default = "one")]
    pub additivity: f64,
    /// What holds of the first layers instead; `None` where they add up as all others do.
    #[serde(default)]
    pub front: Option<Front>,
    /// What types cost.
    pub types: Vec<TypeDamage>,
    /// What codecs cost, and how many bytes they take.
    #[serde(default)]
    pub codecs: Vec<CodecPoint>,
}

fn one() -> f64 {
    1.0
}

/// How the matrices of the first layers add up, as [`LayerSensitivity::additivity`] says it of others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Front {
    /// How many layers these are.
    pub layers: u32,
    /// Their divergence together by the sum of their own ones.
    pub additivity: f64,
}

/// One matrix of a layer, or all of a layer, taken to one type; all others as in the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypeDamage {
    /// The layer, from 0.
    pub layer: u32,
    /// One of [`KINDS`] (`attn_q` … `ffn_down`), or [`WHOLE_LAYER`].
    pub kind: String,
    /// GGML's name of the type, as `Q3_K`.
    pub block_type: String,
    /// The divergence, nats per token.
    pub kl: f64,
    /// Not measured, but fitted to what was.
    #[serde(default)]
    pub fitted: bool,
}

/// A codec at a cut, with weights as in the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodecPoint {
    /// Layers in front of the cut.
    pub cut: u32,
    /// As `--codec` takes it: `tcq:step=0.4`.
    pub codec: String,
    /// Bytes of a complete frame of one row, mean.
    pub bytes_per_token: f64,
    /// Bytes per row in frames of many (prompts), mean; `null` when it was not measured.
    #[serde(default)]
    pub prompt_bytes_per_token: Option<f64>,
    /// The divergence, nats per token.
    pub kl: f64,
    /// Not measured, but fitted to what was.
    #[serde(default)]
    pub fitted: bool,
}

impl LayerSensitivity {
    /// The value of the key `format`.
    pub const FORMAT: &'static str = FORM.name;

    /// Reads and checks a file; memory is bounded by [`super::MAX_BYTES`].
    ///
    /// # Errors
    /// [`MeasuredError`], naming the file and what in it is wrong.
    pub fn open(path: &Path) -> Result<Self, MeasuredError> {
        let found: Self = file::open(path, &FORM)?;
        found
            .check()
            .map_err(|kind| MeasuredError::new(path, kind))?;
        Ok(found)
    }

    /// Takes the divergences to a text of another perplexity, with whose logarithm they go
    /// (docs/planning.md). `false`, and all as it was, when the file does not say what perplexity
    /// they were measured at.
    pub fn read_at(&mut self, perplexity: f64) -> bool {
        let Some(own) = self.perplexity else {
            return false;
        };
        let factor = perplexity.ln() / own.ln();
        self.types.iter_mut().for_each(|t| t.kl *= factor);
        self.codecs.iter_mut().for_each(|c| c.kl *= factor);
        self.perplexity = Some(perplexity);
        true
    }

    /// By what figures of matrices of `layer` are multiplied where many are changed.
    pub fn additivity_of(&self, layer: u32) -> f64 {
        match self.front {
            Some(front) if layer < front.layers => front.additivity,
            _ => self.additivity,
        }
    }

    /// Whether a text can have this perplexity.
    pub fn is_perplexity(value: f64) -> bool {
        PERPLEXITY.contains(&value)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        file::text(self)
    }

    /// Checks that every figure can be one, that layers and cuts are the model's, and that
    /// nothing stands twice.
    ///
    /// # Errors
    /// What is wrong, by its key.
    pub fn check(&self) -> Result<(), Kind> {
        if !(1..=MAX_LAYERS).contains(&self.n_layer) {
            let why = format!("{} layers, expected 1 to {MAX_LAYERS}", self.n_layer);
            return Err(value("n_layer", why));
        }
        for (key, n) in [("types", self.types.len()), ("codecs", self.codecs.len())] {
            if n > MAX_ENTRIES {
                return Err(value(key, format!("{n} entries, more than {MAX_ENTRIES}")));
            }
        }
        if let Some(front) = self.front {
            if front.layers > self.n_layer {
                let why = format!("the model has {} layers", self.n_layer);
                return Err(value("front.layers", why));
            }
            if !ADDITIVITY.contains(&front.additivity) {
                let (low, high) = (ADDITIVITY.start(), ADDITIVITY.end());
                let why = format!("{} is not between {low} and {high}", front.additivity);
                return Err(value("front.additivity", why));
            }
        }
        if !ADDITIVITY.contains(&self.additivity) {
            let (low, high) = (ADDITIVITY.start(), ADDITIVITY.end());
            let why = format!("{} is not between {low} and {high}", self.additivity);
            return Err(value("additivity", why));
        }
        if let Some(p) = self.perplexity.filter(|p| !Self::is_perplexity(*p)) {
            let (low, high) = (PERPLEXITY.start(), PERPLEXITY.end());
            let why = format!("{p} is not between {low} and {high}");
            return Err(value("perplexity", why));
        }
        let mut seen = BTreeSet::new();
        for t in &self.types {
            let short = |s: &str| s.chars().take(20).collect::<String>();
            let key = format!(
                "types.{}.{}.{}",
                t.layer,
                short(&t.kind),
                short(&t.block_type)
            );
            if t.layer >= self.n_layer {
                return Err(value(key, format!("the model has {} layers", self.n_layer)));
            }
            if t.kind != WHOLE_LAYER && !KINDS.contains(&t.kind.as_str()) {
                let why = format!("the kind is none of {}, {WHOLE_LAYER}", KINDS.join(", "));
                return Err(value(key, why));
            }
            let ty: BlockType =
                (t.block_type.parse()).map_err(|_| value(&key, "no block type has this name"))?;
            amount(&key, t.kl)?;
            if !seen.insert((t.layer, t.kind.as_str(), ty.id())) {
                return Err(value(key, "it stands twice"));
            }
        }
        let mut seen = BTreeSet::new();
        let mut at_cut = std::collections::BTreeMap::<u32, usize>::new();
        for c in &self.codecs {
            let key = format!(
                "codecs.{}.{}",
                c.cut,
                c.codec.chars().take(60).collect::<String>()
            );
            if c.cut == 0 || c.cut >= self.n_layer {
                let why = format!(
                    "a model of {} layers has cuts 1 to {}",
                    self.n_layer,
                    self.n_layer - 1
                );
                return Err(value(key, why));
            }
            let n = at_cut.entry(c.cut).or_default();
            *n += 1;
            if *n > MAX_CODECS {
                let why = format!("more than {MAX_CODECS} codecs at this cut");
                return Err(value(&key, why));
            }
            amount(&key, c.kl)?;
            amount(&key, c.bytes_per_token)?;
            amount(&key, c.prompt_bytes_per_token.unwrap_or(0.0))?;
            if !seen.insert((c.cut, c.codec.as_str())) {
                return Err(value(key, "it stands twice"));
            }
        }
        Ok(())
    }
}
