//! The uneven choice: a half's budget, spent on its layers' matrices where it helps most.

use formats::blocks::BlockType;
use formats::pair::HalfRole;

use super::budget::{Offer, spend};
use super::damage::{Cost, Trial, Tried};
use super::types::fits;
use super::{Request, Spending, TensorPlan};
use crate::source::Source;

/// Types that a matrix may get beside its own, cheapest first. Of those that cost the same, what
/// they spoil decides.
const TYPES: [BlockType; 9] = [
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::IQ4_XS,
    BlockType::Q4_K,
    BlockType::IQ4_NL,
    BlockType::Q5_K,
    BlockType::Q5_1,
    BlockType::Q6_K,
    BlockType::Q8_0,
];

/// From these bits on nothing is worth being moved about.
const FINE: u32 = 8;

/// Chooses again for the matrices of the layers in `half` whose type no option has named.
///
/// They may cost together what the flat type would cost, or the budget that was asked for; a
/// tensor may also stay as it is in the source, which spoils nothing. Returns whether any type is
/// another one now.
pub(super) fn spread(
    source: &Source,
    request: &Request,
    role: HalfRole,
    half: &mut [TensorPlan],
    cost: Cost<'_>,
    tried: &Tried,
) -> bool {
    let bits = request.bits(role);
    let budget = request.budget(role);
    if budget.is_none() && (request.spending == Spending::Flat || bits.get() >= FINE) {
        return false;
    }
    let mut free: Vec<&mut TensorPlan> = half
        .iter_mut()
        .filter(|t| t.layer_matrix && !t.forced)
        .collect();
    let allowed = match budget {
        Some(bits) => {
            let weights: u64 = free.iter().map(|t| t.weights()).sum();
            (bits / 8.0 * weights as f64) as u64
        }
        None => free
            .iter()
            .map(|t| bytes(t, bits.for_rows(t.from, t.dims[0])))
            .sum(),
    };
    let choices: Vec<Vec<BlockType>> = free.iter().map(|t| types(t)).collect();
    let trials: Vec<Trial<'_>> = free
        .iter()
        .zip(&choices)
        .flat_map(|(t, types)| {
            types.iter().filter(|ty| **ty != t.from).map(|to| Trial {
                tensor: &t.source,
                to: *to,
                columns: t.weighing.columns(),
            })
        })
        .collect();
    let mut errors = tried.errors(source, &trials).into_iter();
    let offers: Vec<Vec<Offer>> = free
        .iter()
        .zip(&choices)
        .map(|(t, types)| {
            let cost = cost.of(&t.name);
            let offer = |ty: &BlockType| Offer {
                bytes: bytes(t, *ty),
                damage: if *ty == t.from {
                    0.0
                } else {
                    // As many errors as trials: one for each type that is not its own.
                    errors.next().unwrap_or(0.0) * cost
                },
            };
            types.iter().map(offer).collect()
        })
        .collect();
    let picked = spend(&offers, allowed);
    let mut changed = false;
    for ((t, types), pick) in free.iter_mut().zip(&choices).zip(picked) {
        let to = types[pick];
        changed |= to != t.to;
        t.bytes = bytes(t, to);
        t.encode = to != t.from;
        t.to = to;
    }
    changed
}

/// The types that `t` could have, its own included; never one that costs as much as its own.
fn types(t: &TensorPlan) -> Vec<BlockType> {
    let own = t.from.bits_per_weight();
    let cheaper = |ty: &BlockType| ty.bits_per_weight() < own && fits(*ty, t.dims[0]);
    let mut all: Vec<BlockType> = TYPES.into_iter().filter(cheaper).collect();
    all.push(t.from);
    all
}

fn bytes(t: &TensorPlan, ty: BlockType) -> u64 {
    let mut decl = t.decl();
    decl.block_type = ty;
    decl.bytes().map_or(u64::MAX / 2, |b| b as u64)
}
