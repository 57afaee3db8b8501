//! What is said about a conversion, before or after: a table and lines, or one JSON object.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;

use formats::pair::HalfRole;
use serde::Serialize;

use crate::recipe::{HalfCost, Plan};
use crate::source::Source;
use crate::stream::{Target, Written};

/// The JSON object; units are in the names.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The model.
    pub source_file: String,
    /// Layers on the edge.
    pub split: u32,
    /// Layers of the model.
    pub n_layer: u32,
    /// Values in a boundary row.
    pub width: u64,
    /// Identity of the pair; it hashes the whole source, so a dry run does not know it.
    pub pair_id: Option<String>,
    /// BLAKE3 of the source; see `pair_id`.
    pub source_digest: Option<String>,
    /// The edge file.
    pub edge_file: String,
    /// The cloud file.
    pub cloud_file: String,
    /// Bytes of the edge file (in a dry run: of its tensors).
    pub edge_bytes: u64,
    /// Bytes of the cloud file (in a dry run: of its tensors).
    pub cloud_bytes: u64,
    /// Tensors that an interrupted run had finished.
    pub resumed_tensors: usize,
    /// What writing took; absent in a dry run.
    pub seconds: Option<f64>,
    /// Bytes of the source's tensors that the pair is made of.
    pub source_tensor_bytes: u64,
    /// Bits per weight over the matrices of the edge's layers.
    pub edge_bits_per_weight: f64,
    /// Bits per weight over the matrices of the cloud's layers.
    pub cloud_bits_per_weight: f64,
    /// Bits per weight that the edge's bits allow; absent when a type is forced.
    pub edge_budget_bits_per_weight: Option<f64>,
    /// Bits per weight that the cloud's bits allow; absent when a type is forced.
    pub cloud_budget_bits_per_weight: Option<f64>,
    /// Bits per weight over all tensors of the edge.
    pub edge_total_bits_per_weight: f64,
    /// Bits per weight over all tensors of the cloud.
    pub cloud_total_bits_per_weight: f64,
    /// Matrices of the edge's layers by block type.
    pub edge_layer_types: BTreeMap<&'static str, usize>,
    /// Matrices of the cloud's layers by block type.
    pub cloud_layer_types: BTreeMap<&'static str, usize>,
    /// Digest of the importances that encoders were given, if any.
    pub imatrix_digest: Option<String>,
    /// What is worth knowing, one line each.
    pub notes: Vec<String>,
    /// Every tensor that is written.
    pub tensors: Vec<TensorReport>,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// `edge` or `cloud`.
    pub role: &'static str,
    /// Shape, row length first.
    pub shape: Vec<u64>,
    /// Type in the source.
    pub from: &'static str,
    /// Type in the half.
    pub to: &'static str,
    /// Whether it is copied byte for byte.
    pub copied: bool,
    /// Bytes in the source.
    pub from_bytes: u64,
    /// Bytes in the half.
    pub bytes: u64,
}

impl Report {
    /// Gathers what there is to say; `written` is `None` in a dry run.
    pub fn new(source: &Source, plan: &Plan, target: &Target, written: Option<&Written>) -> Self {
        let file = |role| target.path(role).display().to_string();
        let (edge, cloud) = (plan.edge, plan.cloud);
        Self {
            dry_run: written.is_none(),
            source_file: source.path().display().to_string(),
            split: plan.split,
            n_layer: source.hparams().n_layer as u32,
            width: source.hparams().n_embd as u64,
            pair_id: written.map(|w| w.pair_id.to_string()),
            source_digest: written.map(|w| w.source_digest.to_string()),
            edge_file: file(HalfRole::Edge),
            cloud_file: file(HalfRole::Cloud),
            edge_bytes: written.map_or(edge.bytes, |w| w.edge_bytes),
            cloud_bytes: written.map_or(cloud.bytes, |w| w.cloud_bytes),
            resumed_tensors: written.map_or(0, |w| w.resumed_tensors),
            seconds: written.map(|w| w.time.as_secs_f64()),
            source_tensor_bytes: plan.tensors.iter().map(|t| t.from_bytes).sum(),
            edge_bits_per_weight: edge.bits_per_weight,
            cloud_bits_per_weight: cloud.bits_per_weight,
            edge_budget_bits_per_weight: edge.budget_bits_per_weight,
            cloud_budget_bits_per_weight: cloud.budget_bits_per_weight,
            edge_total_bits_per_weight: edge.total_bits_per_weight,
            cloud_total_bits_per_weight: cloud.total_bits_per_weight,
            edge_layer_types: layer_types(plan, HalfRole::Edge),
            cloud_layer_types: layer_types(plan, HalfRole::Cloud),
            imatrix_digest: plan.imatrix_digest().map(|d| d.to_string()),
            notes: plan.notes.clone(),
            tensors: plan
                .tensors
                .iter()
                .map(|t| TensorReport {
                    name: t.name.clone(),
                    role: t.role.name(),
                    shape: t.dims.clone(),
                    from: t.from.name(),
                    to: t.to.name(),
                    copied: !t.encode,
                    from_bytes: t.from_bytes,
                    bytes: t.bytes,
                })
                .collect(),
        }
    }

    /// Prints it: JSON or a dry run's table on standard output; the lines that follow a
    /// conversion are no data and go to standard error.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print(&self, json: bool) -> Result<(), Box<dyn Error>> {
        if json {
            return print_json(self);
        }
        let summary = self.summary();
        if self.dry_run {
            print_text(&format!("{}{summary}", self.table()))
        } else {
            // The files are there, whether or not anybody reads this.
            let _ = std::io::stderr().write_all(summary.as_bytes());
            Ok(())
        }
    }

    fn table(&self) -> String {
        let widest = self.tensors.iter().map(|t| t.name.len()).max();
        let w = widest.unwrap_or(0).max(6);
        let mut out = vec![format!(
            "{:w$}  {:5}  {:>14}  {:6}  {:6}  {:>14}\n",
            "tensor", "half", "shape", "from", "to", "bytes"
        )];
        for t in &self.tensors {
            let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
            let how = if t.copied { "  copied" } else { "" };
            out.push(format!(
                "{:w$}  {:5}  {:>14}  {:6}  {:6}  {:>14}{how}\n",
                t.name,
                t.role,
                shape.join("×"),
                t.from,
                t.to,
                t.bytes
            ));
        }
        out.concat()
    }

    fn summary(&self) -> String {
        let mut out: Vec<String> = Vec::new();
        let layers = [(0, self.split), (self.split, self.n_layer)];
        let halves = [
            (
                HalfRole::Edge,
                &self.edge_file,
                self.edge_bytes,
                &self.edge_layer_types,
            ),
            (
                HalfRole::Cloud,
                &self.cloud_file,
                self.cloud_bytes,
                &self.cloud_layer_types,
            ),
        ];
        for ((role, file, bytes, types), (first, end)) in halves.into_iter().zip(layers) {
            let cost = self.cost(role);
            let budget = match cost.budget_bits_per_weight {
                Some(b) => format!(" of {b:.4} allowed"),
                None => String::new(),
            };
            let types: Vec<String> = types.iter().map(|(ty, n)| format!("{n} {ty}")).collect();
            out.push(format!(
                "{:5}  layers {first}..{}  {bytes} bytes  {:.4} bits per weight in the layers{budget} ({}), {:.4} in all  {file}\n",
                role.name(),
                end - 1,
                cost.bits_per_weight,
                types.join(", "),
                cost.total_bits_per_weight,
            ));
        }
        out.push(match &self.pair_id {
            Some(id) => format!("pair   {id}\n"),
            None => "dry run: nothing was written\n".to_owned(),
        });
        out.concat()
    }

    fn cost(&self, role: HalfRole) -> HalfCost {
        match role {
            HalfRole::Edge => HalfCost {
                bytes: self.edge_bytes,
                bits_per_weight: self.edge_bits_per_weight,
                total_bits_per_weight: self.edge_total_bits_per_weight,
                budget_bits_per_weight: self.edge_budget_bits_per_weight,
            },
            HalfRole::Cloud => HalfCost {
                bytes: self.cloud_bytes,
                bits_per_weight: self.cloud_bits_per_weight,
                total_bits_per_weight: self.cloud_total_bits_per_weight,
                budget_bits_per_weight: self.cloud_budget_bits_per_weight,
            },
        }
    }
}

fn layer_types(plan: &Plan, role: HalfRole) -> BTreeMap<&'static str, usize> {
    let mut types = BTreeMap::new();
    for t in plan.half(role).filter(|t| t.layer_matrix) {
        *types.entry(t.to.name()).or_default() += 1;
    }
    types
}

/// Prints one JSON object on standard output.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_json(value: &impl Serialize) -> Result<(), Box<dyn Error>> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print_text(&text)
}

/// Prints text on standard output. A reader that has heard enough (`| head`) is no error.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_text(text: &str) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(format!("cannot write to standard output: {e}").into()),
        Ok(()) => Ok(()),
    }
}
