//! A model in the Hugging Face layout: `config.json`, safetensors, a tokenizer. It is read as
//! the GGUF that llama.cpp's conversion would make of it, without making one.
//!
//! | module | what it reads |
//! |---|---|
//! | `folder`, `bounded` | the files, within limits |
//! | `config` | config.json: architecture, sizes, RoPE |
//! | `tensors`, `names` | safetensors; what each tensor is called in a GGUF |
//! | `general`, `card` | what the model is called; the head of README.md |
//! | `vocab`, `tokenizer_json`, `sentencepiece`, `pretok`, `special` | the tokenizer |

mod bounded;
mod card;
mod config;
mod error;
mod folder;
mod general;
mod names;
mod pretok;
mod sentencepiece;
mod special;
mod tensors;
mod tokenizer_json;
mod vocab;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use formats::blocks::{BlockType, dequantize_row};
use formats::gguf::{Metadata, TensorInfo, Value};
use serde_json::Value as Json;

use super::rows::{RowOrder, Rows};
use card::Card;
use config::{Arch, Config, Rope};
use folder::{CONFIG, Folder, GENERATION_CONFIG};
use names::{EMBEDDING, Fate, HEAD, Known, LAYER};
use tensors::{Checkpoint, Stored};

pub use error::HfError;
pub(super) use folder::is_folder;

/// Tokens of a vocabulary at most.
const MAX_VOCAB: u64 = 1 << 24;

/// A Hugging Face model, described as a GGUF.
#[derive(Debug)]
pub(super) struct Model {
    folder: Folder,
    checkpoint: Checkpoint,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Tensor {
    info: TensorInfo,
    origin: Origin,
}

/// Where the bytes of a tensor come from.
#[derive(Debug)]
enum Origin {
    /// A file, read in this order.
    Stored(Stored, RowOrder),
    /// Made here: small ones.
    Made(Vec<u8>),
}

impl Model {
    /// Opens the folder that `path` is or lies in. Tensor data is not read, but for vectors that
    /// become F32.
    pub(super) fn open(path: &Path) -> Result<Self, HfError> {
        let folder = Folder::new(path);
        let Some(json) = folder.json(CONFIG)? else {
            return Err(HfError::MissingFile {
                folder: folder.path().to_owned(),
                what: CONFIG,
                way_out: "name a folder in the Hugging Face layout, or a GGUF file",
            });
        };
        let config = Config::read(folder.join(CONFIG), json)?;
        let ignored = |name: &str| names::fate(name, &config, 0) == Fate::Ignored;
        let checkpoint = Checkpoint::open(folder.weights()?, ignored)?;
        let n_vocab = n_vocab(&config, &checkpoint)?;
        let (tensors, total) = place(&folder, &config, &checkpoint, n_vocab)?;
        let mut metadata = Metadata::new();
        keys(&folder, &config, &tensors, total, &mut metadata)?;
        let mut notes = vocab::write(&folder, &config, n_vocab as usize, &mut metadata)?;
        notes.extend(config.window.map(|rows| {
            format!(
                "{}: attention looks back at all rows, not only at `sliding_window` {rows}, as in llama.cpp: texts longer than that are computed otherwise than by the transformers library",
                config.path.display()
            )
        }));
        let by_name = tensors.iter().enumerate();
        let by_name = by_name.map(|(i, t)| (t.info.name.clone(), i)).collect();
        Ok(Self {
            folder,
            checkpoint,
            metadata,
            tensors,
            by_name,
            notes,
        })
    }

    /// What the stem of the pair's names is.
    pub(super) fn stem(&self) -> String {
        self.folder.name()
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What could not be carried over.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter().map(|t| &t.info)
    }

    pub(super) fn tensor(&self, name: &str) -> Option<(&TensorInfo, Rows<'_>)> {
        let t = &self.tensors[*self.by_name.get(name)?];
        let data = match &t.origin {
            Origin::Stored(stored, order) => self.checkpoint.rows(stored).ordered(*order),
            Origin::Made(bytes) => Rows::in_memory(self.folder.path(), bytes, t.info.rows()),
        };
        Some((&t.info, data))
    }

    /// The files that hold the weights.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, &File)> {
        let shards = self.checkpoint.shards.iter();
        shards.map(|s| (s.path.as_path(), &s.file))
    }

    /// The bytes of tensors that stand in no file as they are handed out.
    pub(super) fn made(&self) -> impl Iterator<Item = &[u8]> {
        self.tensors.iter().filter_map(|t| match &t.origin {
            Origin::Made(bytes) => Some(bytes.as_slice()),
            Origin::Stored(..) => None,
        })
    }
}

/// Tokens of the vocabulary: what config.json says, else the rows of the embedding.
fn n_vocab(config: &Config, checkpoint: &Checkpoint) -> Result<u64, HfError> {
    if let Some(n) = config.n_vocab {
        return Ok(u64::from(n));
    }
    let found = [EMBEDDING, HEAD]
        .iter()
        .find_map(|n| checkpoint.tensors.get(*n));
    let rows = found.and_then(|t| t.shape.first().copied());
    rows.filter(|n| (1..=MAX_VOCAB).contains(n))
        .ok_or_else(|| HfError::field(&config.path, "vocab_size", "is missing"))
}

/// The tensors in the order of a model, and the number of weights.
fn place(
    folder: &Folder,
    config: &Config,
    checkpoint: &Checkpoint,
    n_vocab: u64,
) -> Result<(Vec<Tensor>, u64), HfError> {
    // A checkpoint of a tied model may hold the one matrix under the head's name.
    let head_only = config.tied == Some(true) && !checkpoint.tensors.contains_key(EMBEDDING);
    let mut found: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, stored) in &checkpoint.tensors {
        let used = if head_only && name == HEAD {
            EMBEDDING
        } else {
            name
        };
        match names::fate(used, config, n_vocab) {
            Fate::Ignored => {}
            Fate::Used(known) => {
                let tensor = one(name, known, stored, config, checkpoint)?;
                found.insert(tensor.info.name.clone(), tensor);
            }
            Fate::Unknown => {
                return Err(HfError::UnknownTensor {
                    path: checkpoint.file(stored).to_owned(),
                    tensor: name.clone(),
                    arch: config.arch.gguf(),
                });
            }
        }
    }
    let mut tensors = Vec::with_capacity(found.len() + 1);
    let mut missing: Option<(String, usize)> = None;
    let mut take = |hf: &str, needed: bool| {
        let Fate::Used(known) = names::fate(hf, config, n_vocab) else {
            return;
        };
        match found.remove(&known.name) {
            Some(tensor) => tensors.push(tensor),
            None if needed => match &mut missing {
                Some((_, others)) => *others += 1,
                None => missing = Some((hf.to_owned(), 0)),
            },
            None => {}
        }
    };
    take(EMBEDDING, true);
    // A claim of more layers than there are tensors ends at these.
    let have = checkpoint.tensors.len() as u32;
    for layer in 0..config.n_layer.min(have.saturating_add(1)) {
        for part in LAYER {
            take(&format!("model.layers.{layer}.{part}.weight"), true);
            let bias = config.biases
                && matches!(
                    part,
                    "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj"
                );
            take(&format!("model.layers.{layer}.{part}.bias"), bias);
        }
    }
    take("model.norm.weight", true);
    // Where nothing is said, a model without a head is tied.
    take(HEAD, config.tied == Some(false));
    if let Some((first, others)) = missing {
        return Err(HfError::MissingTensor {
            folder: folder.path().to_owned(),
            first,
            others,
        });
    }
    if let Rope::Llama3(scaling) = config.rope {
        let factors = scaling.factors(config.theta, config.head_dim);
        let bytes = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        let dims = vec![factors.len() as u64];
        tensors.insert(1, made("rope_freqs.weight", dims, bytes));
    }
    let total = tensors.iter().map(|t| t.info.weights()).sum();
    Ok((tensors, total))
}

fn made(name: &str, dims: Vec<u64>, bytes: Vec<u8>) -> Tensor {
    Tensor {
        info: TensorInfo {
            name: name.to_owned(),
            dims,
            block_type: BlockType::F32,
            start: 0,
            bytes: bytes.len(),
        },
        origin: Origin::Made(bytes),
    }
}

/// One stored tensor as it is handed out.
fn one(
    hf: &str,
    known: Known,
    stored: &Stored,
    config: &Config,
    checkpoint: &Checkpoint,
) -> Result<Tensor, HfError> {
    if stored.shape != known.shape {
        return Err(HfError::Shape {
            path: checkpoint.file(stored).to_owned(),
            tensor: hf.to_owned(),
            found: stored.shape.clone(),
            wanted: known.shape,
        });
    }
    let order = if known.interleave {
        RowOrder::Interleaved {
            head_dim: config.head_dim as usize,
        }
    } else {
        RowOrder::Stored
    };
    let dims: Vec<u64> = known.shape.iter().rev().copied().collect();
    let vector = dims.len() < 2;
    if vector && (stored.dtype != BlockType::F32 || known.interleave) {
        // Vectors are F32 in a GGUF. Their length is one of the model's sizes by now.
        let values = floats(hf, stored, checkpoint)?;
        let order = |i| values.get(order.stored(i)).copied().unwrap_or_default();
        let bytes = (0..values.len()).flat_map(|i| order(i).to_le_bytes());
        return Ok(made(&known.name, dims, bytes.collect()));
    }
    Ok(Tensor {
        info: TensorInfo {
            name: known.name,
            dims,
            block_type: stored.dtype,
            start: stored.range.start,
            bytes: stored.range.len(),
        },
        origin: Origin::Stored(stored.clone(), order),
    })
}

/// The values of a vector.
fn floats(hf: &str, stored: &Stored, checkpoint: &Checkpoint) -> Result<Vec<f32>, HfError> {
    let path = checkpoint.file(stored);
    let n = stored.shape.iter().product::<u64>();
    let bytes = checkpoint.rows(stored).all();
    let bytes = bytes.map_err(|e| HfError::io(path, e))?;
    let mut values = vec![0.0; n as usize];
    dequantize_row(stored.dtype, &bytes, &mut values).map_err(|e| HfError::Safetensors {
        path: path.to_owned(),
        why: format!("tensor `{hf}`: {e}"),
    })?;
    Ok(values)
}

/// Writes everything but the vocabulary.
fn keys(
    folder: &Folder,
    config: &Config,
    tensors: &[Tensor],
    total: u64,
    meta: &mut Metadata,
) -> Result<(), HfError> {
    let arch = config.arch.gguf();
    meta.set("general.architecture", Value::string(arch));
    meta.set("general.type", Value::string("model"));
    if let Some(Json::Object(generation)) = folder.json(GENERATION_CONFIG)? {
        general::sampling(&generation, meta);
    }
    let given = config.json.get("_name_or_path").and_then(Json::as_str);
    let given = given.filter(|g| !g.is_empty());
    let card = Card::read(folder)?;
    general::names(&card, given, &folder.name(), total, meta);
    card.write(total, meta);
    let mut set = |key: &str, value: Value| meta.set(&format!("{arch}.{key}"), value);
    set("block_count", Value::u32(config.n_layer));
    set("context_length", Value::u32(config.n_ctx));
    set("embedding_length", Value::u32(config.n_embd));
    set("feed_forward_length", Value::u32(config.n_ff));
    set("attention.head_count", Value::u32(config.n_head));
    set("attention.head_count_kv", Value::u32(config.n_head_kv));
    if let Rope::Linear(factor) = config.rope {
        set("rope.scaling.type", Value::string("linear"));
        set("rope.scaling.factor", Value::f32(factor));
    }
    set("rope.freq_base", Value::f32(config.theta as f32));
    set("attention.layer_norm_rms_epsilon", Value::f32(config.eps));
    if config.states_head_dim {
        set("attention.key_length", Value::u32(config.head_dim));
        set("attention.value_length", Value::u32(config.head_dim));
    }
    if config.arch != Arch::Qwen2 {
        if let Some(n) = config.n_vocab {
            set("vocab_size", Value::u32(n));
        }
        set("rope.dimension_count", Value::u32(config.head_dim));
    }
    let matrix = tensors.iter().find(|t| t.info.dims.len() > 1);
    let file_type = match matrix.map(|t| t.info.block_type) {
        Some(BlockType::BF16) => 32,
        Some(BlockType::F16) => 1,
        _ => 0,
    };
    meta.set("general.file_type", Value::u32(file_type));
    meta.set("general.quantization_version", Value::u32(2));
    Ok(())
}
