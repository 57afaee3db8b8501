//! Which tensor goes to which half, in which block type.
//!
//! In this order: 1-D tensors keep their type; `--tensor-type` wins; then `--edge-type` and
//! `--cloud-type`; then the embedding and the head keep the source's type (never above 8 bits),
//! and the layers' matrices get the type of the half's bits, unless the source costs no more
//! bits per weight already: then they are copied byte for byte. A forced type always re-encodes.
//!
//! With [`Spending::Auto`], or a budget in figures, the matrices of the layers whose type nobody
//! named are then chosen for again: together within the budget, each by what it is expected to
//! spoil.

mod budget;
mod damage;
mod spread;
mod types;

use std::collections::BTreeMap;

use formats::blocks::{BlockType, Effort};
use formats::gguf::{TensorDecl, TensorInfo};
use formats::pair::{Digest, HalfRole};
use formats::wire::CutStatistics;
use regex::Regex;

pub use damage::Tried;
pub(crate) use damage::{stated, typical};
pub use types::{BadBits, Bits, file_type, fits, half_float};

use crate::importance::{Importance, ImportanceError, Weighing};
use crate::source::{Place, Source, SourceError};

/// `--tensor-type RE=T`.
#[derive(Clone, Debug)]
pub struct TensorRule {
    /// Which tensors, by a match anywhere in the name.
    pub pattern: Regex,
    /// The type they get.
    pub block_type: BlockType,
}

/// How a half's bits are spent on the matrices of its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Spending {
    /// More on those that need it, less on others, the same in all.
    #[default]
    Auto,
    /// The same type for all.
    Flat,
}

/// What a user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Layers on the edge.
    pub split: u32,
    /// Bits of the edge's layers.
    pub edge_bits: Bits,
    /// Bits of the cloud's layers.
    pub cloud_bits: Bits,
    /// One type for all matrices of the edge.
    pub edge_type: Option<BlockType>,
    /// One type for all matrices of the cloud.
    pub cloud_type: Option<BlockType>,
    /// Types by name; the last match wins.
    pub tensor_types: Vec<TensorRule>,
    /// How long the encoders search.
    pub effort: Effort,
    /// How the bits are spent.
    pub spending: Spending,
    /// Bits per weight of the edge's layer matrices, instead of those of the flat type.
    pub edge_budget: Option<f64>,
}

impl Request {
    fn bits(&self, role: HalfRole) -> Bits {
        match role {
            HalfRole::Edge => self.edge_bits,
            HalfRole::Cloud => self.cloud_bits,
        }
    }

    /// The budget that was asked for instead of that of the flat type.
    fn budget(&self, role: HalfRole) -> Option<f64> {
        self.edge_budget.filter(|_| role == HalfRole::Edge)
    }

    fn forced_half(&self, role: HalfRole) -> Option<BlockType> {
        match role {
            HalfRole::Edge => self.edge_type,
            HalfRole::Cloud => self.cloud_type,
        }
    }
}

/// A request that this model cannot fulfil.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The cut leaves a half empty.
    #[error(transparent)]
    Split(#[from] SourceError),
    /// Rows that are not whole blocks of a forced type.
    #[error(
        "tensor `{tensor}` cannot be {forced} as {option} asks: its rows of {row_len} weights are not whole blocks of {}; give it another type with --tensor-type '{}=Q8_0' (or F16)",
        .forced.block_len(),
        regex::escape(.tensor)
    )]
    RowLength {
        /// The tensor.
        tensor: String,
        /// The type asked for.
        forced: BlockType,
        /// Who asked.
        option: String,
        /// Weights in a row.
        row_len: u64,
    },
    /// The importance matrix is another model's.
    #[error(transparent)]
    Importance(#[from] ImportanceError),
    /// A pattern without a tensor.
    #[error(
        "--tensor-type '{pattern}={block_type}' matches no tensor{only_vectors}; `splitconv inspect --all` lists the names"
    )]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Its type.
        block_type: BlockType,
        /// Says so when only 1-D tensors match.
        only_vectors: &'static str,
    },
}

/// One tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// Its name in the half.
    pub name: String,
    /// The tensor of the source it is made of; another name only for the head of a tied model.
    pub source: String,
    /// Which half.
    pub role: HalfRole,
    /// Shape, row length first.
    pub dims: Vec<u64>,
    /// Type in the source.
    pub from: BlockType,
    /// Type in the half.
    pub to: BlockType,
    /// Decoded and encoded anew, or copied byte for byte.
    pub encode: bool,
    /// Bytes in the source.
    pub from_bytes: u64,
    /// Bytes in the half.
    pub bytes: u64,
    /// Whether it is a matrix of a layer: what the bits are spent on.
    pub layer_matrix: bool,
    /// Whether an option named its type.
    pub forced: bool,
    /// What an error in a weight costs, for the encoder.
    pub weighing: Weighing,
}

impl TensorPlan {
    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.dims.iter().product()
    }

    /// As the GGUF writer wants it.
    pub fn decl(&self) -> TensorDecl {
        TensorDecl {
            name: self.name.clone(),
            dims: self.dims.clone(),
            block_type: self.to,
        }
    }
}

/// What a half costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HalfCost {
    /// Bytes of tensor data.
    pub bytes: u64,
    /// Bits per weight over the matrices of the layers.
    pub bits_per_weight: f64,
    /// Bits per weight over all tensors.
    pub total_bits_per_weight: f64,
    /// Bits per weight of the flat type that the bits stand for; `None` when a type is forced on
    /// the whole half.
    pub budget_bits_per_weight: Option<f64>,
}

/// What will be written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Layers on the edge.
    pub split: u32,
    /// How long the encoders search.
    pub effort: Effort,
    /// Tensors, the edge's before the cloud's, each in the source's order.
    pub tensors: Vec<TensorPlan>,
    /// What should be said about the choice, one line each.
    pub notes: Vec<String>,
    /// Cost of the edge.
    pub edge: HalfCost,
    /// Cost of the cloud.
    pub cloud: HalfCost,
    /// Digest of the importance matrix that was given.
    importance: Option<Digest>,
    /// Statistics of the cut, if an importance matrix with them was given.
    pub boundary: Option<CutStatistics>,
}

impl Plan {
    /// The tensors of one half.
    pub fn half(&self, role: HalfRole) -> impl Iterator<Item = &TensorPlan> {
        self.tensors.iter().filter(move |t| t.role == role)
    }

    /// Cost of one half.
    pub fn cost(&self, role: HalfRole) -> HalfCost {
        match role {
            HalfRole::Edge => self.edge,
            HalfRole::Cloud => self.cloud,
        }
    }

    /// Digest of the importances, when an encoder is given any: other bytes come of them.
    pub fn imatrix_digest(&self) -> Option<Digest> {
        let used = self
            .tensors
            .iter()
            .any(|t| t.encode && t.weighing.columns().is_some());
        self.importance.filter(|_| used)
    }

    /// The type that most weights of the pair have.
    pub fn main_type(&self) -> BlockType {
        let mut weights: BTreeMap<BlockType, u64> = BTreeMap::new();
        for t in &self.tensors {
            *weights.entry(t.to).or_default() += t.weights();
        }
        let most = weights.into_iter().max_by_key(|(_, n)| *n);
        most.map_or(BlockType::F32, |(ty, _)| ty)
    }
}

/// Decides for every tensor of `source`; `threads` try types on samples of it, if that is asked
/// for. The answer does not depend on their number.
///
/// # Errors
/// [`RecipeError`] for a cut or a forced type that the model cannot have, and for an importance
/// matrix of another model.
pub fn plan(
    source: &Source,
    request: &Request,
    importance: Option<&Importance>,
    threads: usize,
) -> Result<Plan, RecipeError> {
    plan_with(source, request, importance, &Tried::new(threads))
}

/// [`plan`] with a memory: what `tried` knows already is not tried again.
///
/// # Errors
/// As [`plan`].
pub fn plan_with(
    source: &Source,
    request: &Request,
    importance: Option<&Importance>,
    tried: &Tried,
) -> Result<Plan, RecipeError> {
    source.check_split(request.split)?;
    if let Some(importance) = importance {
        importance.check(source)?;
    }
    let mut chooser = Chooser {
        request,
        importance,
        used: vec![Match::None; request.tensor_types.len()],
    };
    let mut halves = [Vec::new(), Vec::new()];
    let mut add = |tensor: &TensorInfo, name: &str, place, role: HalfRole| {
        let plan = chooser.choose(tensor, name, place, role)?;
        halves[usize::from(role.shard())].push(plan);
        Ok::<(), RecipeError>(())
    };
    for tensor in source.tensors() {
        let name = tensor.name.as_str();
        // The source has refused every name that has no place.
        let Some(place) = Place::of(name) else {
            continue;
        };
        let role = match place {
            Place::Embedding | Place::RopeFreqs => HalfRole::Edge,
            Place::Layer(l) if l < request.split => HalfRole::Edge,
            Place::Layer(_) | Place::OutputNorm | Place::Output => HalfRole::Cloud,
        };
        add(tensor, name, place, role)?;
        if place == Place::Embedding && source.hparams().tied {
            add(tensor, "output.weight", Place::Output, HalfRole::Cloud)?;
        }
    }
    chooser.check_rules()?;
    let [mut edge, mut cloud] = halves;
    let sensitivity = importance.and_then(Importance::sensitivity);
    let damage_cost = sensitivity.map_or(damage::Cost::Stated, damage::Cost::Measured);
    let mut uneven = Vec::new();
    for (role, half) in [(HalfRole::Edge, &mut edge), (HalfRole::Cloud, &mut cloud)] {
        if spread::spread(source, request, role, half, damage_cost, tried) {
            uneven.push(role.name());
        }
    }
    let edge_cost = cost(request, HalfRole::Edge, &edge);
    let cloud_cost = cost(request, HalfRole::Cloud, &cloud);
    let mut plan = Plan {
        split: request.split,
        effort: request.effort,
        tensors: edge.into_iter().chain(cloud).collect(),
        notes: Vec::new(),
        edge: edge_cost,
        cloud: cloud_cost,
        importance: importance.map(Importance::digest),
        boundary: boundary_at(request.split, source, importance),
    };
    plan.notes.extend(spending(&uneven, importance));
    plan.notes.extend(fallbacks(request, &plan));
    plan.notes.extend(requantised(&plan));
    plan.notes
        .extend(importance.and_then(|i| without_importance(&plan, i)));
    Ok(plan)
}

#[derive(Clone, Copy, PartialEq)]
enum Match {
    None,
    OnlyVectors,
    Matrix,
}

struct Chooser<'a> {
    request: &'a Request,
    importance: Option<&'a Importance>,
    /// What each `--tensor-type` has matched.
    used: Vec<Match>,
}

impl Chooser<'_> {
    fn choose(
        &mut self,
        tensor: &TensorInfo,
        name: &str,
        place: Place,
        role: HalfRole,
    ) -> Result<TensorPlan, RecipeError> {
        let from = tensor.block_type;
        let is_matrix = tensor.dims.len() > 1;
        let row_len = tensor.dims.first().copied().unwrap_or(0);
        let forced = self.forced(name, role, is_matrix);
        let is_forced = forced.is_some();
        let (to, encode) = match forced {
            Some((forced, option)) => {
                if !fits(forced, row_len) {
                    return Err(RecipeError::RowLength {
                        tensor: name.to_owned(),
                        forced,
                        option,
                        row_len,
                    });
                }
                (forced, true)
            }
            None if !is_matrix => (from, false),
            None => {
                let to = self.unforced(from, row_len, place, role);
                (to, to != from)
            }
        };
        let mut plan = TensorPlan {
            name: name.to_owned(),
            source: tensor.name.clone(),
            role,
            dims: tensor.dims.clone(),
            from,
            to,
            encode,
            from_bytes: tensor.bytes as u64,
            bytes: 0,
            layer_matrix: is_matrix && matches!(place, Place::Layer(_)),
            forced: is_forced,
            weighing: match place {
                // A tied head's numbers are not the embedding's: rows are looked up, not summed.
                Place::Embedding => Weighing::Even,
                _ if !is_matrix => Weighing::Even,
                _ => match self.importance.and_then(|i| i.of(&tensor.name)) {
                    Some(columns) => Weighing::Columns(columns.clone()),
                    // Measured: as good as `Size` on one model, 3 % of perplexity better on another
                    // (docs/importance.md).
                    None if name.contains("ffn_down") => Weighing::Even,
                    None => Weighing::Size,
                },
            },
        };
        let bytes = plan.decl().bytes().ok_or_else(|| RecipeError::RowLength {
            tensor: name.to_owned(),
            forced: to,
            option: "the recipe".into(),
            row_len,
        })?;
        plan.bytes = bytes as u64;
        Ok(plan)
    }

    /// The type that an option forces on this tensor, and that option.
    fn forced(
        &mut self,
        name: &str,
        role: HalfRole,
        is_matrix: bool,
    ) -> Option<(BlockType, String)> {
        let mut rule = None;
        for (r, used) in self.request.tensor_types.iter().zip(&mut self.used) {
            if r.pattern.is_match(name) {
                if is_matrix {
                    *used = Match::Matrix;
                    rule = Some(r);
                } else if *used == Match::None {
                    *used = Match::OnlyVectors;
                }
            }
        }
        if !is_matrix {
            return None;
        }
        if let Some(r) = rule {
            let option = format!("--tensor-type '{}={}'", r.pattern, r.block_type);
            return Some((r.block_type, option));
        }
        let ty = self.request.forced_half(role)?;
        Some((ty, format!("--{role}-type {ty}")))
    }

    fn unforced(&self, from: BlockType, row_len: u64, place: Place, role: HalfRole) -> BlockType {
        let Place::Layer(_) = place else {
            let eight = BlockType::Q8_0;
            return if from.bits_per_weight() <= eight.bits_per_weight() {
                from
            } else if fits(eight, row_len) {
                eight
            } else {
                half_float(from)
            };
        };
        let bits = self.request.bits(role);
        let to = bits.for_rows(from, row_len);
        if from.bits_per_weight() <= to.bits_per_weight() {
            return from;
        }
        to
    }

    fn check_rules(&self) -> Result<(), RecipeError> {
        for (rule, used) in self.request.tensor_types.iter().zip(&self.used) {
            if *used != Match::Matrix {
                return Err(RecipeError::NoMatch {
                    pattern: rule.pattern.to_string(),
                    block_type: rule.block_type,
                    only_vectors: match used {
                        Match::OnlyVectors => " but 1-D ones, which always keep their type",
                        _ => "",
                    },
                });
            }
        }
        Ok(())
    }
}

/// What is known of the rows at the cut; statistics of rows of another width say nothing of them.
fn boundary_at(
    split: u32,
    source: &Source,
    importance: Option<&Importance>,
) -> Option<CutStatistics> {
    let boundary = importance?.boundary()?.at(split as usize)?;
    let width = source.hparams().n_embd;
    boundary.channels(width).is_some().then_some(boundary)
}

/// Says by which rule the bits of the halves in `uneven` are spent.
fn spending(uneven: &[&str], importance: Option<&Importance>) -> Option<String> {
    let halves = uneven.join(" and ");
    let measured = importance.and_then(|i| Some((i, i.sensitivity()?)));
    let rule = match measured {
        Some((i, s)) => format!(
            "as the sensitivities in {} say, measured over {} tokens",
            i.path().display(),
            s.tokens
        ),
        None => "by stated factors for each kind of matrix; an --imatrix of `splitrun calibrate --sensitivity` has measured ones".to_owned(),
    };
    (!uneven.is_empty()).then(|| format!("{halves}: the bits are spent {rule}"))
}

/// Says which matrices could not have a type of the bits asked for, and what they got.
fn fallbacks(request: &Request, plan: &Plan) -> Vec<String> {
    let mut found: BTreeMap<(HalfRole, u64, BlockType), BTreeMap<BlockType, usize>> =
        BTreeMap::new();
    for t in (plan.tensors.iter()).filter(|t| t.layer_matrix && t.encode && !t.forced) {
        let row_len = t.dims.first().copied().unwrap_or(0);
        let flat = request.bits(t.role).flat(t.from);
        if !fits(flat, row_len) {
            let types = found.entry((t.role, row_len, flat)).or_default();
            *types.entry(t.to).or_default() += 1;
        }
    }
    let line = |((role, row_len, flat), types): (&(HalfRole, u64, BlockType), _)| {
        let types: &BTreeMap<BlockType, usize> = types;
        let n: usize = types.values().sum();
        let names: Vec<&str> = types.keys().map(|t| t.name()).collect();
        format!(
            "{role}: rows of {row_len} are not whole blocks of {}: {n} tensors become {} instead of {flat}",
            flat.block_len(),
            names.join(" or ")
        )
    };
    found.iter().map(line).collect()
}

/// One line when some encoders have to do without importances.
fn without_importance(plan: &Plan, importance: &Importance) -> Option<String> {
    // `ffn_down` is weighed evenly where it has no columns; the embedding always is, by intent.
    let wants = |t: &TensorPlan| t.layer_matrix || t.weighing == Weighing::Size;
    let without = |t: &&TensorPlan| {
        t.encode && t.to.block_len() > 1 && wants(t) && t.weighing.columns().is_none()
    };
    let names: Vec<&str> = plan
        .tensors
        .iter()
        .filter(without)
        .map(|t| t.name.as_str())
        .collect();
    let first = names.first()?;
    Some(format!(
        "{} says nothing about {} tensors, `{first}` the first of them: they are encoded without importances",
        importance.path().display(),
        names.len()
    ))
}

/// One line when quantised tensors are quantised again.
fn requantised(plan: &Plan) -> Option<String> {
    let again = |t: &&TensorPlan| t.encode && t.from.block_len() > 1 && t.to.block_len() > 1;
    let mut types: Vec<BlockType> = plan.tensors.iter().filter(again).map(|t| t.from).collect();
    let n = types.len();
    types.sort();
    types.dedup();
    let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
    (n > 0).then(|| {
        format!(
            "the source is already quantised: {n} tensors go from {} to another type and lose twice; converting the F16 original is better",
            names.join(", ")
        )
    })
}

fn cost(request: &Request, role: HalfRole, tensors: &[TensorPlan]) -> HalfCost {
    let sum = |only_layers: bool| {
        let chosen = tensors.iter().filter(|t| t.layer_matrix || !only_layers);
        chosen.fold((0_u64, 0_u64), |(b, w), t| (b + t.bytes, w + t.weights()))
    };
    let rate = |(bytes, weights): (u64, u64)| {
        if weights == 0 {
            0.0
        } else {
            bytes as f64 * 8.0 / weights as f64
        }
    };
    let source = tensors.iter().find(|t| t.layer_matrix).map(|t| t.from);
    let flat = request.bits(role).flat(source.unwrap_or(BlockType::F16));
    HalfCost {
        bytes: sum(false).0,
        bits_per_weight: rate(sum(true)),
        total_bits_per_weight: rate(sum(false)),
        budget_bits_per_weight: match request.forced_half(role) {
            Some(_) => None,
            None => request.budget(role).or(Some(flat.bits_per_weight())),
        },
    }
}
