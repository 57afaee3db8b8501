//! Models of random weights, of any type and number of layers, in memory.

use formats::blocks::{BlockType, Effort, quantize_row};

use crate::model::{HParams, LayerTensors, ModelPart, Rope, Tensor};
use crate::role::RunError;

/// Rows of a matrix that are really random; the others repeat them. What kernels cost does not
/// depend on values, and encoding would take longer than measuring.
const DISTINCT: usize = 8;

/// `hp` for matrices of type `ty`: widths that are no whole blocks are raised to the next ones.
pub(super) fn shape(hp: &HParams, ty: BlockType) -> HParams {
    let mut hp = hp.clone();
    hp.rope.factors = None;
    let block = ty.block_len();
    let fits = |n: usize| n.is_multiple_of(block);
    hp.n_ff = hp.n_ff.next_multiple_of(block);
    if fits(hp.n_embd) && fits(hp.q_width()) {
        return hp;
    }
    hp.n_embd = hp.n_embd.next_multiple_of(block.max(64));
    (hp.head_dim, hp.rope.dims) = (64, 64);
    hp.n_head = hp.n_embd / 64;
    hp.n_head_kv = hp.n_head;
    hp
}

/// A model whose matrices are next to nothing.
pub(super) fn hollow(n_layer: usize) -> HParams {
    HParams {
        architecture: crate::model::Architecture::Llama,
        n_layer,
        n_embd: 32,
        n_head: 1,
        n_head_kv: 1,
        head_dim: 32,
        n_ff: 32,
        n_vocab: 32,
        n_ctx_train: 512,
        rms_eps: 1e-5,
        rope: Rope {
            dims: 32,
            base: 10_000.0,
            linear_scale: 1.0,
            factors: None,
            style: crate::model::RopeStyle::Interleaved,
        },
        tied: false,
    }
}

/// Weights of the matrices of one layer.
pub(super) fn layer_weights(hp: &HParams) -> usize {
    let (e, q, kv, f) = (hp.n_embd, hp.q_width(), hp.kv_width(), hp.n_ff);
    2 * e * q + 2 * e * kv + 3 * e * f
}

/// Values that look like weights: bell-shaped, of mean 0.
pub(super) struct Noise(pub(super) u64);

impl Noise {
    pub(super) fn value(&mut self) -> f32 {
        let mut sum = 0.0;
        for _ in 0..4 {
            // Knuth's MMIX generator.
            self.0 = (self.0)
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            sum += (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5;
        }
        sum
    }

    pub(super) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// A matrix of random weights of about 1/√cols, so that rows keep their size.
pub(super) fn matrix(
    ty: BlockType,
    rows: usize,
    cols: usize,
    noise: &mut Noise,
) -> Result<Tensor, RunError> {
    let bad = || RunError::Request(format!("{cols} columns are no whole blocks of {ty}"));
    let row_bytes = ty.row_bytes(cols).ok_or_else(bad)?;
    let mut some = vec![0; row_bytes * DISTINCT.min(rows)];
    let size = 1.0 / (cols as f32).sqrt();
    for row in some.chunks_exact_mut(row_bytes) {
        let values: Vec<f32> = noise.values(cols).iter().map(|v| v * size).collect();
        quantize_row(ty, &values, None, Effort::Normal, row)
            .map_err(|e| RunError::Request(format!("random weights of {ty}: {e}")))?;
    }
    let bytes = some.iter().copied().cycle().take(row_bytes * rows);
    Ok(Tensor::owned("random", ty, rows, cols, bytes.collect()))
}

/// `n_layer` layers of the shapes of `hp`, each with its own memory, and a head of `head` rows.
pub(super) fn part(
    hp: &HParams,
    ty: BlockType,
    n_layer: usize,
    head: usize,
) -> Result<ModelPart, RunError> {
    let mut hp = hp.clone();
    (hp.n_layer, hp.n_vocab) = (n_layer, head);
    let mut noise = Noise(1);
    let (e, q, kv, f) = (hp.n_embd, hp.q_width(), hp.kv_width(), hp.n_ff);
    let layer = LayerTensors {
        attn_norm: vec![1.0; e],
        attn_q: matrix(ty, q, e, &mut noise)?,
        attn_k: matrix(ty, kv, e, &mut noise)?,
        attn_v: matrix(ty, kv, e, &mut noise)?,
        attn_q_bias: None,
        attn_k_bias: None,
        attn_v_bias: None,
        attn_output: matrix(ty, e, q, &mut noise)?,
        ffn_norm: vec![1.0; e],
        ffn_gate: matrix(ty, f, e, &mut noise)?,
        ffn_up: matrix(ty, f, e, &mut noise)?,
        ffn_down: matrix(ty, e, f, &mut noise)?,
    };
    let own = |t: &Tensor| Tensor::owned(&t.name, t.block_type, t.rows, t.cols, t.data().to_vec());
    let blocks = (0..n_layer).map(|_| LayerTensors {
        attn_q: own(&layer.attn_q),
        attn_k: own(&layer.attn_k),
        attn_v: own(&layer.attn_v),
        attn_output: own(&layer.attn_output),
        ffn_gate: own(&layer.ffn_gate),
        ffn_up: own(&layer.ffn_up),
        ffn_down: own(&layer.ffn_down),
        ..layer.clone()
    });
    Ok(ModelPart {
        blocks: blocks.collect(),
        token_embd: Some(matrix(ty, head, e, &mut noise)?),
        head: Some((vec![1.0; e], matrix(ty, head, e, &mut noise)?)),
        layers: 0..n_layer,
        hparams: hp,
    })
}
