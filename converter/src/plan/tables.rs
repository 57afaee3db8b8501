//! From a model and two hosts to the numbers of a [`Problem`](super::problem::Problem): the recipe
//! of every cut and number of bits, its size on disk, its times.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use formats::blocks::{BlockType, Effort};
use formats::measured::{LayerSensitivity, Profile};
use formats::model::{KvType, Load};
use formats::pair::{Digest, HalfRole};

use super::PlanError;
use super::codecs::{self, CodecChoice};
use super::harm::{Harm, Lacks};
use super::problem::{CodecCost, Cut, Half};
use crate::importance::Importance;
use crate::recipe::{self, Bits, Plan, Request, Spending, TensorPlan, Tried};
use crate::source::{Place, Source};
use crate::stream::Layout;

/// Bits that the edge may get.
pub const EDGE_BITS: [u32; 6] = [2, 3, 4, 5, 6, 8];
/// Bits that the cloud may get.
pub const CLOUD_BITS: [u32; 7] = [2, 3, 4, 5, 6, 8, 16];

/// Nats that a form of keys and values costs in all layers: measured on SmolLM2-135M-Instruct
/// (`docs/cpu.md`), and taken for every model. Layers share it.
pub const fn kv_nats(kv_type: KvType) -> f64 {
    match kv_type {
        KvType::F16 => 0.0,
        KvType::Q8_0 => 0.000_16,
        KvType::Q4_0 => 0.0396,
    }
}

/// All that numbers are made of.
pub struct Tables<'a> {
    source: &'a Source,
    importance: Option<&'a Importance>,
    measured: Option<&'a LayerSensitivity>,
    profiles: &'a [Profile; 2],
    harm: &'a Harm,
    edges: u64,
    chunk: u64,
    kv_types: &'a [KvType],
    layout: Layout,
    tried: Tried,
    rates: [HashMap<BlockType, [f64; 2]>; 2],
    /// Types of products that a profile has no times of: edge, cloud.
    guesses: Mutex<[BTreeSet<BlockType>; 2]>,
}

impl<'a> Tables<'a> {
    /// Gets ready; `chunk` rows of a prompt travel together, `edges` devices share the server, keys
    /// and values may be kept in `kv_types`.
    ///
    /// # Errors
    /// When the source's headers cannot be laid out or the importances are of another model.
    pub fn new(
        source: &'a Source,
        importance: Option<&'a Importance>,
        measured: Option<&'a LayerSensitivity>,
        profiles: &'a [Profile; 2],
        harm: &'a Harm,
        (edges, chunk): (u64, u64),
        kv_types: &'a [KvType],
    ) -> Result<Self, PlanError> {
        let rates = |p: &Profile| {
            let of = |ty: BlockType| {
                let (curve, _) = p.matrix(ty)?;
                Some((ty, [curve.at(1.0), curve.at(chunk as f64)]))
            };
            BlockType::ALL.into_iter().filter_map(of).collect()
        };
        Ok(Self {
            layout: Layout::new(source)?,
            tried: Tried::new(threads()),
            rates: [rates(&profiles[0]), rates(&profiles[1])],
            source,
            importance,
            measured,
            profiles,
            harm,
            edges,
            chunk,
            kv_types,
            guesses: Mutex::default(),
        })
    }

    /// The recipe for these bits, as a conversion makes it.
    fn recipe(&self, split: u32, edge: u32, cloud: u32) -> Result<Plan, PlanError> {
        let request = Request {
            split,
            edge_bits: Bits::new(edge).map_err(|e| PlanError::Internal(e.to_string()))?,
            cloud_bits: Bits::new(cloud).map_err(|e| PlanError::Internal(e.to_string()))?,
            edge_type: None,
            cloud_type: None,
            tensor_types: Vec::new(),
            effort: Effort::default(),
            spending: Spending::default(),
            edge_budget: None,
        };
        let plan = recipe::plan_with(self.source, &request, self.importance, &self.tried)?;
        Ok(plan)
    }

    /// What every cut offers, on all cores.
    ///
    /// # Errors
    /// When the model cannot be cut.
    pub fn cuts(&self) -> Result<Vec<Cut>, PlanError> {
        let n_layer = self.source.hparams().n_layer as u32;
        let next = AtomicU32::new(1);
        let done: Mutex<Vec<Result<Cut, PlanError>>> = Mutex::default();
        std::thread::scope(|scope| {
            let work = || {
                loop {
                    let split = next.fetch_add(1, Ordering::Relaxed);
                    if split >= n_layer {
                        return;
                    }
                    let cut = self.cut(split);
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(cut);
                }
            };
            for _ in 1..threads().min(n_layer as usize) {
                // One thread fewer than asked for is no reason to fail.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut cuts = done.into_iter().collect::<Result<Vec<Cut>, _>>()?;
        cuts.sort_by_key(|c| c.split);
        Ok(cuts)
    }

    fn cut(&self, split: u32) -> Result<Cut, PlanError> {
        let (mut edge, mut cloud) = (Vec::<Half>::new(), Vec::<Half>::new());
        for bits in CLOUD_BITS {
            let most = EDGE_BITS[EDGE_BITS.len() - 1];
            let plan = self.recipe(split, bits.min(most), bits)?;
            let halves = [
                (HalfRole::Edge, 0, &mut edge),
                (HalfRole::Cloud, 1, &mut cloud),
            ];
            for (role, host, list) in halves {
                let half = self.half(&plan, role, bits, host)?;
                for &kv_type in self.kv_types {
                    let half = self.keeping(&half, kv_type, host, role);
                    // More bits than the source has change nothing.
                    let same = |h: &Half| Half { bits, ..h.clone() } == half;
                    let last = list.iter().rev().find(|h| h.kv_type == kv_type);
                    if (role == HalfRole::Edge && bits > most) || last.is_some_and(same) {
                        continue;
                    }
                    list.push(half);
                }
            }
        }
        let calibrated = self.calibrated(split);
        let width = self.source.hparams().n_embd;
        let choices = codecs::at(split, width, calibrated.as_ref(), self.measured);
        Ok(Cut {
            split,
            edge,
            cloud,
            codecs: choices.into_iter().map(|c| self.codec(c)).collect(),
        })
    }

    fn calibrated(&self, split: u32) -> Option<formats::wire::CutStatistics> {
        let cut = self.importance?.boundary()?.at(split as usize)?;
        let width = self.source.hparams().n_embd;
        cut.channels(width).is_some().then_some(cut)
    }

    fn codec(&self, choice: CodecChoice) -> CodecCost {
        let width = self.source.hparams().n_embd as f64;
        let of = |host: usize| self.profiles[host].codec(&choice.spec);
        CodecCost {
            encode_ns: of(0).map_or(0.0, |c| c.encode_fixed_ns + width * c.encode_value_ns),
            decode_ns: of(1).map_or(0.0, |c| c.decode_fixed_ns + width * c.decode_value_ns),
            choice,
        }
    }

    /// The whole model in `bits` on host `host` alone, as the two halves of a pair that both run
    /// there; `None` for a model of one layer.
    ///
    /// # Errors
    /// When the model cannot be cut.
    pub fn alone(&self, bits: u32, host: usize, kv_type: KvType) -> Result<[Half; 2], PlanError> {
        let split = (self.source.hparams().n_layer as u32).saturating_sub(1);
        let plan = self.recipe(split, bits, bits)?;
        let half = |role| {
            let half = self.half(&plan, role, bits, host)?;
            Ok::<_, PlanError>(self.keeping(&half, kv_type, host, role))
        };
        let (front, mut back) = (half(HalfRole::Edge)?, half(HalfRole::Cloud)?);
        // One process has one program and one set of buffers.
        back.fixed_bytes = back.fixed_bytes.saturating_sub(back.runtime_bytes);
        Ok([front, back])
    }

    fn half(&self, plan: &Plan, role: HalfRole, bits: u32, host: usize) -> Result<Half, PlanError> {
        let hp = self.source.hparams();
        let split = plan.split as usize;
        let layers = match role {
            HalfRole::Edge => 0..split,
            HalfRole::Cloud => split..hp.n_layer,
        };
        let used = |t: &TensorPlan| t.encode && t.weighing.columns().is_some();
        let file = |digest| self.layout.file_bytes(plan, role, digest);
        let file_bytes = [file(None)?, file(Some(Digest([0; 32])))?];
        let load = self.load(layers.clone(), KvType::F16, host, role);
        let time = self.times(plan, role, host);
        let kl = self.harm.of(plan.half(role), &mut Lacks::default());
        Ok(Half {
            bits,
            layers: layers.len() as u32,
            file_bytes,
            uses_importance: plan.half(role).any(used),
            fixed_bytes: load.memory().total(),
            runtime_bytes: load.runtime_bytes,
            session_bytes: load.buffer_bytes(),
            kv_type: load.kv_type,
            kv_bytes: load.kv_bytes_per_position().saturating_mul(load.sessions),
            scores: load.scores(),
            sessions: load.sessions,
            row_ns: time.row,
            chunk_ns: time.chunk,
            head_ns: time.head,
            kl,
        })
    }

    /// What a host holds for `layers`, without file and context.
    fn load(&self, layers: Range<usize>, kv_type: KvType, host: usize, role: HalfRole) -> Load<'_> {
        Load {
            hparams: self.source.hparams(),
            layers,
            file_bytes: 0,
            metadata_bytes: self.layout.metadata_bytes(),
            tokenizer: role == HalfRole::Edge,
            n_ctx: 0,
            kv_type,
            sessions: if host == 0 { 1 } else { self.edges },
            executors: 1,
            rows: self.chunk,
            threads: u64::from(self.profiles[host].threads),
            runtime_bytes: self.profiles[host].runtime_bytes,
        }
    }

    /// `half`, which keeps keys and values in f16, with another form of them.
    fn keeping(&self, half: &Half, kv_type: KvType, host: usize, role: HalfRole) -> Half {
        let n_layer = self.source.hparams().n_layer;
        let layers = half.layers as usize;
        let layers = match role {
            HalfRole::Edge => 0..layers,
            HalfRole::Cloud => n_layer - layers..n_layer,
        };
        let share = layers.len() as f64 / n_layer.max(1) as f64;
        let load = self.load(layers, kv_type, host, role);
        Half {
            kv_type,
            kv_bytes: load.kv_bytes_per_position().saturating_mul(load.sessions),
            fixed_bytes: load.memory().total(),
            session_bytes: load.buffer_bytes(),
            kl: half.kl + share * kv_nats(kv_type),
            ..half.clone()
        }
    }

    /// All times but those of attention, as [`Profile`] defines them.
    fn times(&self, plan: &Plan, role: HalfRole, host: usize) -> Times {
        let hp = self.source.hparams();
        let p = &self.profiles[host];
        let layers = match role {
            HalfRole::Edge => plan.split as usize,
            HalfRole::Cloud => hp.n_layer - plan.split as usize,
        } as f64;
        let (mut products, mut head) = ([0.0, 0.0], 0.0);
        let mut unknown = BTreeSet::new();
        for t in plan.half(role).filter(|t| t.dims.len() > 1) {
            let rate = self.rates[host].get(&t.to).copied().unwrap_or_default();
            let weights = t.weights() as f64;
            let is_head = Place::of(&t.name) == Some(Place::Output);
            if (t.layer_matrix || is_head) && p.matrix(t.to).is_some_and(|m| !m.1) {
                unknown.insert(t.to);
            }
            if t.layer_matrix {
                products[0] += weights * rate[0];
                products[1] += weights * rate[1];
            } else if is_head {
                head = weights * rate[0] + hp.n_vocab as f64 * p.sample_value_ns;
            }
        }
        self.guesses()[host].extend(unknown);
        let values = (hp.n_embd + hp.n_ff) as f64;
        let rest = |rows: f64| {
            let embed = match role {
                HalfRole::Edge => rows * hp.n_embd as f64 * p.embed_value_ns,
                HalfRole::Cloud => 0.0,
            };
            let layer = p.layer_fixed_ns + rows * values * p.layer_value_ns;
            p.pass_fixed_ns + layers * layer + embed
        };
        Times {
            row: products[0] + rest(1.0) + head,
            chunk: products[1] + rest(self.chunk as f64),
            head,
        }
    }

    fn guesses(&self) -> MutexGuard<'_, [BTreeSet<BlockType>; 2]> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What had to be guessed, in words: of times so far, of harm in the pair that was `chosen`
    /// by its cut and bits.
    ///
    /// # Errors
    /// When the model cannot be cut there.
    pub fn guessed(&self, chosen: Option<(u32, u32, u32)>) -> Result<Vec<String>, PlanError> {
        let mut harm = Lacks::default();
        if let Some((split, edge, cloud)) = chosen {
            let plan = self.recipe(split, edge, cloud)?;
            for role in [HalfRole::Edge, HalfRole::Cloud] {
                self.harm.of(plan.half(role), &mut harm);
            }
        }
        let guesses = self.guesses();
        let names = |types: &BTreeSet<BlockType>| {
            let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
            names.join(", ")
        };
        let mut out = Vec::new();
        for (flag, types) in ["--edge-profile", "--cloud-profile"]
            .iter()
            .zip(guesses.iter())
        {
            if !types.is_empty() {
                out.push(format!(
                    "{flag} has no times of {}: those of the type of nearest size stand in",
                    names(types)
                ));
            }
        }
        if !harm.types.is_empty() {
            out.push(format!(
                "--sensitivity has no figures of {}: those of the type of nearest error stand in, in proportion to typical squared errors",
                names(&harm.types)
            ));
        }
        if !harm.layers.is_empty() {
            out.push(format!(
                "--sensitivity has nothing of some matrices of {} layers: a prior stands in; give `splitrun calibrate --sensitivity` more --seconds",
                harm.layers.len()
            ));
        }
        Ok(out)
    }
}

/// Nanoseconds.
struct Times {
    row: f64,
    chunk: f64,
    head: f64,
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
