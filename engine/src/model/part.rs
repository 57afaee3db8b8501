//! The tensors of one layer range, as views into the memory map.

use std::ops::Range;
use std::sync::Arc;

use formats::blocks::{self, BlockType};
use formats::gguf::GgufSet;

use super::hparams::HParams;
use super::load::{ModelError, read_hparams};

/// A weight matrix in the map: `rows × cols`, each row whole blocks.
#[derive(Clone, Debug)]
pub struct Tensor {
    set: Arc<GgufSet>,
    file: usize,
    range: Range<usize>,
    /// GGUF name.
    pub name: String,
    /// Block type.
    pub block_type: BlockType,
    /// Weights in a row (inputs).
    pub cols: usize,
    /// Rows (outputs).
    pub rows: usize,
}

impl Tensor {
    /// All bytes.
    pub fn data(&self) -> &[u8] {
        self.set.files()[self.file].bytes(self.range.clone())
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.range.len() / self.rows.max(1)
    }
}

/// The weights of one layer.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // GGUF's own names
pub struct LayerTensors {
    pub attn_norm: Vec<f32>,
    pub attn_q: Tensor,
    pub attn_k: Tensor,
    pub attn_v: Tensor,
    pub attn_output: Tensor,
    pub ffn_norm: Vec<f32>,
    pub ffn_gate: Tensor,
    pub ffn_up: Tensor,
    pub ffn_down: Tensor,
}

/// A range of layers, with the embedding when it starts at the first and the head when it ends
/// at the last.
#[derive(Clone, Debug)]
pub struct ModelPart {
    /// The whole model's shape.
    pub hparams: HParams,
    /// The layers here.
    pub layers: Range<usize>,
    /// Their weights, in order.
    pub blocks: Vec<LayerTensors>,
    /// Token embedding, when layer 0 is here.
    pub token_embd: Option<Tensor>,
    /// Final norm and head, when the last layer is here.
    pub head: Option<(Vec<f32>, Tensor)>,
}

impl ModelPart {
    /// Finds and checks the tensors of `layers` in `set`; weights are not read, only norms.
    ///
    /// # Errors
    /// When a tensor is missing, has a wrong shape, or is one this engine would ignore.
    pub fn load(set: &Arc<GgufSet>, layers: Range<usize>) -> Result<Self, ModelError> {
        let hparams = read_hparams(set)?;
        let (width, ff) = (hparams.n_embd, hparams.n_ff);
        let (q, kv) = (hparams.n_head * hparams.head_dim, hparams.kv_width());
        let loader = Loader { set };
        if layers.is_empty() || layers.end > hparams.n_layer {
            return Err(loader.unsupported(format!(
                "the layer range {}..{} of a model with {} layers",
                layers.start, layers.end, hparams.n_layer
            )));
        }
        loader.refuse_unknown(&layers)?;
        let mut blocks = Vec::with_capacity(layers.len());
        for l in layers.clone() {
            let name = |part: &str| format!("blk.{l}.{part}.weight");
            blocks.push(LayerTensors {
                attn_norm: loader.vector(&name("attn_norm"), width)?,
                attn_q: loader.matrix(&name("attn_q"), width, q)?,
                attn_k: loader.matrix(&name("attn_k"), width, kv)?,
                attn_v: loader.matrix(&name("attn_v"), width, kv)?,
                attn_output: loader.matrix(&name("attn_output"), q, width)?,
                ffn_norm: loader.vector(&name("ffn_norm"), width)?,
                ffn_gate: loader.matrix(&name("ffn_gate"), width, ff)?,
                ffn_up: loader.matrix(&name("ffn_up"), width, ff)?,
                ffn_down: loader.matrix(&name("ffn_down"), ff, width)?,
            });
        }
        let token_embd = if layers.start == 0 {
            Some(loader.matrix("token_embd.weight", width, hparams.n_vocab)?)
        } else {
            None
        };
        let head = if layers.end == hparams.n_layer {
            // A tied model has no output.weight: the embedding serves.
            let name = match set.find("output.weight") {
                Some(_) => "output.weight",
                None => "token_embd.weight",
            };
            Some((
                loader.vector("output_norm.weight", width)?,
                loader.matrix(name, width, hparams.n_vocab)?,
            ))
        } else {
            None
        };
        Ok(Self {
            hparams,
            layers,
            blocks,
            token_embd,
            head,
        })
    }

    /// Bytes of weights that one decoded token reads (embedding rows apart).
    pub fn weight_bytes(&self) -> usize {
        let layer = |b: &LayerTensors| {
            [
                &b.attn_q,
                &b.attn_k,
                &b.attn_v,
                &b.attn_output,
                &b.ffn_gate,
                &b.ffn_up,
                &b.ffn_down,
            ]
            .iter()
            .map(|t| t.range.len())
            .sum::<usize>()
        };
        self.blocks.iter().map(layer).sum::<usize>()
            + self.head.as_ref().map_or(0, |(_, t)| t.range.len())
    }
}

struct Loader<'a> {
    set: &'a Arc<GgufSet>,
}

impl Loader<'_> {
    fn find(&self, name: &str, want: &[usize]) -> Result<Tensor, ModelError> {
        let Some((file, t)) = self.set.find(name) else {
            return Err(ModelError::MissingTensor {
                path: self.set.files()[0].path().to_owned(),
                tensor: name.to_owned(),
            });
        };
        let want: Vec<u64> = want.iter().map(|d| *d as u64).collect();
        let mut found = t.dims.clone();
        while found.len() > want.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != want {
            return Err(ModelError::Shape {
                path: self.set.files()[file].path().to_owned(),
                tensor: name.to_owned(),
                found,
                want,
            });
        }
        Ok(Tensor {
            set: Arc::clone(self.set),
            file,
            range: t.start..t.start + t.bytes,
            name: name.to_owned(),
            block_type: t.block_type,
            cols: t.row_len(),
            rows: t.rows(),
        })
    }

    fn matrix(&self, name: &str, cols: usize, rows: usize) -> Result<Tensor, ModelError> {
        self.find(name, &[cols, rows])
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let t = self.find(name, &[len])?;
        let mut v = vec![0.0; len];
        blocks::dequantize_row(t.block_type, t.data(), &mut v)
            .map_err(|e| self.unsupported(format!("tensor `{name}`: {e}")))?;
        Ok(v)
    }

    fn unsupported(&self, what: String) -> ModelError {
        ModelError::Unsupported {
            path: self.set.files()[0].path().to_owned(),
            what,
        }
    }

    /// A tensor that we would not use (a bias, say) would change the text silently.
    fn refuse_unknown(&self, layers: &Range<usize>) -> Result<(), ModelError> {
        const KNOWN: [&str; 9] = [
            "attn_norm.weight",
            "attn_q.weight",
            "attn_k.weight",
            "attn_v.weight",
            "attn_output.weight",
            "ffn_norm.weight",
            "ffn_gate.weight",
            "ffn_up.weight",
            "ffn_down.weight",
        ];
        for (_, t) in self.set.tensors() {
            let known = match t.name.strip_prefix("blk.").and_then(|r| r.split_once('.')) {
                Some((n, part)) => {
                    n.parse::<usize>().is_ok_and(|n| !layers.contains(&n))
                        || KNOWN.contains(&part)
                        // Old files carry the inverse frequencies that the base implies.
                        || matches!(part, "attn_rot_embd" | "attn_rot_embd.weight")
                }
                None => matches!(
                    t.name.as_str(),
                    "token_embd.weight"
                        | "output.weight"
                        | "output_norm.weight"
                        | "rope_freqs.weight"
                ),
            };
            if !known {
                return Err(self.unsupported(format!("tensor `{}`", t.name)));
            }
        }
        Ok(())
    }
}
