//! Which variants of the kernels a device gets: what the adapter has, what was asked for, and what a
//! small product on the device itself has shown to be right.

use std::fmt;

use formats::blocks::{self, BlockType, Effort};
use shaders::CooperativeSize;
use wgpu::BufferUsages as Usage;

use super::device::Gpu;
use super::error::GpuError;
use super::ops::matrix::{Place, Products};
use super::ops::prepare::scratch_bytes;
use super::record::{Pass, Recorder, Slots};
use super::wanted::{Names, Variants};
use super::weights::{Upload, Weights};
use crate::model::Tensor;

/// What an adapter can do that variants need.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Abilities {
    /// Threads of every subgroup.
    pub(super) subgroup: Option<u32>,
    /// Four products of packed bytes and their sum are one step.
    pub(super) packed_dot: bool,
    pub(super) f16: bool,
    /// The largest square of halves with sums in floats.
    pub(super) cooperative: Option<CooperativeSize>,
    /// Computes on the processor, where halves are turned into floats and back.
    pub(super) software: bool,
}

/// The variants in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// Threads of a subgroup, where kernels may count on it.
    pub(super) subgroup: Option<u32>,
    pub(super) int8: bool,
    pub(super) f16: bool,
    pub(super) cooperative: Option<CooperativeSize>,
}

impl Chosen {
    /// What `wanted` means on an adapter with `abilities`.
    pub(super) fn new(wanted: Variants, abilities: Abilities) -> Self {
        let names = match wanted {
            Variants::Named(names) => names,
            Variants::Auto | Variants::Exact => Names {
                subgroups: true,
                // Where there are cooperative matrices a prompt gains more from them, and both at once would
                // make its values depend on the size of its chunks.
                int8: wanted == Variants::Auto
                    && abilities.packed_dot
                    && abilities.cooperative.is_none(),
                f16: !abilities.software,
                cooperative: true,
            },
        };
        let subgroup = abilities.subgroup;
        let cooperative = abilities
            .cooperative
            .filter(|_| names.cooperative && abilities.f16 && subgroup.is_some());
        Self {
            // A cooperative tile is four subgroups of a known size.
            subgroup: subgroup.filter(|_| names.subgroups || cooperative.is_some()),
            // Without the instruction it is computed byte by byte: slower, and the same.
            int8: names.int8,
            f16: names.f16 && abilities.f16,
            cooperative,
        }
    }

    /// Each optional variant alone (the others as plain as can be), for checks and for measuring.
    pub(super) fn each(self) -> impl Iterator<Item = (&'static str, Self)> {
        let plain = Self::default();
        let one = move |there: bool, name, f: &dyn Fn(&mut Self)| {
            let mut chosen = plain;
            f(&mut chosen);
            there.then_some((name, chosen))
        };
        let subgroup = self.subgroup;
        [
            one(subgroup.is_some(), "subgroups", &|c| c.subgroup = subgroup),
            one(self.int8, "int8", &|c| {
                (c.int8, c.subgroup) = (true, subgroup);
            }),
            one(self.f16, "f16", &|c| c.f16 = true),
            one(self.cooperative.is_some(), "cooperative", &|c| {
                (c.cooperative, c.subgroup) = (self.cooperative, subgroup);
            }),
        ]
        .into_iter()
        .flatten()
    }

    /// Takes the variant out that [`each`](Self::each) calls `name`.
    fn drop(&mut self, name: &str) {
        match name {
            "subgroups" => {
                *self = Self {
                    f16: self.f16,
                    int8: self.int8,
                    ..Self::default()
                }
            }
            "int8" => self.int8 = false,
            "f16" => self.f16 = false,
            _ => self.cooperative = None,
        }
    }

    /// Whether some product takes rows in another form.
    pub(super) fn needs_scratch(self) -> bool {
        self.int8 || self.f16 || self.cooperative.is_some()
    }

    /// In words, one for each choice of a kernel.
    pub(super) fn describe(self) -> Vec<String> {
        let mut all = vec![match self.subgroup {
            Some(n) => format!("sums over subgroups of {n}"),
            None => "sums in workgroup memory".to_owned(),
        }];
        if self.int8 {
            all.push("activations in 8 bits".to_owned());
        }
        match self.cooperative {
            _ if self.int8 => all.push("tiles of whole numbers".to_owned()),
            Some(size) => all.push(format!("tiles on cooperative matrices of {}", size.get())),
            None if self.f16 => all.push("tiles in half floats".to_owned()),
            None => all.push("tiles in floats".to_owned()),
        }
        all
    }
}

/// How far a variant's products may be from the plain ones, relative to their size: eight bits or halves lose
/// this much on numbers of one size; a wrong kernel is off by all of it.
const CLOSE: f64 = 0.02;

/// Rows and columns of the weights, and rows of activations, of the product that is tried: more than a
/// tile, and no whole number of them.
const TRIED: (usize, usize) = (70, 96);
const TRIED_ROWS: [usize; 2] = [2, 67];

/// Leaves of the variants that `gpu` has chosen those whose products are right on this very device, and says
/// what was wrong with the others. Some of them no driver at hand could run.
///
/// # Errors
/// When the plain kernels fail as well.
pub(super) fn check(gpu: &mut Gpu) -> Result<Vec<String>, GpuError> {
    let wanted = gpu.variants;
    let mut wrong = Vec::new();
    if wanted == Chosen::default() {
        return Ok(wrong);
    }
    let weights = trial_weights(gpu)?;
    let reference = trial(gpu, &weights, Chosen::default())?;
    for (name, chosen) in wanted.each() {
        let why = match trial(gpu, &weights, chosen) {
            Ok(got) => Some(apart(&reference, &got))
                .filter(|&error| error.is_nan() || error > CLOSE)
                .map(|error| Wrong::Products(error).to_string()),
            Err(e) => {
                gpu.check()?;
                Some(Wrong::Refused(e).to_string())
            }
        };
        if let Some(why) = why {
            gpu.variants.drop(name);
            wrong.push(format!("not {name}: {why}"));
        }
    }
    Ok(wrong)
}

/// Why a variant is not used.
enum Wrong {
    Products(f64),
    Refused(GpuError),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Products(error) => write!(f, "its products are off by {error:.2} of their size"),
            Self::Refused(e) => e.fmt(f),
        }
    }
}

/// Root of the mean square of the difference, by that of `reference`.
fn apart(reference: &[f32], got: &[f32]) -> f64 {
    if got.len() != reference.len() {
        return f64::INFINITY;
    }
    let pairs = reference.iter().zip(got);
    let (error, size) = pairs.fold((0.0, 0.0), |(e, s), (r, g)| {
        let (r, g) = (f64::from(*r), f64::from(*g));
        (e + (r - g).powi(2), s + r * r)
    });
    (error / size).sqrt()
}

/// Numbers of one size and either sign.
fn wave(n: usize, step: f32) -> Vec<f32> {
    (0..n).map(|i| libm::sinf(i as f32 * step)).collect()
}

fn trial_weights(gpu: &Gpu) -> Result<Weights, GpuError> {
    let (rows, cols) = TRIED;
    let ty = BlockType::Q8_0;
    let mut bytes = vec![0; ty.row_bytes(rows * cols).unwrap_or(0)];
    blocks::quantize_row(
        ty,
        &wave(rows * cols, 0.7),
        None,
        Effort::Normal,
        &mut bytes,
    )
    .map_err(|e| GpuError::Unsupported {
        what: format!("a product on trial ({e})"),
    })?;
    let tensor = Tensor::owned("trial", ty, rows, cols, bytes);
    let mut upload = Upload::default();
    let weights = Weights::upload(gpu, &[&tensor], &mut upload)?;
    upload.finish(gpu)?;
    Ok(weights)
}

/// Products of few rows and of many with the variants `chosen`.
fn trial(gpu: &Gpu, weights: &Weights, chosen: Chosen) -> Result<Vec<f32>, GpuError> {
    let (outputs, cols) = TRIED;
    let most = 2 * 64;
    let x = gpu.constant("trial", &wave(most * cols, 1.3), Usage::STORAGE)?;
    let y = gpu.storage("trial", (4 * most * outputs) as u64)?;
    let staging = gpu.buffer("trial", y.size(), Usage::COPY_DST | Usage::MAP_READ)?;
    let scratch = gpu.storage("trial", scratch_bytes(most, cols))?;
    let place = |buffer, stride| Place {
        buffer,
        stride,
        at: 0,
    };
    let mut product = Products::new(place(&x, cols), &scratch, chosen);
    product.add(gpu, weights, place(&y, outputs), false)?;
    let mut all = Vec::new();
    for rows in TRIED_ROWS {
        let mut slots = Slots::new(gpu, 1)?;
        let pass = Pass {
            rows: rows as u32,
            ..Pass::default()
        };
        slots.set(gpu, [pass]);
        let mut encoder = gpu.encoder();
        product.record(&mut Recorder::new(&mut encoder, &slots, None), 0);
        encoder.copy_buffer_to_buffer(&y, 0, &staging, 0, y.size());
        gpu.queue.submit([encoder.finish()]);
        gpu.read(&staging, rows * outputs, &mut |y| all.extend_from_slice(y))?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities {
        subgroup: Some(32),
        packed_dot: true,
        f16: true,
        cooperative: Some(CooperativeSize::Sixteen),
        software: false,
    };

    #[test]
    fn choices_follow_what_there_is() {
        let auto = Chosen::new(Variants::Auto, ALL);
        assert!(!auto.int8 && auto.f16 && auto.cooperative.is_some());
        let simple = Abilities {
            cooperative: None,
            ..ALL
        };
        assert!(Chosen::new(Variants::Auto, simple).int8);
        assert!(!Chosen::new(Variants::Exact, simple).int8);
        let named = Chosen::new("cooperative".parse().unwrap(), ALL);
        assert!(named.cooperative.is_some() && named.subgroup == ALL.subgroup);
        assert_eq!(Chosen::new(Variants::PLAIN, ALL), Chosen::default());
        // Nothing that the adapter lacks, and 8 bits only where they are fast or asked for.
        assert_eq!(
            Chosen::new(Variants::Auto, Abilities::default()),
            Chosen::default()
        );
        let named = "int8,cooperative,f16".parse().unwrap();
        let chosen = Chosen::new(named, Abilities::default());
        assert_eq!(
            chosen,
            Chosen {
                int8: true,
                ..Chosen::default()
            }
        );
        let software = Abilities {
            software: true,
            packed_dot: false,
            cooperative: None,
            ..ALL
        };
        let chosen = Chosen::new(Variants::Auto, software);
        assert_eq!(
            chosen,
            Chosen {
                subgroup: Some(32),
                ..Chosen::default()
            }
        );
        // Cooperative matrices are a subgroup's: without a known size there are none.
        let loose = Abilities {
            subgroup: None,
            ..ALL
        };
        assert_eq!(Chosen::new(Variants::Auto, loose).cooperative, None);
    }

    #[test]
    fn texts_name_variants() {
        assert_eq!("auto".parse(), Ok(Variants::Auto));
        assert_eq!("exact".parse(), Ok(Variants::Exact));
        assert_eq!("plain".parse(), Ok(Variants::PLAIN));
        let some = Names {
            subgroups: true,
            f16: true,
            ..Names::default()
        };
        assert_eq!("f16,subgroups".parse(), Ok(Variants::Named(some)));
        for wrong in ["", "f16,", "fast", "auto,f16"] {
            let error = wrong.parse::<Variants>().unwrap_err().to_string();
            assert!(error.contains("cooperative"), "{error}");
        }
    }

    #[test]
    fn a_wrong_product_is_seen() {
        let right = wave(500, 0.3);
        assert!(apart(&right, &right) < f64::MIN_POSITIVE);
        let mut wrong = right.clone();
        wrong[250..].fill(0.0);
        assert!(apart(&right, &wrong) > CLOSE);
        wrong[0] = f32::NAN;
        assert!(apart(&right, &wrong).is_nan());
        assert!(apart(&right, &right[1..]) > CLOSE);
    }
}
