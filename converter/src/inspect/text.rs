//! The same for eyes.

use serde_json::Value as Json;

use super::{Cut, Facts, Inspection, Tensor};
use crate::printable;

/// Bytes with three digits and a unit, as disks are sold: `1.23 GB`.
fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        // What would be shown as 1000.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let digits = match value {
        _ if unit == "B" => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A count with three digits and a unit: `1.10 B`.
fn count(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n < 1e3 => format!("{n}"),
        _ if n < 999_500.0 => format!("{:.3} thousand", n / 1e3),
        _ if n < 999.5e6 => format!("{:.3} M", n / 1e6),
        _ => format!("{:.3} B", n / 1e9),
    }
}

/// The summary, the layers with the cuts, and with `all` metadata and tensors.
pub(super) fn text(i: &Inspection, all: bool) -> String {
    let mut out = vec![format!("{}\n", printable(&i.file))];
    let mut line = |text: String| {
        out.push(format!("  {}\n", printable(&text)));
    };
    line(headline(i));
    facts(&i.facts).into_iter().for_each(&mut line);
    match &i.half {
        Some(h) => line(format!(
            "{} half of a pair: layers {} to {} of {}, rows of {} values, pair {}",
            h.role,
            h.first_layer,
            h.end_layer.saturating_sub(1),
            h.n_layer,
            h.width,
            h.pair_id
        )),
        None => line("not a half of a pair".to_owned()),
    }
    i.note.iter().cloned().for_each(&mut line);
    out.push(types(i));
    out.push(parts(i));
    if all {
        out.push("\nmetadata\n".to_owned());
        for (key, value) in &i.metadata {
            let value = match value {
                Json::Object(array) => {
                    let of = array.get("array_of").and_then(Json::as_str);
                    let length = array.get("length").and_then(Json::as_u64);
                    format!("{} × {}", length.unwrap_or(0), of.unwrap_or("?"))
                }
                other => other.to_string(),
            };
            out.push(format!("  {} = {}\n", printable(key), printable(&value)));
        }
        out.push("\ntensors\n".to_owned());
        out.push(tensors(&i.tensors));
    } else {
        out.push("\n--all shows metadata and tensors, --edge-bits and --cloud-bits what a recipe would write\n".to_owned());
    }
    out.concat()
}

fn headline(i: &Inspection) -> String {
    let mut parts = Vec::new();
    let f = &i.facts;
    parts.push(f.architecture.clone().unwrap_or("no architecture".into()));
    if let Some(name) = &f.name {
        parts.push(format!("\"{name}\""));
    }
    parts.push(format!("{} weights", count(i.weights)));
    parts.push(format!("{:.4} bits per weight", i.bits_per_weight));
    parts.push(format!("{} tensors", i.tensor_count));
    parts.push(match i.files {
        1 => size(i.file_bytes as u64),
        n => format!("{} in {n} files", size(i.file_bytes as u64)),
    });
    if i.gguf_version > 0 {
        parts.push(format!("GGUF v{}", i.gguf_version));
    }
    parts.join(", ")
}

fn facts(f: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    let mut sizes = Vec::new();
    let mut add = |n: Option<u64>, what: &str| {
        if let Some(n) = n {
            sizes.push(format!("{n} {what}"));
        }
    };
    add(f.n_layer, "layers");
    add(f.width, "wide");
    add(f.feed_forward, "in the feed-forward block");
    add(f.heads, "heads");
    if f.kv_heads != f.heads {
        add(f.kv_heads, "for keys and values");
    }
    add(f.context_length, "tokens of context");
    if let Some(base) = f.rope_base {
        sizes.push(format!("RoPE base {base}"));
    }
    if !sizes.is_empty() {
        lines.push(sizes.join(", "));
    }
    if let Some(n) = f.vocabulary {
        let mut words = vec![format!("vocabulary of {n}")];
        words.extend(f.tokenizer.iter().map(|t| format!("tokenizer {t}")));
        words.extend(f.pre_tokenizer.iter().map(|t| format!("pre-tokenizer {t}")));
        if f.tied_head == Some(true) {
            words.push("the head is the embedding".into());
        }
        let template = if f.chat_template {
            "a chat template"
        } else {
            "no chat template"
        };
        words.push(template.into());
        lines.push(words.join(", "));
    }
    lines
}

fn types(i: &Inspection) -> String {
    let mut out = vec![format!(
        "\n{:8} {:>7} {:>14} {:>10} {:>11}\n",
        "type", "tensors", "weights", "size", "bits/weight"
    )];
    for t in &i.types {
        out.push(format!(
            "{:8} {:>7} {:>14} {:>10} {:>11.4}\n",
            t.r#type,
            t.tensors,
            t.weights,
            size(t.bytes),
            t.bits_per_weight
        ));
    }
    out.concat()
}

/// What is in no layer, then a line for each layer with the cut behind it.
fn parts(i: &Inspection) -> String {
    if i.layers.is_empty() {
        return String::new();
    }
    let with_recipe = i.cuts.iter().any(|c| c.recipe_edge_bytes.is_some());
    let mut out = vec!["\n".to_owned()];
    for t in &i.others {
        let bytes = size(t.bytes as u64);
        out.push(format!(
            "{:24} {bytes:>10}  {}\n",
            printable(&t.name),
            t.r#type
        ));
    }
    out.push("\n".to_owned());
    if !i.cuts.is_empty() {
        out.push(format!("{:39}cut here: as it is{:7}", "", ""));
        out.push(if with_recipe {
            "as the recipe writes it\n".to_owned()
        } else {
            "\n".to_owned()
        });
    }
    let row = |cells: [&str; 8]| {
        let [
            layer,
            size,
            bits,
            split,
            edge,
            cloud,
            recipe_edge,
            recipe_cloud,
        ] = cells;
        let mut parts = vec![format!("{layer:>5} {size:>10} {bits:>11}")];
        if !i.cuts.is_empty() {
            parts.push(format!("  {split:>7} {edge:>10} {cloud:>10}"));
        }
        if with_recipe {
            parts.push(format!("  {recipe_edge:>10} {recipe_cloud:>10}"));
        }
        parts.concat()
    };
    let head = row([
        "layer",
        "size",
        "bits/weight",
        "--split",
        "edge",
        "cloud",
        "edge",
        "cloud",
    ]);
    out.push(format!("{head}  types of the matrices\n"));
    for l in &i.layers {
        let cut = i.cuts.iter().find(|c| c.split == l.number + 1);
        let of = |bytes: fn(&Cut) -> Option<u64>| cut.and_then(bytes).map_or(String::new(), size);
        let cells = row([
            &l.number.to_string(),
            &size(l.bytes),
            &format!("{:.4}", l.bits_per_weight),
            &cut.map_or(String::new(), |c| c.split.to_string()),
            &of(|c| Some(c.edge_bytes)),
            &of(|c| Some(c.cloud_bytes)),
            &of(|c| c.recipe_edge_bytes),
            &of(|c| c.recipe_cloud_bytes),
        ]);
        out.push(format!("{cells}  {}\n", l.types.join(" ")));
    }
    out.concat()
}

fn tensors(tensors: &[Tensor]) -> String {
    let names: Vec<_> = tensors.iter().map(|t| printable(&t.name)).collect();
    let w = names.iter().map(|n| n.len()).max().unwrap_or(0);
    let line = |(t, name): (&Tensor, &std::borrow::Cow<'_, str>)| {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        format!(
            "  {name:w$}  {:6}  {:>14}  {:>12}\n",
            t.r#type,
            shape.join("×"),
            t.bytes
        )
    };
    tensors.iter().zip(&names).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, said) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (123_456_789, "123 MB"),
            (999_600_000, "1.00 GB"),
            (26_000_000_000, "26.0 GB"),
        ] {
            assert_eq!(size(bytes), said);
        }
        assert_eq!(count(1_100_048_384), "1.100 B");
    }
}
