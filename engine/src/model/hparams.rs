//! Hyperparameters of a Llama model.

use std::ops::Range;

/// Rotary position embedding, as GGUF describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Rotated dimensions of a head (even).
    pub dims: usize,
    /// Frequency base (`llama.rope.freq_base`).
    pub base: f32,
    /// Linear scaling: positions are divided by this.
    pub linear_scale: f32,
    /// Llama-3 factors: frequency `i` is divided by `factors[i]`; `dims / 2` of them.
    pub factors: Option<Vec<f32>>,
}

/// The shape of the whole model, the same in both halves.
#[derive(Clone, Debug, PartialEq)]
pub struct HParams {
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
}

impl HParams {
    /// Values of one position's keys (or values) in one layer.
    pub fn kv_width(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Bytes of f16 keys and values for `n_ctx` positions of `layers`.
    pub fn kv_bytes(&self, layers: &Range<usize>, n_ctx: usize) -> usize {
        [2 * 2, layers.len(), n_ctx, self.kv_width()]
            .into_iter()
            .fold(1, usize::saturating_mul)
    }
}
