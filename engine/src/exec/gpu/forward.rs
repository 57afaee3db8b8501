//! The layers of a half as dispatches, and the buffers that they share.

use std::ops::Range;

use wgpu::BufferUsages as Usage;

use super::device::Gpu;
use super::error::GpuError;
use super::kv::GpuKv;
use super::ops::argmax::Argmax;
use super::ops::attention::{Attention, AttentionGroups};
use super::ops::matrix::{FEW, Place, Products};
use super::ops::norm::Norm;
use super::ops::prepare::scratch_bytes;
use super::ops::rope::Rope;
use super::ops::swiglu::Swiglu;
use super::record::{Recorder, Slots};
use super::weights::{Upload, Weights, stack};
use crate::model::{HParams, LayerTensors, ModelPart, Tensor};

/// Rows that go through the layers at once.
pub(super) const MAX_ROWS: usize = 256;
/// Rows whose logits are computed at once.
pub(super) const MAX_LOGITS: usize = 32;
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
    /// Rows in the form that a product takes.
    scratch: wgpu::Buffer,
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
        let widest = strides.width.max(strides.q).max(strides.ff);
        let scratch = if gpu.variants.needs_scratch() {
            scratch_bytes(MAX_ROWS, widest)
        } else {
            0
        };
        Ok(Self {
            scratch: gpu.storage("activations", scratch)?,
            x: gpu.storage("hidden rows", x)?,
            normed: gpu.storage("hidden rows", rows(strides.width))?,
            qkv: gpu.storage("queries", rows(hp.q_width() + 2 * hp.kv_width()))?,
            turns: gpu.storage("rotations", rows(hp.rope.dims))?,
            mixed: gpu.storage("attention", rows(strides.q))?,
            gate_up: gpu.storage("gates", rows(2 * strides.ff))?,
            act: gpu.storage("gates", rows(strides.ff))?,
            logits: gpu.storage("logits", logits)?,
            staging: gpu.buffer("results", x.max(logits), Usage::COPY_DST | Usage::MAP_READ)?,
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
    all: Vec<Layer>,
    /// `qkv`, `turns` and `mixed`, for the caches to bind.
    shared: [wgpu::Buffer; 3],
}

#[derive(Debug)]
struct Layer {
    attn_norm: Norm,
    qkv: Products,
    bias: wgpu::Buffer,
    attn_output: Products,
    ffn_norm: Norm,
    gate_up: Products,
    ffn_down: Products,
}

impl Layers {
    /// Uploads the weights of `part`'s layers.
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
            attention: Attention::new(gpu, hp, strides.q, &buffers.mixed)?,
            swiglu: Swiglu::new(gpu, hp.n_ff, strides.ff, &buffers.gate_up, &buffers.act)?,
            all: layers,
            shared: [
                buffers.qkv.clone(),
                buffers.turns.clone(),
                buffers.mixed.clone(),
            ],
        })
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Binds the cache of layer `l` to its kernels: rotation, attention.
    pub(super) fn bind_cache(
        &self,
        gpu: &Gpu,
        l: usize,
        cache: [&wgpu::Buffer; 2],
    ) -> (wgpu::BindGroup, AttentionGroups) {
        let [qkv, turns, mixed] = &self.shared;
        let bias = &self.all[l].bias;
        (
            self.rope.bind(gpu, [qkv, bias, turns], cache),
            self.attention.bind(gpu, qkv, cache, mixed),
        )
    }

    /// Records layers `layers` over the rows of the pass. `caches` are the sequences' caches, in the order of
    /// their slots, with the number of positions after the pass.
    pub(super) fn record(
        &self,
        to: &mut Recorder<'_>,
        caches: &[(&GpuKv, usize)],
        layers: Range<usize>,
    ) {
        for (l, layer) in self
            .all
            .iter()
            .enumerate()
            .take(layers.end)
            .skip(layers.start)
        {
            layer.attn_norm.record(to, ALL);
            layer.qkv.record(to, ALL);
            for (i, (cache, _)) in caches.iter().enumerate() {
                self.rope.record(to, &cache.layers[l].rope, SEQUENCES + i);
            }
            for (i, (cache, end)) in caches.iter().enumerate() {
                let group = &cache.layers[l].attention;
                self.attention.record(to, group, SEQUENCES + i, *end);
            }
            layer.attn_output.record(to, ALL);
            layer.ffn_norm.record(to, ALL);
            layer.gate_up.record(to, ALL);
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
        let place = |buffer, stride| Place {
            buffer,
            stride,
            at: 0,
        };
        let normed = buffers.normed(strides);
        let x = place(&buffers.x, hp.n_embd);
        // Matrices over the same rows whose products lie side by side are one, if of one type.
        let mut products = |list: &[(&Tensor, usize)], from, into: Place<'_>, add| {
            let joins = |a: &(&Tensor, usize), b: &(&Tensor, usize)| {
                stack(a.0, b.0) && a.1 + a.0.rows == b.1
            };
            let mut made = Products::new(from, &buffers.scratch, gpu.variants);
            for group in list.chunk_by(joins) {
                let tensors: Vec<&Tensor> = group.iter().map(|g| g.0).collect();
                let weights = Weights::upload(gpu, &tensors, to)?;
                let into = Place {
                    at: group[0].1,
                    ..into
                };
                made.add(gpu, &weights, into, add)?;
            }
            Ok::<_, GpuError>(made)
        };
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
            qkv: products(
                &[(&w.attn_q, 0), (&w.attn_k, q), (&w.attn_v, q + kv)],
                normed,
                place(&buffers.qkv, q + 2 * kv),
                false,
            )?,
            bias: gpu.constant("biases", &bias, Usage::STORAGE)?,
            attn_output: products(
                &[(&w.attn_output, 0)],
                place(&buffers.mixed, strides.q),
                x,
                true,
            )?,
            ffn_norm: norm(&w.ffn_norm)?,
            gate_up: products(
                &[(&w.ffn_gate, 0), (&w.ffn_up, strides.ff)],
                normed,
                place(&buffers.gate_up, 2 * strides.ff),
                false,
            )?,
            ffn_down: products(
                &[(&w.ffn_down, 0)],
                place(&buffers.act, strides.ff),
                x,
                true,
            )?,
        })
    }
}

/// The final norm and the head.
#[derive(Debug)]
pub(super) struct Head {
    norm: Norm,
    product: Products,
    pub(super) argmax: Argmax,
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
        let weights = Weights::upload(gpu, &[head], to)?;
        let from = buffers.normed(strides);
        let mut product = Products::new(from, &buffers.scratch, gpu.variants);
        product.add(gpu, &weights, logits, false)?;
        Ok(Some(Self {
            norm: Norm::new(gpu, weight, hp.rms_eps, x, normed, strides.width)?,
            product,
            argmax: Argmax::new(gpu, head.rows, &buffers.logits)?,
            vocab: head.rows,
        }))
    }

    /// Records the logits of the rows in slot [`HEAD`].
    pub(super) fn record(&self, to: &mut Recorder<'_>) {
        self.norm.record(to, HEAD);
        self.product.record(to, HEAD);
    }
}

/// Slots of a pass, in which at most [`FEW`] sequences have a row each.
pub(super) fn slots(gpu: &Gpu) -> Result<Slots, GpuError> {
    Slots::new(gpu, SEQUENCES + FEW as usize)
}
