//! The layers of a half as dispatches, and the buffers that they share.

use wgpu::BufferUsages as Usage;

use super::device::Gpu;
use super::error::GpuError;
use super::kv::GpuKv;
use super::ops::attention::Attention;
use super::ops::matrix::{Place, Product};
use super::ops::norm::Norm;
use super::ops::rope::Rope;
use super::ops::swiglu::Swiglu;
use super::record::{Recorder, Slots};
use super::weights::{Upload, Weights};
use crate::model::{HParams, LayerTensors, ModelPart};

/// Rows that go through the layers at once.
pub(super) const MAX_ROWS: usize = 256;
/// Rows whose logits are computed at once.
pub(super) const MAX_LOGITS: usize = 32;
/// Sequences of a pass.
pub(super) const MAX_SEQUENCES: usize = 64;
/// Slot of all rows of a pass.
pub(super) const ALL: usize = 0;
/// Slot of the rows that go to the head.
pub(super) const HEAD: usize = 1;
/// Slot of the first sequence.
pub(super) const SEQUENCES: usize = 2;

/// Activations.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Hidden rows, packed.
    pub(super) x: wgpu::Buffer,
    normed: wgpu::Buffer,
    qkv: wgpu::Buffer,
    pub(super) turns: wgpu::Buffer,
    mixed: wgpu::Buffer,
    gate_up: wgpu::Buffer,
    act: wgpu::Buffer,
    pub(super) logits: wgpu::Buffer,
    /// Where the host reads rows or logits.
    pub(super) staging: wgpu::Buffer,
}

/// Strides of rows: whole runs of 32 values, so that kernels need not look for the end.
#[derive(Clone, Copy, Debug)]
struct Strides {
    width: usize,
    q: usize,
    ff: usize,
}

impl Strides {
    fn new(hp: &HParams) -> Self {
        Self {
            width: hp.n_embd.next_multiple_of(32),
            q: hp.q_width().next_multiple_of(32),
            ff: hp.n_ff.next_multiple_of(32),
        }
    }
}

impl Buffers {
    pub(super) fn new(gpu: &Gpu, part: &ModelPart) -> Result<Self, GpuError> {
        let (hp, strides) = (&part.hparams, Strides::new(&part.hparams));
        let rows = |stride: usize| (4 * MAX_ROWS * stride) as u64;
        let vocab = part.head.as_ref().map_or(0, |h| h.1.rows);
        let logits = (4 * MAX_LOGITS * vocab) as u64;
        let x = rows(hp.n_embd);
        Ok(Self {
            x: gpu.storage("hidden rows", x)?,
            normed: gpu.storage("hidden rows", rows(strides.width))?,
            qkv: gpu.storage("queries", rows(hp.q_width() + 2 * hp.kv_width()))?,
            turns: gpu.storage("rotations", rows(hp.rope.dims))?,
            mixed: gpu.storage("attention", rows(strides.q))?,
            gate_up: gpu.storage("gates", rows(2 * strides.ff))?,
            act: gpu.storage("gates", rows(strides.ff))?,
            logits: gpu.storage("logits", logits)?,
            staging: gpu.buffer(
                "results",
                x.max(logits),
                Usage::COPY_DST | Usage::MAP_READ,
            )?,
        })
    }

    fn normed(&self, strides: Strides) -> Place<'_> {
        Place {
            buffer: &self.normed,
            stride: strides.width,
            at: 0,
        }
    }
}

/// The layers of a half.
#[derive(Debug)]
pub(super) struct Layers {
    rope: Rope,
    attention: Attention,
    swiglu: Swiglu,
    layers: Vec<Layer>,
    /// `qkv`, `turns` and `mixed`, for the caches to bind.
    shared: [wgpu::Buffer; 3],
}

#[derive(Debug)]
struct Layer {
    attn_norm: Norm,
    qkv: [Product; 3],
    bias: wgpu::Buffer,
    attn_output: Product,
    ffn_norm: Norm,
    gate_up: [Product; 2],
    ffn_down: Product,
}

impl Layers {
    /// Uploads the weights of `part`'s layers; `done` hears after each.
    pub(super) fn new(
        gpu: &Gpu,
        part: &ModelPart,
        buffers: &Buffers,
        to: &mut Upload,
    ) -> Result<Self, GpuError> {
        let (hp, strides) = (&part.hparams, Strides::new(&part.hparams));
        let mut layers = Vec::with_capacity(part.blocks.len());
        for block in &part.blocks {
            layers.push(Layer::new(gpu, hp, block, buffers, to)?);
        }
        Ok(Self {
            rope: Rope::new(gpu, hp)?,
            attention: Attention::new(gpu, hp, strides.q)?,
            swiglu: Swiglu::new(gpu, hp.n_ff, strides.ff, &buffers.gate_up, &buffers.act)?,
            layers,
            shared: [
                buffers.qkv.clone(),
                buffers.turns.clone(),
                buffers.mixed.clone(),
            ],
        })
    }

    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    /// Binds the cache of layer `l` to its kernels: rotation, attention.
    pub(super) fn bind_cache(
        &self,
        gpu: &Gpu,
        l: usize,
        cache: [&wgpu::Buffer; 2],
    ) -> (wgpu::BindGroup, wgpu::BindGroup) {
        let [qkv, turns, mixed] = &self.shared;
        let bias = &self.layers[l].bias;
        (
            self.rope.bind(gpu, [qkv, bias, turns], cache),
            self.attention.bind(gpu, qkv, cache, mixed),
        )
    }

    /// Records all layers over the rows of the pass. `caches` are the sequences' caches, in the order of
    /// their slots, with the number of positions after the pass.
    pub(super) fn record(&self, to: &mut Recorder<'_>, caches: &[(&GpuKv, usize)]) {
        for (l, layer) in self.layers.iter().enumerate() {
            layer.attn_norm.record(to, ALL);
            for product in &layer.qkv {
                product.record(to, ALL);
            }
            for (i, (cache, _)) in caches.iter().enumerate() {
                self.rope.record(to, &cache.layers[l].rope, SEQUENCES + i);
            }
            for (i, (cache, end)) in caches.iter().enumerate() {
                let group = &cache.layers[l].attention;
                self.attention.record(to, group, SEQUENCES + i, *end);
            }
            layer.attn_output.record(to, ALL);
            layer.ffn_norm.record(to, ALL);
            for product in &layer.gate_up {
                product.record(to, ALL);
            }
            self.swiglu.record(to);
            layer.ffn_down.record(to, ALL);
        }
    }
}

impl Layer {
    fn new(
        gpu: &Gpu,
        hp: &HParams,
        w: &LayerTensors,
        buffers: &Buffers,
        to: &mut Upload,
    ) -> Result<Self, GpuError> {
        let strides = Strides::new(hp);
        let (q, kv) = (hp.q_width(), hp.kv_width());
        let place = |buffer, stride, at| Place { buffer, stride, at };
        let normed = buffers.normed(strides);
        let x = place(&buffers.x, hp.n_embd, 0);
        let mut product = |tensor, from, into, add| {
            let weights = Weights::upload(gpu, tensor, to)?;
            Product::new(gpu, &weights, from, into, add)
        };
        let qkv = |at| place(&buffers.qkv, q + 2 * kv, at);
        let gate_up = |at| place(&buffers.gate_up, 2 * strides.ff, at);
        let bias: Vec<f32> = [
            (&w.attn_q_bias, q),
            (&w.attn_k_bias, kv),
            (&w.attn_v_bias, kv),
        ]
        .into_iter()
        .flat_map(|(bias, n)| bias.clone().unwrap_or_else(|| vec![0.0; n]))
        .collect();
        let norm = |weight: &[f32]| {
            let (from, into) = (&buffers.x, &buffers.normed);
            Norm::new(gpu, weight, hp.rms_eps, from, into, strides.width)
        };
        Ok(Self {
            attn_norm: norm(&w.attn_norm)?,
            qkv: [
                product(&w.attn_q, normed, qkv(0), false)?,
                product(&w.attn_k, normed, qkv(q), false)?,
                product(&w.attn_v, normed, qkv(q + kv), false)?,
            ],
            bias: gpu.constant("biases", &bias, Usage::STORAGE)?,
            attn_output: product(
                &w.attn_output,
                place(&buffers.mixed, strides.q, 0),
                x,
                true,
            )?,
            ffn_norm: norm(&w.ffn_norm)?,
            gate_up: [
                product(&w.ffn_gate, normed, gate_up(0), false)?,
                product(&w.ffn_up, normed, gate_up(strides.ff), false)?,
            ],
            ffn_down: product(&w.ffn_down, place(&buffers.act, strides.ff, 0), x, true)?,
        })
    }
}

/// The final norm and the head.
#[derive(Debug)]
pub(super) struct Head {
    norm: Norm,
    product: Product,
    /// Tokens.
    pub(super) vocab: usize,
}

impl Head {
    /// The head of `part`, if it has one.
    pub(super) fn new(
        gpu: &Gpu,
        part: &ModelPart,
        buffers: &Buffers,
        to: &mut Upload,
    ) -> Result<Option<Self>, GpuError> {
        let Some((weight, head)) = &part.head else {
            return Ok(None);
        };
        let (hp, strides) = (&part.hparams, Strides::new(&part.hparams));
        let (x, normed) = (&buffers.x, &buffers.normed);
        let logits = Place {
            buffer: &buffers.logits,
            stride: head.rows,
            at: 0,
        };
        let weights = Weights::upload(gpu, head, to)?;
        Ok(Some(Self {
            norm: Norm::new(gpu, weight, hp.rms_eps, x, normed, strides.width)?,
            product: Product::new(gpu, &weights, buffers.normed(strides), logits, false)?,
            vocab: head.rows,
        }))
    }

    /// Records the logits of the rows in slot [`HEAD`].
    pub(super) fn record(&self, to: &mut Recorder<'_>) {
        self.norm.record(to, HEAD);
        self.product.record(to, HEAD);
    }
}

/// Slots of a pass.
pub(super) fn slots(gpu: &Gpu) -> Result<Slots, GpuError> {
    Slots::new(gpu, SEQUENCES + MAX_SEQUENCES)
}
