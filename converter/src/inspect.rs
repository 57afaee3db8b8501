//! `splitconv inspect`: what a GGUF file holds.

use std::collections::BTreeMap;
use std::error::Error;

use formats::gguf::{Gguf, Metadata, TensorInfo, Value, ValueType};
use formats::pair::HalfInfo;
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::cli::InspectArgs;
use crate::printable;
use crate::report::{print_json, print_text};

#[derive(Serialize)]
struct Inspection {
    file: String,
    file_bytes: usize,
    gguf_version: u32,
    alignment_bytes: usize,
    half: Option<Half>,
    metadata: serde_json::Map<String, Json>,
    tensor_count: usize,
    bits_per_weight: f64,
    tensors: Vec<Tensor>,
}

#[derive(Serialize)]
struct Half {
    role: &'static str,
    first_layer: u32,
    end_layer: u32,
    n_layer: u32,
    width: u32,
    pair_id: String,
    source_digest: String,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    r#type: &'static str,
    shape: Vec<u64>,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

/// Shows one file.
///
/// # Errors
/// When the file is not a GGUF, or a half whose keys are damaged.
pub fn run(args: &InspectArgs) -> Result<(), Box<dyn Error>> {
    let file = Gguf::open(&args.file)?;
    let half = HalfInfo::from_metadata(file.metadata())
        .map_err(|e| format!("{}: {e}", args.file.display()))?;
    let inspection = gather(&file, half.as_ref());
    if args.json {
        print_json(&inspection)
    } else {
        print_text(&text(&inspection, file.metadata()))
    }
}

fn gather(file: &Gguf, half: Option<&HalfInfo>) -> Inspection {
    let tensors = file.tensors();
    let bytes: usize = tensors.iter().map(|t| t.bytes).sum();
    let weights: u64 = tensors.iter().map(TensorInfo::weights).sum();
    let digest = |i: usize| {
        let digests = half.map(|h| &h.tensor_digests)?;
        digests.get(i).map(ToString::to_string)
    };
    Inspection {
        file: file.path().display().to_string(),
        file_bytes: file.file_bytes(),
        gguf_version: file.version(),
        alignment_bytes: file.alignment(),
        half: half.map(|h| Half {
            role: h.role.name(),
            first_layer: h.first_layer,
            end_layer: h.end_layer,
            n_layer: h.contract.n_layer,
            width: h.contract.width,
            pair_id: h.contract.pair_id.to_string(),
            source_digest: h.source_digest.to_string(),
        }),
        metadata: file
            .metadata()
            .iter()
            .map(|(k, v)| (k.to_owned(), as_json(v)))
            .collect(),
        tensor_count: tensors.len(),
        bits_per_weight: if weights == 0 {
            0.0
        } else {
            bytes as f64 * 8.0 / weights as f64
        },
        tensors: tensors
            .iter()
            .enumerate()
            .map(|(i, t)| Tensor {
                name: t.name.clone(),
                r#type: t.block_type.name(),
                shape: t.dims.clone(),
                bytes: t.bytes,
                digest: digest(i),
            })
            .collect(),
    }
}

/// A value as JSON. Arrays are only counted: a vocabulary is no answer to "what is this file".
fn as_json(value: &Value) -> Json {
    if let Some(array) = value.as_array() {
        return json!({"array_of": array.elem_type().to_string(), "length": array.len()});
    }
    match value.value_type() {
        ValueType::String => value
            .as_str()
            .map_or_else(|| json!(value.to_string()), |s| json!(s)),
        ValueType::Bool => json!(value.as_bool()),
        // Infinities and NaN have no JSON number.
        ValueType::F32 | ValueType::F64 => match value.as_f32() {
            Some(f) if f.is_finite() => json!(f),
            _ => json!(value.to_string()),
        },
        ValueType::U64 => json!(value.as_u64()),
        _ => json!(value.as_i64()),
    }
}

fn text(i: &Inspection, metadata: &Metadata) -> String {
    let mut out = vec![format!(
        "{}\n  GGUF v{}, {} bytes, {} tensors, {:.4} bits per weight\n",
        printable(&i.file),
        i.gguf_version,
        i.file_bytes,
        i.tensor_count,
        i.bits_per_weight
    )];
    out.push(match &i.half {
        Some(h) => format!(
            "  {} half: layers {} to {} of {}, rows of {} values\n  pair {}\n",
            h.role,
            h.first_layer,
            h.end_layer - 1,
            h.n_layer,
            h.width,
            h.pair_id
        ),
        None => "  not a half of a pair\n".to_owned(),
    });
    let mut types: BTreeMap<&str, usize> = BTreeMap::new();
    for t in &i.tensors {
        *types.entry(t.r#type).or_default() += 1;
    }
    let types: Vec<String> = types.iter().map(|(t, n)| format!("{n} {t}")).collect();
    out.push(format!("  {}\n\nmetadata\n", types.join(", ")));
    for (k, v) in metadata.iter() {
        let (k, shown, ty) = (printable(k), v.to_string(), v.value_type());
        out.push(format!("  {k} = {} ({ty})\n", printable(&shown)));
    }
    let names: Vec<_> = i.tensors.iter().map(|t| printable(&t.name)).collect();
    let w = names.iter().map(|n| n.len()).max().unwrap_or(0);
    out.push("\ntensors\n".to_owned());
    for (t, name) in i.tensors.iter().zip(&names) {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        out.push(format!(
            "  {name:w$}  {:6}  {:>14}  {:>12}\n",
            t.r#type,
            shape.join("×"),
            t.bytes
        ));
    }
    out.concat()
}
