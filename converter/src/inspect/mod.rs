//! `splitconv inspect`: a model as a person wants to see it, and what each cut would weigh.

mod text;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use formats::gguf::{Gguf, GgufSet, Metadata, TensorInfo, Value, ValueType};
use formats::pair::HalfInfo;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::cli::InspectArgs;
use crate::recipe::{self, Bits, Request, Spending};
use crate::report::{print_json, print_text};
use crate::source::{Place, Source};

/// What there is to say about a model, a shard or a half. Sizes are of tensor data unless they
/// are of a file.
#[derive(Debug, Serialize)]
pub struct Inspection {
    file: String,
    /// All files that belong to it.
    files: usize,
    file_bytes: usize,
    gguf_version: u32,
    alignment_bytes: usize,
    /// What stood in the way of the whole.
    note: Option<String>,
    #[serde(flatten)]
    facts: Facts,
    half: Option<Half>,
    metadata: serde_json::Map<String, Json>,
    tensor_count: usize,
    weights: u64,
    tensor_bytes: u64,
    bits_per_weight: f64,
    types: Vec<TypeSum>,
    layers: Vec<Layer>,
    /// What is in no layer.
    others: Vec<Tensor>,
    cuts: Vec<Cut>,
    tensors: Vec<Tensor>,
}

/// The sizes of the model as its metadata states them; what it does not state is absent.
#[derive(Debug, Default, Serialize)]
struct Facts {
    architecture: Option<String>,
    name: Option<String>,
    n_layer: Option<u64>,
    width: Option<u64>,
    feed_forward: Option<u64>,
    heads: Option<u64>,
    kv_heads: Option<u64>,
    context_length: Option<u64>,
    rope_base: Option<f32>,
    vocabulary: Option<u64>,
    tokenizer: Option<String>,
    pre_tokenizer: Option<String>,
    chat_template: bool,
    tied_head: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Half {
    role: &'static str,
    first_layer: u32,
    end_layer: u32,
    n_layer: u32,
    width: u32,
    pair_id: String,
    source_digest: String,
}

/// All tensors of one type.
#[derive(Debug, Serialize)]
struct TypeSum {
    r#type: &'static str,
    tensors: usize,
    weights: u64,
    bytes: u64,
    bits_per_weight: f64,
}

/// One layer.
#[derive(Debug, Serialize)]
struct Layer {
    #[serde(rename = "layer")]
    number: u32,
    weights: u64,
    bytes: u64,
    bits_per_weight: f64,
    /// The types of its matrices.
    types: Vec<&'static str>,
}

/// What the halves would weigh if the model were cut after `split` layers.
#[derive(Debug, Serialize)]
struct Cut {
    split: u32,
    /// As the file is.
    edge_bytes: u64,
    cloud_bytes: u64,
    /// As the recipe of the bits asked for would write them.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe_edge_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe_cloud_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
struct Tensor {
    name: String,
    r#type: &'static str,
    shape: Vec<u64>,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

/// Shows a file, all shards of a model, or a folder that holds one.
///
/// # Errors
/// When the file is no model, a half whose keys are damaged, or, with bits, a model that cannot
/// be cut.
pub fn run(args: &InspectArgs) -> Result<(), Box<dyn Error>> {
    let mut inspection = if Source::is_hugging_face(&args.file) {
        let source = Source::open(&args.file)?;
        let tensors: Vec<&TensorInfo> = source.tensors().collect();
        let mut found = gather(&args.file, source.metadata(), &tensors, None);
        found.files = source.stamps().len();
        found.note = Some("not a GGUF; metadata and types are those it is converted with".into());
        found.file_bytes = source.stamps().iter().map(|s| s.bytes as usize).sum();
        found
    } else {
        of_file(&args.file)?
    };
    if args.edge_bits.is_some() || args.cloud_bits.is_some() {
        with_recipe(&mut inspection, args)?;
    }
    if args.json {
        print_json(&inspection)
    } else {
        print_text(&text::text(&inspection, args.all))
    }
}

fn of_file(path: &Path) -> Result<Inspection, Box<dyn Error>> {
    let file = Gguf::open(path)?;
    let half =
        HalfInfo::from_metadata(file.metadata()).map_err(|e| format!("{}: {e}", path.display()))?;
    let shards = file.metadata().get("split.count").and_then(Value::as_u64);
    // A half is looked at by itself: its sibling may be on another machine.
    let sharded = half.is_none() && shards.is_some_and(|n| n > 1);
    let set = sharded.then(|| GgufSet::open(path));
    let (mut inspection, files) = if let Some(Ok(set)) = &set {
        let tensors: Vec<&TensorInfo> = set.tensors().map(|(_, t)| t).collect();
        (gather(path, set.metadata(), &tensors, None), set.files())
    } else {
        let tensors: Vec<&TensorInfo> = file.tensors().iter().collect();
        let found = gather(path, file.metadata(), &tensors, half.as_ref());
        (found, std::slice::from_ref(&file))
    };
    inspection.files = files.len();
    inspection.file_bytes = files.iter().map(Gguf::file_bytes).sum();
    inspection.gguf_version = file.version();
    inspection.alignment_bytes = file.alignment();
    if let Some(Err(e)) = set {
        inspection.note = Some(format!("this is one shard of a model: {e}"));
    }
    Ok(inspection)
}

fn per_weight(bytes: u64, weights: u64) -> f64 {
    if weights == 0 {
        0.0
    } else {
        bytes as f64 * 8.0 / weights as f64
    }
}

fn gather(
    path: &Path,
    metadata: &Metadata,
    tensors: &[&TensorInfo],
    half: Option<&HalfInfo>,
) -> Inspection {
    let shown: Vec<Tensor> = (tensors.iter().enumerate())
        .map(|(i, t)| Tensor {
            name: t.name.clone(),
            r#type: t.block_type.name(),
            shape: t.dims.clone(),
            bytes: t.bytes,
            digest: half
                .and_then(|h| h.tensor_digests.get(i))
                .map(ToString::to_string),
        })
        .collect();
    let (mut bytes, mut weights) = (0, 0);
    let mut types: BTreeMap<_, TypeSum> = BTreeMap::new();
    let mut layers: BTreeMap<u32, Layer> = BTreeMap::new();
    let mut others = Vec::new();
    for (t, shown) in tensors.iter().zip(&shown) {
        let (b, w) = (t.bytes as u64, t.weights());
        bytes += b;
        weights += w;
        let sum = types.entry(t.block_type).or_insert(TypeSum {
            r#type: t.block_type.name(),
            tensors: 0,
            weights: 0,
            bytes: 0,
            bits_per_weight: t.block_type.bits_per_weight(),
        });
        sum.tensors += 1;
        sum.weights += w;
        sum.bytes += b;
        let Some(number) = layer_of(&t.name) else {
            others.push(shown.clone());
            continue;
        };
        let layer = layers.entry(number).or_insert(Layer {
            number,
            weights: 0,
            bytes: 0,
            bits_per_weight: 0.0,
            types: Vec::new(),
        });
        layer.weights += w;
        layer.bytes += b;
        let name = t.block_type.name();
        if t.dims.len() > 1 && !layer.types.contains(&name) {
            layer.types.push(name);
        }
    }
    let mut layers: Vec<Layer> = layers.into_values().collect();
    for layer in &mut layers {
        layer.bits_per_weight = per_weight(layer.bytes, layer.weights);
    }
    let mut types: Vec<TypeSum> = types.into_values().collect();
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    let facts = facts(metadata, tensors, half.is_none());
    Inspection {
        file: path.display().to_string(),
        files: 1,
        file_bytes: bytes as usize,
        gguf_version: 0,
        alignment_bytes: 0,
        note: None,
        half: half.map(|h| Half {
            role: h.role.name(),
            first_layer: h.first_layer,
            end_layer: h.end_layer,
            n_layer: h.contract.n_layer,
            width: h.contract.width,
            pair_id: h.contract.pair_id.to_string(),
            source_digest: h.source_digest.to_string(),
        }),
        metadata: metadata
            .iter()
            .map(|(k, v)| (k.to_owned(), as_json(v)))
            .collect(),
        tensor_count: tensors.len(),
        weights,
        tensor_bytes: bytes,
        bits_per_weight: per_weight(bytes, weights),
        types,
        cuts: cuts(&layers, tensors, &facts, half.is_some()),
        layers,
        others,
        facts,
        tensors: shown,
    }
}

/// The layer that a tensor belongs to, by its name.
fn layer_of(name: &str) -> Option<u32> {
    let (number, _) = name.strip_prefix("blk.")?.split_once('.')?;
    number.parse().ok()
}

fn facts(metadata: &Metadata, tensors: &[&TensorInfo], whole: bool) -> Facts {
    let text = |key: &str| {
        let value = metadata.get(key).and_then(Value::as_str);
        value.map(|s| s.chars().take(200).collect::<String>())
    };
    let architecture = text("general.architecture");
    let arch = architecture.clone().unwrap_or_default();
    let own = |key: &str| metadata.get(&format!("{arch}.{key}"));
    let number = |key: &str| own(key).and_then(Value::as_u64);
    let tokens = metadata.get("tokenizer.ggml.tokens");
    let vocabulary = tokens.and_then(Value::as_array).map(|t| t.len() as u64);
    let has = |name: &str| tensors.iter().any(|t| t.name == name);
    Facts {
        name: text("general.name"),
        n_layer: number("block_count"),
        width: number("embedding_length"),
        feed_forward: number("feed_forward_length"),
        heads: number("attention.head_count"),
        kv_heads: number("attention.head_count_kv").or_else(|| number("attention.head_count")),
        context_length: number("context_length"),
        rope_base: own("rope.freq_base").and_then(Value::as_f32),
        vocabulary: vocabulary.or_else(|| number("vocab_size")),
        tokenizer: text("tokenizer.ggml.model"),
        pre_tokenizer: text("tokenizer.ggml.pre"),
        chat_template: metadata.get("tokenizer.chat_template").is_some(),
        tied_head: (whole && has("token_embd.weight")).then(|| !has("output.weight")),
        architecture,
    }
}

/// What each cut weighs, of a whole model with all its layers.
fn cuts(layers: &[Layer], tensors: &[&TensorInfo], facts: &Facts, is_half: bool) -> Vec<Cut> {
    let n = layers.len();
    let complete = layers.iter().zip(0..).all(|(l, i)| l.number == i);
    if is_half || !complete || facts.n_layer != Some(n as u64) {
        return Vec::new();
    }
    let (mut edge, mut cloud): (u64, u64) = (0, layers.iter().map(|l| l.bytes).sum());
    for t in tensors {
        let bytes = t.bytes as u64;
        match Place::of(&t.name) {
            Some(Place::Embedding) => {
                edge += bytes;
                if facts.tied_head == Some(true) {
                    cloud += bytes;
                }
            }
            Some(Place::RopeFreqs) => edge += bytes,
            _ if layer_of(&t.name).is_some() => {}
            _ => cloud += bytes,
        }
    }
    let mut cuts = Vec::with_capacity(n);
    for (layer, split) in layers.iter().zip(1..) {
        edge += layer.bytes;
        cloud -= layer.bytes;
        if (split as usize) < n {
            cuts.push(Cut {
                split,
                edge_bytes: edge,
                cloud_bytes: cloud,
                recipe_edge_bytes: None,
                recipe_cloud_bytes: None,
            });
        }
    }
    cuts
}

/// Adds to each cut what the recipe would make of it.
fn with_recipe(inspection: &mut Inspection, args: &InspectArgs) -> Result<(), Box<dyn Error>> {
    let source = Source::open(&args.file)?;
    for cut in &mut inspection.cuts {
        let plan = recipe::plan(
            &source,
            &Request {
                effort: formats::blocks::Effort::Normal,
                split: cut.split,
                edge_bits: args.edge_bits.unwrap_or(Bits::EDGE),
                cloud_bits: args.cloud_bits.unwrap_or(Bits::CLOUD),
                edge_type: None,
                cloud_type: None,
                tensor_types: Vec::new(),
                spending: Spending::default(),
                edge_budget: None,
            },
            None,
            1,
        )?;
        cut.recipe_edge_bytes = Some(plan.edge.bytes);
        cut.recipe_cloud_bytes = Some(plan.cloud.bytes);
    }
    Ok(())
}

/// A value as JSON. Arrays are only counted: a vocabulary is no answer to "what is this file".
fn as_json(value: &Value) -> Json {
    if let Some(array) = value.as_array() {
        return json!({"array_of": array.elem_type().to_string(), "length": array.len()});
    }
    match value.value_type() {
        ValueType::String => value
            .as_str()
            .map_or_else(|| json!(value.to_string()), |s| json!(s)),
        ValueType::Bool => json!(value.as_bool()),
        // Infinities and NaN have no JSON number.
        ValueType::F32 | ValueType::F64 => match value.as_f32() {
            Some(f) if f.is_finite() => json!(f),
            _ => json!(value.to_string()),
        },
        ValueType::U64 => json!(value.as_u64()),
        _ => json!(value.as_i64()),
    }
}
