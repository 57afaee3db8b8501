//! The tensors of one layer range, as views into the memory map, and copies of them for kernels.

use std::ops::Range;
use std::sync::Arc;

use formats::blocks::{self, BlockType};
use formats::gguf::GgufSet;
use formats::model::{HParams, ModelFault};
use memmap2::Mmap;

use super::load::{ModelError, read_hparams};

/// Where the bytes of a tensor are.
#[derive(Clone, Debug)]
enum Bytes {
    Mapped {
        set: Arc<GgufSet>,
        file: usize,
        range: Range<usize>,
    },
    Owned(Arc<[u8]>),
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Mapped { range, .. } => range.len(),
            Self::Owned(bytes) => bytes.len(),
        }
    }
}

/// The rows of a matrix in another order, for kernels that read several at once: *tiles* of so many rows, the
/// last filled up with zeros.
#[derive(Clone, Debug)]
pub(crate) struct Tiles {
    /// Rows of a tile.
    pub(crate) rows: usize,
    memory: Arc<Mmap>,
    range: Range<usize>,
}

impl Tiles {
    /// Tiles of `rows` rows, the bytes `range` of `memory`.
    pub(crate) fn new(rows: usize, memory: &Arc<Mmap>, range: Range<usize>) -> Self {
        Self {
            rows,
            memory: Arc::clone(memory),
            range,
        }
    }

    /// All tiles.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }
}

/// A weight matrix, in the map unless it was changed, and maybe in [`Tiles`] besides: `rows × cols`, each row whole blocks.
#[derive(Clone, Debug)]
pub struct Tensor {
    bytes: Bytes,
    tiles: Option<Tiles>,
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
    /// A matrix of its own, not of a file; `bytes` are its rows.
    pub(crate) fn owned(
        name: &str,
        block_type: BlockType,
        rows: usize,
        cols: usize,
        bytes: Vec<u8>,
    ) -> Self {
        assert_eq!(
            block_type.row_bytes(cols).map(|n| n * rows),
            Some(bytes.len()),
            "{name}: not {rows} rows of {cols}"
        );
        Self {
            bytes: Bytes::Owned(bytes.into()),
            tiles: None,
            name: name.to_owned(),
            block_type,
            cols,
            rows,
        }
    }

    /// All bytes.
    pub fn data(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { set, file, range } => set.files()[*file].bytes(range.clone()),
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The same rows in tiles, if somebody [laid](Self::lay) them so.
    pub(crate) fn tiles(&self) -> Option<&Tiles> {
        self.tiles.as_ref()
    }

    /// Keeps `tiles`, which hold the same rows.
    pub(crate) fn lay(&mut self, tiles: Tiles) {
        self.tiles = Some(tiles);
    }

    /// Lets the system drop the pages of rows `rows` of a mapped matrix: who has copied them needs them no
    /// more.
    pub(crate) fn release(&self, rows: Range<usize>) {
        if let Bytes::Mapped { set, file, range } = &self.bytes {
            let at = |row: usize| range.start + row.min(self.rows) * self.row_bytes();
            set.files()[*file].release(at(rows.start)..at(rows.end));
        }
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.bytes.len() / self.rows.max(1)
    }

    /// The same matrix with other weights: `bytes` are its `rows × cols` values as little-endian
    /// f32. `None` when they are not as many.
    pub(crate) fn with_values(&self, bytes: Vec<u8>) -> Option<Self> {
        let len = self.rows.checked_mul(self.cols)?.checked_mul(4)?;
        (bytes.len() == len).then(|| Self {
            bytes: Bytes::Owned(bytes.into()),
            tiles: None,
            name: self.name.clone(),
            block_type: BlockType::F32,
            ..*self
        })
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
    /// Added to the products with `attn_q`, one value per output.
    pub attn_q_bias: Option<Vec<f32>>,
    pub attn_k_bias: Option<Vec<f32>>,
    pub attn_v_bias: Option<Vec<f32>>,
    pub attn_output: Tensor,
    pub ffn_norm: Vec<f32>,
    pub ffn_gate: Tensor,
    pub ffn_up: Tensor,
    pub ffn_down: Tensor,
}

impl LayerTensors {
    /// Its matrices, to lay them out differently.
    pub(crate) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        [
            &mut self.attn_q,
            &mut self.attn_k,
            &mut self.attn_v,
            &mut self.attn_output,
            &mut self.ffn_gate,
            &mut self.ffn_up,
            &mut self.ffn_down,
        ]
        .into_iter()
    }

    /// Its matrices, in the order in which rows meet them.
    pub fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        [
            &self.attn_q,
            &self.attn_k,
            &self.attn_v,
            &self.attn_output,
            &self.ffn_gate,
            &self.ffn_up,
            &self.ffn_down,
        ]
        .into_iter()
    }
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
    /// Finds and checks the tensors of `layers` in `set`; weights are not read, only norms and biases.
    ///
    /// # Errors
    /// When a tensor is missing, has a wrong shape, or is one this engine would ignore.
    pub fn load(set: &Arc<GgufSet>, layers: Range<usize>) -> Result<Self, ModelError> {
        let hparams = read_hparams(set)?;
        let (width, ff) = (hparams.n_embd, hparams.n_ff);
        let (q, kv) = (hparams.q_width(), hparams.kv_width());
        let loader = Loader {
            set,
            hparams: &hparams,
        };
        if layers.is_empty() || layers.end > hparams.n_layer {
            let what = format!(
                "the layer range {}..{} of a model with {} layers",
                layers.start, layers.end, hparams.n_layer
            );
            return Err(ModelError::unsupported(set, what));
        }
        loader.refuse_unknown(&layers)?;
        let mut blocks = Vec::with_capacity(layers.len());
        for l in layers.clone() {
            let name = |part: &str| format!("blk.{l}.{part}.weight");
            let bias = |part: &str, len| loader.bias(&format!("blk.{l}.{part}.bias"), len);
            blocks.push(LayerTensors {
                attn_norm: loader.vector(&name("attn_norm"), width)?,
                attn_q: loader.matrix(&name("attn_q"), width, q)?,
                attn_k: loader.matrix(&name("attn_k"), width, kv)?,
                attn_v: loader.matrix(&name("attn_v"), width, kv)?,
                attn_q_bias: bias("attn_q", q)?,
                attn_k_bias: bias("attn_k", kv)?,
                attn_v_bias: bias("attn_v", kv)?,
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

    /// The matrices that one decoded token meets: those of the layers, and the head.
    pub fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.blocks.iter().flat_map(LayerTensors::matrices);
        layers.chain(self.head.iter().map(|(_, t)| t))
    }

    /// [`matrices`](Self::matrices), to lay them out differently.
    pub(crate) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let layers = self.blocks.iter_mut().flat_map(LayerTensors::matrices_mut);
        layers.chain(self.head.iter_mut().map(|(_, t)| t))
    }

    /// Bytes of weights that one decoded token reads (embedding rows apart).
    pub fn weight_bytes(&self) -> usize {
        self.matrices().map(|t| t.bytes.len()).sum()
    }
}

struct Loader<'a> {
    set: &'a Arc<GgufSet>,
    hparams: &'a HParams,
}

impl Loader<'_> {
    fn fault(&self, fault: ModelFault) -> ModelError {
        ModelError::new(self.set, fault)
    }

    fn find(&self, name: &str, want: &[usize]) -> Result<Tensor, ModelError> {
        let Some((file, t)) = self.set.find(name) else {
            return Err(self.fault(ModelFault::MissingTensor {
                first: name.to_owned(),
                others: 0,
            }));
        };
        let wanted: Vec<u64> = want.iter().map(|d| *d as u64).collect();
        let mut found = t.dims.clone();
        while found.len() > wanted.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != wanted {
            return Err(self.fault(ModelFault::Shape {
                tensor: name.to_owned(),
                found,
                wanted,
            }));
        }
        Ok(Tensor {
            bytes: Bytes::Mapped {
                set: Arc::clone(self.set),
                file,
                range: t.start..t.start + t.bytes,
            },
            tiles: None,
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
        blocks::dequantize_row(t.block_type, t.data(), &mut v).map_err(|e| {
            self.fault(ModelFault::Contents {
                tensor: name.to_owned(),
                why: format!("cannot be decoded ({e})"),
            })
        })?;
        Ok(v)
    }

    /// A bias that the model may lack, unless its architecture needs it.
    fn bias(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>, ModelError> {
        if self.set.find(name).is_none() && !self.hparams.architecture.needs_biases() {
            return Ok(None);
        }
        self.vector(name, len).map(Some)
    }

    /// A tensor that we would not use (another bias, say) would change the text silently.
    fn refuse_unknown(&self, layers: &Range<usize>) -> Result<(), ModelError> {
        let architecture = self.hparams.architecture;
        let elsewhere = |name: &str| {
            name.strip_prefix("blk.")
                .and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok())
                .is_some_and(|n| !layers.contains(&n))
        };
        let unknown = self
            .set
            .tensors()
            .map(|(_, t)| &t.name)
            .find(|name| architecture.place(name).is_none() && !elsewhere(name));
        match unknown {
            None => Ok(()),
            Some(tensor) => Err(self.fault(ModelFault::UnknownTensor {
                tensor: tensor.clone(),
                architecture,
            })),
        }
    }
}
