//! Times of passes, and what their differences say.

use std::sync::Arc;
use std::time::Instant;

use formats::blocks::BlockType;
use formats::measured::{AttentionTime, Curve, MatrixTime};
use formats::model::KvType;

use super::synthetic::{Noise, hollow, layer_weights, part};
use crate::cache::KvCache;
use crate::exec::Executor;
use crate::model::{HParams, ModelPart};
use crate::role::RunError;

/// Makes an executor.
type Make<'a> = &'a dyn Fn(ModelPart) -> Result<Arc<dyn Executor>, RunError>;

/// Numbers of rows at which products are timed.
pub(super) const ROWS: [u32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
/// Numbers of rows at which attention is timed.
const ATTENTION_ROWS: [u32; 3] = [1, 16, 128];
/// Positions at which it is.
const POSITIONS: [u32; 3] = [256, 1024, 4096];
/// Bytes of weights that no cache of a processor holds.
const COLD_BYTES: usize = 96 << 20;
/// Weights of a pass of many rows at least; they are read once for all rows, so caches do not
/// matter.
const WARM_WEIGHTS: usize = 8 << 20;
/// Up to so many rows weights are to come from memory.
const COLD_ROWS: u32 = 8;
/// Times of which the median counts, and the seconds after which fewer will do.
const TIMES: usize = 7;
const ENOUGH_S: f64 = 0.3;

/// What passes and layers cost beside what grows with their sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overheads {
    pub(super) pass_ns: f64,
    pub(super) layer_ns: f64,
}

/// What is known before products are timed.
pub(super) struct Known<'a> {
    pub(super) rest: Overheads,
    pub(super) layer_value_ns: f64,
    pub(super) attention: &'a [AttentionTime],
}

/// Median nanoseconds of `work`, which runs once before.
pub(super) fn median_ns(mut work: impl FnMut() -> Result<(), RunError>) -> Result<f64, RunError> {
    work()?;
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.len() < TIMES && (times.is_empty() || start.elapsed().as_secs_f64() < ENOUGH_S) {
        let one = Instant::now();
        work()?;
        times.push(one.elapsed().as_nanos() as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// An executor with a cache that holds some positions.
struct Rig {
    exec: Arc<dyn Executor>,
    cache: KvCache,
    rows: Vec<f32>,
}

impl Rig {
    fn new(make: Make<'_>, part: ModelPart, positions: usize) -> Result<Self, RunError> {
        let width = part.hparams.n_embd;
        let exec = make(part)?;
        let mut cache = exec.new_cache(positions)?;
        // Untouched pages are all one page of zeros.
        let some = Noise(11).values(1 << 12);
        let mut from = 0;
        cache.pretend(positions, |row| {
            for v in row {
                from = (from + 1) % some.len();
                *v = some[from];
            }
        });
        let rows = Noise(7).values(ROWS[ROWS.len() - 1] as usize * width);
        Ok(Self { exec, cache, rows })
    }

    /// Median time of a pass of `n` rows behind `at` positions.
    fn pass_ns(&mut self, n: u32, at: u32) -> Result<f64, RunError> {
        let width = self.exec.hparams().n_embd;
        let fresh = &self.rows[..n as usize * width];
        let mut rows = fresh.to_vec();
        let (exec, cache) = (&self.exec, &mut self.cache);
        median_ns(|| {
            cache.truncate(0);
            cache.advance(at as usize);
            rows.copy_from_slice(fresh);
            Ok(exec.forward(cache, &mut rows)?)
        })
    }
}

/// Layers of `hp` in type `ty` that together are more than caches hold, and fewer for passes of
/// many rows.
fn layers(hp: &HParams, ty: BlockType) -> (usize, usize) {
    let weights = layer_weights(hp).max(1);
    let bytes = (weights as f64 * ty.bits_per_weight() / 8.0).max(1.0);
    let cold = (COLD_BYTES as f64 / bytes).ceil() as usize;
    (cold.clamp(1, 256), WARM_WEIGHTS.div_ceil(weights).max(1))
}

/// What a pass and a layer cost by themselves.
pub(super) fn overheads(make: Make<'_>) -> Result<Overheads, RunError> {
    const FEW: usize = 1;
    const MANY: usize = 65;
    let time = |n: usize| {
        let part = part(&hollow(n), BlockType::F32, n, 32)?;
        Rig::new(make, part, 16)?.pass_ns(1, 0)
    };
    let (few, many) = (time(FEW)?, time(MANY)?);
    let layer_ns = ((many - few) / (MANY - FEW) as f64).max(0.0);
    Ok(Overheads {
        layer_ns,
        pass_ns: (few - layer_ns * FEW as f64).max(0.0),
    })
}

/// What a value of a row costs in a layer beside products and attention.
pub(super) fn layer_value_ns(
    make: Make<'_>,
    hp: &HParams,
    ty: BlockType,
    rest: &Overheads,
) -> Result<f64, RunError> {
    const N: u32 = 64;
    // Products alone: two heads, one of which has many rows more.
    let (few, many) = (64, (WARM_WEIGHTS / hp.n_embd).max(256));
    let time = |rows: usize| {
        let rig = Rig::new(make, part(hp, ty, 1, rows)?, 16)?;
        let x = &rig.rows[..N as usize * hp.n_embd];
        let mut logits = Vec::new();
        median_ns(|| Ok(rig.exec.logits(x, &mut logits)?))
    };
    let per_weight = (time(many)? - time(few)?) / ((many - few) * hp.n_embd) as f64;
    let (_, n_layer) = layers(hp, ty);
    let mut rig = Rig::new(make, part(hp, ty, n_layer, 64)?, N as usize)?;
    let layer = (rig.pass_ns(N, 0)? - rest.pass_ns) / n_layer as f64;
    let left = layer - rest.layer_ns - per_weight * layer_weights(hp) as f64;
    Ok((left / (N as usize * (hp.n_embd + hp.n_ff)) as f64).max(0.0))
}

/// Attention, by positions and rows, in `seconds` or so.
pub(super) fn attention(
    make: Make<'_>,
    hp: &HParams,
    ty: BlockType,
    seconds: f64,
) -> Result<Vec<AttentionTime>, RunError> {
    let began = Instant::now();
    let (cold, warm) = layers(hp, ty);
    let most = (POSITIONS[POSITIONS.len() - 1] + ATTENTION_ROWS[ATTENTION_ROWS.len() - 1]) as usize;
    // Keys and values of one layer; more than a gigabyte of them is not needed.
    let each = hp.kv_bytes(KvType::F16, &(0..1), most).max(1);
    let cold = cold.min((1 << 30) / each).max(1);
    let mut rigs = [
        Rig::new(make, part(hp, ty, cold, 32)?, most)?,
        Rig::new(make, part(hp, ty, warm.min(cold), 32)?, most)?,
    ];
    let mut out = Vec::new();
    for positions in POSITIONS {
        let mut curve = Curve::default();
        for n in ATTENTION_ROWS {
            // The first of each is always measured: a curve has a point.
            let late = began.elapsed().as_secs_f64() > seconds;
            if late && (!curve.rows.is_empty() || !out.is_empty()) {
                break;
            }
            let rig = &mut rigs[usize::from(n > COLD_ROWS)];
            let n_layer = rig.exec.layers().len();
            let more = rig.pass_ns(n, positions)? - rig.pass_ns(n, 0)?;
            let per = n_layer as f64 * f64::from(positions) * hp.q_width() as f64;
            curve.rows.push(n);
            curve.ns.push((more / per).max(0.0));
        }
        if !curve.rows.is_empty() {
            out.push(AttentionTime { positions, curve });
        }
    }
    Ok(out)
}

/// Products with matrices of type `ty`, in `seconds` or so.
pub(super) fn products(
    make: Make<'_>,
    hp: &HParams,
    ty: BlockType,
    known: &Known<'_>,
    seconds: f64,
) -> Result<MatrixTime, RunError> {
    let began = Instant::now();
    let (cold, warm) = layers(hp, ty);
    let mut curve = Curve::default();
    let mut rig = Rig::new(make, part(hp, ty, cold, 32)?, COLD_ROWS as usize)?;
    let mut is_cold = true;
    for n in ROWS {
        if !curve.rows.is_empty() && began.elapsed().as_secs_f64() > seconds {
            break;
        }
        if n > COLD_ROWS && is_cold {
            let part = part(hp, ty, warm, 32)?;
            rig = Rig::new(make, part, ROWS[ROWS.len() - 1] as usize)?;
            is_cold = false;
        }
        let n_layer = rig.exec.layers().len() as f64;
        let layer = (rig.pass_ns(n, 0)? - known.rest.pass_ns) / n_layer;
        let rows = f64::from(n);
        // Row i of a prompt looks at i + 1 positions.
        let attention = mean_attention_ns(known.attention, rows, f64::midpoint(rows, 1.0));
        let left = layer
            - known.rest.layer_ns
            - rows * (hp.n_embd + hp.n_ff) as f64 * known.layer_value_ns
            - attention * hp.q_width() as f64;
        curve.rows.push(n);
        curve.ns.push((left / layer_weights(hp) as f64).max(0.0));
    }
    Ok(MatrixTime {
        block_type: ty.to_string(),
        curve,
    })
}

/// Attention of `rows` rows over `positions` each, per value of a query row, at the shortest
/// context that was measured.
fn mean_attention_ns(attention: &[AttentionTime], rows: f64, positions: f64) -> f64 {
    attention
        .first()
        .map_or(0.0, |a| a.curve.at(rows) * positions)
}
