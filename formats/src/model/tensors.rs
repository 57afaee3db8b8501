//! The tensors of a model: their names, places and shapes.

use super::architecture::Architecture;
use super::directory::TensorDirectory;
use super::error::ModelFault;
use super::hparams::HParams;

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
pub(super) const OUTPUT: &str = "output.weight";
const OUTPUT_NORM: &str = "output_norm.weight";

/// Where in the model a tensor belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `token_embd.weight`.
    Embedding,
    /// `rope_freqs.weight`: needed by every layer.
    RopeFreqs,
    /// `blk.N.…`.
    Layer(u32),
    /// `output_norm.weight`.
    OutputNorm,
    /// `output.weight`.
    Output,
}

impl Place {
    /// The place of the tensor called `name`, `None` for a name that no supported architecture
    /// has.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            EMBEDDING => Self::Embedding,
            ROPE_FREQS => Self::RopeFreqs,
            OUTPUT_NORM => Self::OutputNorm,
            OUTPUT => Self::Output,
            _ => {
                let (layer, part) = layer_part(name)?;
                if !PARTS.iter().any(|p| p.name == part) && !OLD_FREQUENCIES.contains(&part) {
                    return None;
                }
                Self::Layer(layer)
            }
        })
    }
}

/// Layer and rest of `blk.N.REST`.
fn layer_part(name: &str) -> Option<(u32, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    if !layer.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((layer.parse().ok()?, part))
}

/// A size that shapes are made of.
#[derive(Clone, Copy)]
enum Size {
    Embd,
    Q,
    Kv,
    Ff,
}

struct Part {
    name: &'static str,
    /// Row length first.
    dims: &'static [Size],
}

const fn part(name: &'static str, dims: &'static [Size]) -> Part {
    Part { name, dims }
}

/// The biases that a layer may have, in the order of [`TensorSpec`]s.
pub const LAYER_BIASES: [&str; 3] = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];

/// What a layer has, biases last.
const PARTS: [Part; 12] = [
    part("attn_norm.weight", &[Size::Embd]),
    part("attn_q.weight", &[Size::Embd, Size::Q]),
    part("attn_k.weight", &[Size::Embd, Size::Kv]),
    part("attn_v.weight", &[Size::Embd, Size::Kv]),
    part("attn_output.weight", &[Size::Q, Size::Embd]),
    part("ffn_norm.weight", &[Size::Embd]),
    part("ffn_gate.weight", &[Size::Embd, Size::Ff]),
    part("ffn_up.weight", &[Size::Embd, Size::Ff]),
    part("ffn_down.weight", &[Size::Ff, Size::Embd]),
    part(LAYER_BIASES[0], &[Size::Q]),
    part(LAYER_BIASES[1], &[Size::Kv]),
    part(LAYER_BIASES[2], &[Size::Kv]),
];

/// Old files carry the inverse frequencies that the base implies; nobody reads them.
const OLD_FREQUENCIES: [&str; 2] = ["attn_rot_embd", "attn_rot_embd.weight"];

impl Architecture {
    /// The place of the tensor called `name` in a model of this architecture, `None` when it has
    /// no such tensor.
    pub fn place(self, name: &str) -> Option<Place> {
        let place = Place::of(name)?;
        let factors = match place {
            Place::RopeFreqs => true,
            Place::Layer(_) => {
                layer_part(name).is_some_and(|(_, part)| OLD_FREQUENCIES.contains(&part))
            }
            _ => false,
        };
        (!factors || self.may_have_factors()).then_some(place)
    }
}

/// A tensor as a model must or may have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// GGUF name.
    pub name: String,
    /// Where it belongs.
    pub place: Place,
    /// Its shape, row length first.
    pub dims: Vec<u64>,
    /// Whether a model is not whole without it.
    pub required: bool,
}

impl HParams {
    /// Every tensor that the model must or may have, from the embedding to the head.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        let (embd, vocab) = (self.n_embd as u64, self.n_vocab as u64);
        let spec = |name: &str, place, dims, required| TensorSpec {
            name: name.to_owned(),
            place,
            dims,
            required,
        };
        let factors = self.architecture.may_have_factors().then(|| {
            let dims = vec![self.rope.dims as u64 / 2];
            spec(ROPE_FREQS, Place::RopeFreqs, dims, false)
        });
        let layers = (0..self.n_layer as u32).flat_map(|l| self.layer_tensors(l));
        [spec(EMBEDDING, Place::Embedding, vec![embd, vocab], true)]
            .into_iter()
            .chain(factors)
            .chain(layers)
            .chain([
                spec(OUTPUT_NORM, Place::OutputNorm, vec![embd], true),
                spec(OUTPUT, Place::Output, vec![embd, vocab], false),
            ])
    }

    /// The tensors of layer `layer`: norms and matrices, then the biases of Q, K and V.
    pub fn layer_tensors(&self, layer: u32) -> impl Iterator<Item = TensorSpec> + '_ {
        PARTS.iter().map(move |part| TensorSpec {
            name: format!("blk.{layer}.{}", part.name),
            place: Place::Layer(layer),
            dims: part.dims.iter().map(|s| self.size(*s)).collect(),
            required: !LAYER_BIASES.contains(&part.name) || self.architecture.needs_biases(),
        })
    }

    fn size(&self, size: Size) -> u64 {
        (match size {
            Size::Embd => self.n_embd,
            Size::Q => self.q_width(),
            Size::Kv => self.kv_width(),
            Size::Ff => self.n_ff,
        }) as u64
    }
}

/// Checks that a whole model has every tensor it needs, each in its shape, and none that
/// splitrun would ignore.
///
/// # Errors
/// [`ModelFault::Shape`], [`ModelFault::MissingTensor`] or [`ModelFault::UnknownTensor`]; the
/// first of a kind, in the order of the model.
pub fn check_tensors(
    shape: &HParams,
    tensors: &(impl TensorDirectory + ?Sized),
) -> Result<(), ModelFault> {
    // A claim of more layers than there are tensors ends at these.
    let have = u32::try_from(tensors.names().count()).unwrap_or(u32::MAX);
    let mut missing: Option<(String, usize)> = None;
    let seen = |place| !matches!(place, Place::Layer(l) if l > have);
    for spec in shape.tensors().filter(|s| seen(s.place)) {
        match tensors.dims(&spec.name) {
            Some(found) if found == spec.dims => {}
            Some(found) => {
                return Err(ModelFault::Shape {
                    tensor: spec.name,
                    found,
                    wanted: spec.dims,
                });
            }
            None if spec.required => match &mut missing {
                Some((_, others)) => *others += 1,
                None => missing = Some((spec.name, 0)),
            },
            None => {}
        }
    }
    if let Some((first, others)) = missing {
        return Err(ModelFault::MissingTensor { first, others });
    }
    let unknown = |name: &&str| match shape.architecture.place(name) {
        Some(Place::Layer(l)) => l as usize >= shape.n_layer,
        place => place.is_none(),
    };
    match tensors.names().find(unknown) {
        None => Ok(()),
        Some(tensor) => Err(ModelFault::UnknownTensor {
            tensor: tensor.to_owned(),
            architecture: shape.architecture,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(Place::of("blk.12.attn_q.weight"), Some(Place::Layer(12)));
        assert_eq!(Place::of("blk.1.attn_q.bias"), Some(Place::Layer(1)));
        assert_eq!(Place::of("output.weight"), Some(Place::Output));
        for no in [
            "blk.x.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.1.ffn_gate_exps.weight",
            "blk.1.attn_output.bias",
            "blk..attn_q.weight",
            "blk.99999999999.attn_q.weight",
            "rope_factors_long.weight",
            "output.bias",
            "output",
        ] {
            assert_eq!(Place::of(no), None, "{no}");
        }
    }

    #[test]
    fn what_one_architecture_has_another_need_not() {
        for name in [ROPE_FREQS, "blk.0.attn_rot_embd"] {
            assert!(Architecture::Llama.place(name).is_some(), "{name}");
            assert_eq!(Architecture::Qwen2.place(name), None, "{name}");
        }
    }
}
