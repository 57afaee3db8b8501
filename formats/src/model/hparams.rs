//! The sizes of a model.

use std::ops::Range;

use super::KvType;
use super::architecture::Architecture;

/// Which values of a head a rotation turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: `2i` with `2i + 1` (Llama in GGUF; ggml's `NORM`).
    Interleaved,
    /// `i` with `i + dims / 2` (Qwen2; ggml's `NEOX`).
    HalfSplit,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Rotated dimensions of a head (even); the rest stay as they are.
    pub dims: usize,
    /// Frequency base (`*.rope.freq_base`).
    pub base: f32,
    /// Linear scaling: positions are divided by this.
    pub linear_scale: f32,
    /// Llama-3 factors: frequency `i` is divided by `factors[i]`; `dims / 2` of them.
    pub factors: Option<Vec<f32>>,
    /// Which values are turned together.
    pub style: RopeStyle,
}

/// The shape of the whole model, the same in both halves.
#[derive(Clone, Debug, PartialEq)]
pub struct HParams {
    /// The architecture.
    pub architecture: Architecture,
    /// Layers of the whole model.
    pub n_layer: usize,
    /// Width of a hidden row.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Tokens in the vocabulary.
    pub n_vocab: usize,
    /// Context the model was trained for.
    pub n_ctx_train: usize,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Positions.
    pub rope: Rope,
    /// Whether the files at hand have no `output.weight`: the head of a whole model is then its
    /// embedding. (The edge half of any pair has none either.)
    pub tied: bool,
}

impl HParams {
    /// Values of one position's queries in one layer.
    pub fn q_width(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Values of one position's keys (or values) in one layer.
    pub fn kv_width(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Bytes of keys and values in `kv_type` for `n_ctx` positions of `layers`, in whole pages:
    /// 2 · layers · positions · bytes of H_kv · D values.
    pub fn kv_bytes(&self, kv_type: KvType, layers: &Range<usize>, n_ctx: usize) -> usize {
        let heads = self.n_head_kv.saturating_mul(kv_type.bytes(self.head_dim));
        [2, layers.len(), KvType::positions(n_ctx), heads]
            .into_iter()
            .fold(1, usize::saturating_mul)
    }
}
