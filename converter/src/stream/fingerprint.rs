//! What decides the bytes of a pair, so that a run can tell whether another one's work is its own.

use std::collections::BTreeSet;

use formats::blocks::{BlockType, quantize_row};
use formats::pair::{Digest, FORMAT_VERSION, HalfRole, metadata_digest};
use serde::{Deserialize, Serialize};

use super::StreamError;
use super::headers::{Headers, Known};
use crate::importance::Weighing;
use crate::recipe::Plan;
use crate::source::{Source, Stamp};

/// All that decides what the bytes of a pair are: name of the thing, as a person would say it,
/// and what it is. Two runs with equal fingerprints write equal files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint(Vec<(String, String)>);

impl Fingerprint {
    /// Adds one thing.
    pub(super) fn add(&mut self, name: &str, value: &impl ToString) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    /// Of a conversion, whatever the paths and the threads.
    pub(super) fn of(
        source: &Source,
        plan: &Plan,
        headers: &Headers<'_>,
    ) -> Result<Self, StreamError> {
        let mut f = Self::default();
        f.add("the version of splitconv", &env!("CARGO_PKG_VERSION"));
        f.add("the encoders", &encoders(plan)?);
        f.add("the format", &FORMAT_VERSION);
        let list = |of: fn(&Stamp) -> String| {
            let all: Vec<String> = source.stamps().iter().map(of).collect();
            all.join(" ")
        };
        f.add("the source's size", &list(|s| s.bytes.to_string()));
        let times = list(|s| s.modified_ns.to_string());
        f.add("the source's time of change", &times);
        f.add("the source's header", &source.header_digest());
        f.add("the cut", &plan.split);
        f.add("the effort", &plan.effort);
        let importances = plan.imatrix_digest().map(|d| d.to_string());
        f.add("the importances", &importances.as_deref().unwrap_or("none"));
        let types = plan.tensors.iter().map(|t| {
            let (name, from, role) = (&t.name, &t.source, t.role);
            let (dims, old, new, encode) = (&t.dims, t.from, t.to, t.encode);
            format!("{name} {from} {role} {dims:?} {old} {new} {encode}\n")
        });
        let types: String = types.collect();
        f.add("the types", &Digest::of(types.as_bytes()));
        let blank = Known::blank(plan);
        let meta = [HalfRole::Edge, HalfRole::Cloud]
            .map(|role| metadata_digest(&headers.of(role, &blank)).to_string());
        f.add("the metadata", &meta.join(" "));
        Ok(f)
    }

    /// The names of the things that differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let of = |of: &Self, name: &str| {
            let found = of.0.iter().find(|(n, _)| n == name);
            found.map(|(_, v)| v.clone())
        };
        let mut names: Vec<&String> = self.0.iter().map(|(n, _)| n).collect();
        names.extend(other.0.iter().map(|(n, _)| n));
        names.dedup();
        let mut different = Vec::new();
        for name in names {
            if of(self, name) != of(other, name) && !different.contains(name) {
                different.push(name.clone());
            }
        }
        different
    }
}

/// What the encoders make of a fixed row: another search, or a change of one, is another encoder,
/// whether or not anybody thought of counting a version.
fn encoders(plan: &Plan) -> Result<Digest, StreamError> {
    // Whole blocks of every type.
    const WEIGHTS: usize = 4096;
    let mut state = 1_u32;
    let row: Vec<f32> = (0..WEIGHTS)
        .map(|_| {
            // The sum of three draws has tails, as weights have.
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            (draw() + draw() + draw()) * 0.05
        })
        .collect();
    // Importances may take another way through a search.
    let columns = Weighing::Columns(row.iter().map(|v| v.abs()).collect());
    let ways = [Weighing::Even, Weighing::Size, columns];
    let used: BTreeSet<(BlockType, usize)> = (plan.tensors.iter().filter(|t| t.encode))
        .map(|t| match t.weighing {
            Weighing::Even => (t.to, 0),
            Weighing::Size => (t.to, 1),
            Weighing::Columns(_) => (t.to, 2),
        })
        .collect();
    let (mut all, mut room) = (Vec::new(), Vec::new());
    for (ty, way) in used {
        let bytes = ty.row_bytes(WEIGHTS);
        let bytes = bytes.ok_or(StreamError::Internal("a row of broken blocks"))?;
        let mut out = vec![0; bytes];
        let weights = ways[way].of(&row, &mut room);
        quantize_row(ty, &row, weights, plan.effort, &mut out)
            .map_err(|_| StreamError::Internal("a row of another size"))?;
        all.extend(out);
    }
    Ok(Digest::of(&all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_have_names() {
        let of = |types: &str| {
            let mut f = Fingerprint::default();
            f.add("the source's size", &12);
            f.add("the types", &types);
            f
        };
        let (a, mut b) = (of("Q4_K"), of("Q3_K"));
        assert_eq!(a.differences(&a), [""; 0]);
        assert_eq!(a.differences(&b), ["the types"]);
        b.add("the effort", &"high");
        assert_eq!(a.differences(&b), ["the types", "the effort"]);
    }
}
