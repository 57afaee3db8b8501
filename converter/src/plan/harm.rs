//! What types cost in nats of divergence from the source.

use std::collections::{BTreeSet, HashMap};

use formats::blocks::BlockType;
use formats::imatrix::KINDS;
use formats::measured::{LayerSensitivity, WHOLE_LAYER};

use crate::importance::Importance;
use crate::recipe::{TensorPlan, stated, typical};
use crate::source::{Place, Source};

/// Nats per layer and unit of squared relative error, times the weights of all layers, where
/// nothing was measured. Qwen2.5-Coder-1.5B cut at 10 in `Q3_K` costs 0.0306 nats
/// (docs/importance.md): 0.15 for each layer, at 1.3·10⁹ weights; larger models feel it less, roughly in proportion.
const PRIOR: f64 = 2e8;

/// Where figures of harm come from.
#[derive(Debug)]
enum Basis {
    /// `--sensitivity`: matrix and type; nats per layer and unit of squared relative error for
    /// matrices that it has nothing of.
    Types { known: Known, prior: f64 },
    /// An importance matrix with sensitivities: matrix, per unit of squared relative error.
    Errors(Vec<[f32; KINDS.len()]>),
    /// Nothing was measured: nats per layer and unit of squared relative error.
    Prior(f64),
}

/// Types and nats, as they add up where many are changed, by layer and place in [`KINDS`] (or [`WHOLE`]).
type Known = HashMap<(u32, usize), Vec<(BlockType, f64)>>;

/// Says what a matrix in a type costs.
#[derive(Debug)]
pub struct Harm {
    basis: Basis,
    /// Where the figures come from, for the answer.
    pub said: String,
}

/// What a file of sensitivities was asked for and does not have.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Types: figures of another type of the same matrix stand in.
    pub types: BTreeSet<BlockType>,
    /// Layers with matrices of which it has nothing at all: the prior stands in.
    pub layers: BTreeSet<u32>,
}

/// The place of a kind in [`KINDS`] for all matrices of a layer together.
const WHOLE: usize = KINDS.len();

impl Harm {
    /// From the best that is there: a sensitivity file, sensitivities of an importance matrix, a
    /// stated prior.
    ///
    /// # Errors
    /// When the sensitivity file is of a model of another shape.
    pub fn new(
        source: &Source,
        measured: Option<&LayerSensitivity>,
        importance: Option<&Importance>,
    ) -> Result<Self, String> {
        let hp = source.hparams();
        let weights: u64 = source
            .tensors()
            .filter(|t| t.dims.len() > 1 && matches!(Place::of(&t.name), Some(Place::Layer(_))))
            .map(formats::gguf::TensorInfo::weights)
            .sum();
        let prior = PRIOR / (weights.max(1) as f64);
        if let Some(m) = measured {
            let theirs = [m.n_layer, m.n_embd, m.n_ff, m.n_vocab].map(|n| n as usize);
            let ours = [hp.n_layer, hp.n_embd, hp.n_ff, hp.n_vocab];
            if theirs != ours {
                return Err(format!(
                    "it was measured on `{}` with layers, width, feed-forward width and vocabulary of {theirs:?}; this model has {ours:?}: measure this one with `splitrun calibrate --sensitivity`",
                    crate::printable(&m.model)
                ));
            }
            if !m.types.is_empty() {
                return Ok(Self {
                    said: format!(
                        "measured on {} tokens of `{}`{}",
                        m.tokens,
                        crate::printable(&m.text),
                        if m.quick {
                            ", in part fitted (--quick)"
                        } else {
                            ""
                        }
                    ),
                    basis: Basis::Types {
                        known: known(m),
                        prior,
                    },
                });
            }
        }
        if let Some(s) = importance.and_then(Importance::sensitivity) {
            return Ok(Self {
                said: format!(
                    "from the sensitivities of the importance matrix ({} tokens) and typical errors of the types",
                    s.tokens
                ),
                basis: Basis::Errors(s.layers.clone()),
            });
        }
        Ok(Self {
            said: "a prior, not measured on this model: one figure for all layers, scaled by the number of weights; `splitrun calibrate --sensitivity` measures it".to_owned(),
            basis: Basis::Prior(prior),
        })
    }

    /// Whether the figures were measured on this model.
    pub fn is_measured(&self) -> bool {
        !matches!(self.basis, Basis::Prior(_))
    }

    /// Nats that writing `tensors` of a half costs, together: a sum over its matrices. `lacks`
    /// gets what had to be guessed.
    pub fn of<'a>(&self, tensors: impl Iterator<Item = &'a TensorPlan>, lacks: &mut Lacks) -> f64 {
        tensors
            .filter(|t| t.layer_matrix && t.encode)
            .filter_map(|t| {
                let Some(Place::Layer(layer)) = Place::of(&t.name) else {
                    return None;
                };
                let kind = KINDS
                    .iter()
                    .position(|k| t.name.split('.').nth(2) == Some(k))?;
                Some(self.matrix(layer, kind, t.to, lacks))
            })
            .sum()
    }

    fn matrix(&self, layer: u32, kind: usize, ty: BlockType, lacks: &mut Lacks) -> f64 {
        match &self.basis {
            Basis::Types { known, prior } => {
                // A type that loses nothing needs no figure.
                if typical(ty) <= 0.0 {
                    return 0.0;
                }
                if let Some((kl, own)) = of_type(known, layer, kind, ty) {
                    if !own {
                        lacks.types.insert(ty);
                    }
                    kl
                } else {
                    lacks.layers.insert(layer);
                    prior * share(kind) * typical(ty)
                }
            }
            Basis::Errors(layers) => {
                let nats = layers
                    .get(layer as usize)
                    .map_or(0.0, |row| f64::from(row[kind]));
                nats * typical(ty)
            }
            Basis::Prior(nats) => nats * share(kind) * typical(ty),
        }
    }
}

/// The part of a layer's harm that is expected of one kind of matrix.
fn share(kind: usize) -> f64 {
    let all: f64 = KINDS.iter().map(|k| stated(k)).sum();
    KINDS.get(kind).map_or(0.0, |k| stated(k)) / all
}

fn known(m: &LayerSensitivity) -> Known {
    let mut known = Known::new();
    for t in &m.types {
        let kind = match KINDS.iter().position(|k| *k == t.kind) {
            Some(kind) => kind,
            None if t.kind == WHOLE_LAYER => WHOLE,
            None => continue,
        };
        if let Ok(ty) = t.block_type.parse() {
            let kl = t.kl * m.additivity_of(t.layer);
            known.entry((t.layer, kind)).or_default().push((ty, kl));
        }
    }
    known
}

/// The figure of this matrix and type; else of the layer, shared out; else that of another type
/// of the same matrix, in proportion to the typical squared errors of the types. And whether it
/// is a figure of this type.
fn of_type(known: &Known, layer: u32, kind: usize, ty: BlockType) -> Option<(f64, bool)> {
    let found: Vec<(&Vec<(BlockType, f64)>, f64)> = [(kind, 1.0), (WHOLE, share(kind))]
        .into_iter()
        .filter_map(|(place, part)| Some((known.get(&(layer, place))?, part)))
        .collect();
    for (types, part) in &found {
        if let Some((_, kl)) = types.iter().find(|(t, _)| *t == ty) {
            return Some((part * kl, true));
        }
    }
    let error = |ty: BlockType| typical(ty).max(1e-9);
    let (types, part) = found.first()?;
    let distance = |other: BlockType| (error(other) / error(ty)).ln().abs();
    let nearest = types
        .iter()
        .min_by(|(a, _), (b, _)| distance(*a).total_cmp(&distance(*b)));
    nearest.map(|(other, kl)| (part * kl * error(ty) / error(*other), false))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use formats::measured::{Front, SENSITIVITY_VERSION, TypeDamage};

    pub(in crate::plan) fn nothing_measured(n_layer: u32) -> LayerSensitivity {
        LayerSensitivity {
            format: LayerSensitivity::FORMAT.into(),
            version: SENSITIVITY_VERSION,
            model: "m".into(),
            n_layer,
            n_embd: 64,
            n_ff: 256,
            n_vocab: 320,
            build: String::new(),
            text: String::new(),
            tokens: 0,
            perplexity: None,
            quick: false,
            additivity: 1.0,
            front: None,
            types: Vec::new(),
            codecs: Vec::new(),
        }
    }

    #[test]
    fn a_figure_is_found_or_scaled_from_the_nearest() {
        let damage = |kind: &str, ty: BlockType, kl| TypeDamage {
            layer: 1,
            kind: kind.into(),
            block_type: ty.name().into(),
            kl,
            fitted: false,
        };
        let measured = LayerSensitivity {
            types: vec![
                damage("attn_v", BlockType::Q2_K, 0.5),
                damage("attn_v", BlockType::Q4_K, 0.03),
                damage(WHOLE_LAYER, BlockType::Q3_K, 0.9),
            ],
            ..nothing_measured(6)
        };
        let known = known(&measured);
        let of = |kind: &str, ty| {
            let kind = KINDS.iter().position(|k| *k == kind).unwrap();
            of_type(&known, 1, kind, ty)
        };
        assert_eq!(of("attn_v", BlockType::Q2_K), Some((0.5, true)));
        // 0.4 of 4.5 in the stated factors.
        assert!((of("attn_v", BlockType::Q3_K).unwrap().0 - 0.08).abs() < 1e-9);
        let (q5, own) = of("attn_v", BlockType::Q5_K).unwrap();
        let factor = typical(BlockType::Q5_K) / typical(BlockType::Q4_K);
        assert!((q5 - 0.03 * factor).abs() < 1e-9 && !own);
        // The front adds up in its own way.
        let v = KINDS.iter().position(|k| *k == "attn_v").unwrap();
        let front = |layers| LayerSensitivity {
            additivity: 2.0,
            front: Some(Front {
                layers,
                additivity: 0.5,
            }),
            ..measured.clone()
        };
        let figures = |m: &LayerSensitivity| of_type(&super::known(m), 1, v, BlockType::Q2_K);
        assert_eq!(figures(&front(2)), Some((0.25, true)));
        let harm = Harm {
            basis: Basis::Types {
                known: super::known(&front(1)),
                prior: 10.0,
            },
            said: String::new(),
        };
        let mut lacks = Lacks::default();
        assert_eq!(harm.matrix(1, v, BlockType::Q2_K, &mut lacks), 1.0);
        // F16 is as good as what it is made from, of a layer that was measured or was not.
        assert_eq!(harm.matrix(1, v, BlockType::F16, &mut lacks), 0.0);
        assert_eq!(harm.matrix(3, v, BlockType::F16, &mut lacks), 0.0);
        assert_eq!(lacks, Lacks::default());
        harm.matrix(1, v, BlockType::Q5_K, &mut lacks);
        // Of a layer that nobody has measured something is expected all the same.
        assert!(harm.matrix(3, v, BlockType::Q2_K, &mut lacks) > 0.01);
        assert_eq!(lacks.types, [BlockType::Q5_K].into());
        assert_eq!(lacks.layers, [3].into());
        assert!(of("ffn_up", BlockType::Q2_K).unwrap() > of("ffn_up", BlockType::Q3_K).unwrap());
        assert_eq!(of_type(&known, 0, 0, BlockType::Q2_K), None);
    }

    #[test]
    fn shares_of_a_layer_are_a_whole() {
        let all: f64 = (0..KINDS.len()).map(share).sum();
        assert!((all - 1.0).abs() < 1e-12);
    }
}
