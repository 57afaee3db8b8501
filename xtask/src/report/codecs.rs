//! What each coding of the boundary costs: bytes against divergence, ours and others'.

use std::ffi::OsString;
use std::fmt::Write as _;

use fixtures::fetch::{C4, WIKI_64K};
use serde_json::Value;

use super::plot::{Axis, Line, Series, plot};
use super::{Measured, Report, Section, table};
use crate::error::Failure;
use crate::process::number;

/// Layers on the edge: the cut that is looked at closely, and the others.
const CUT: usize = 10;
const OTHERS: [usize; 4] = [5, 15, 20, 25];

/// The names in the plot, and what the codecs under them begin with.
const FAMILIES: [(&str, &[&str]); 6] = [
    ("tcq", &["tcq"]),
    ("ts-tabq", &["ts-tabq"]),
    (
        "per token (f16, int8, int4)",
        &["f16", "int8", "int4", "zstd"],
    ),
    ("SmoothQuant-like", &["smoothquant"]),
    ("Atom-like", &["atom"]),
    ("OmniQuant-like", &["omniquant"]),
];

/// Measures.
pub(super) fn make(report: &Report) -> Result<Section, Failure> {
    let (many, few) = if report.options.quick {
        ("1", "1")
    } else {
        ("16", "4")
    };
    let mut markdown = String::from(
        "SmolLM2-135M-Instruct Q4_1, calibrated on web text, scored on Wikipedia in windows of 512 tokens. \
         Bytes are those of complete frames; KL is the divergence of the next token's distribution from that \
         without a codec, in nats; times are medians on one core.\n",
    );
    let mut plots = Vec::new();
    for cut in std::iter::once(CUT).chain(OTHERS) {
        let windows = if cut == CUT { many } else { few };
        let (measured, made) = measure(report, cut, windows)?;
        let entries = measured.object["codecs"].as_array();
        let entries = entries.map_or(&[][..], Vec::as_slice);
        // Writing to a string cannot fail.
        let _ = write!(
            markdown,
            "\n### Cut {cut}\n\nPerplexity without codec {:.4}, {windows} windows.\n\n![bytes against divergence](codecs-{cut}.svg)\n\n{}\n",
            measured.number("perplexity_no_codec")?,
            figures(entries, &measured.command)?
        );
        for command in made.iter().chain([&measured.command]) {
            let _ = writeln!(markdown, "    {command}");
        }
        plots.push((
            format!("codecs-{cut}.svg"),
            picture(cut, entries, &measured.command)?,
        ));
    }
    Ok(Section {
        title: "Codecs".into(),
        markdown,
        plots,
    })
}

/// Every coding at one cut, and how the pair was made.
fn measure(report: &Report, cut: usize, windows: &str) -> Result<(Measured, Vec<String>), Failure> {
    let (pair, made) = report.calibrated_pair(cut)?;
    let (text, learned) = (WIKI_64K.get()?, C4.get()?);
    let mut args: Vec<OsString> = ["eval", "--model"].map(Into::into).into();
    args.push(pair.clone().into());
    args.extend(["--text".into(), text.clone().into()]);
    args.extend(["--ctx", "512", "--chunks", windows, "--codecs", "all"].map(Into::into));
    args.extend(["--calibration".into(), learned.clone().into()]);
    let measured = report.measure("splitrun", &args, &[&pair, &text, &learned])?;
    Ok((measured, made))
}

fn figures(entries: &[Value], from: &str) -> Result<String, Failure> {
    let mut rows = Vec::new();
    for e in entries {
        let n = |key| number(e, key, from);
        let name = |key: &str| e[key].as_str().unwrap_or("?").to_owned();
        let (asked, codec) = (name("asked"), name("codec"));
        let shown = if asked == codec {
            format!("`{codec}`")
        } else {
            format!("`{asked}` (`{codec}`)")
        };
        rows.push(vec![
            shown,
            format!("{:.1}", n("bytes_per_token")?),
            format!("{:.1}", n("bytes_per_token_64")?),
            format!("{:.5}", n("kl_mean")?),
            format!("{:.3}", n("kl_p99")?),
            format!("{:.2}", n("kl_max")?),
            format!("{:.4}", n("perplexity_ratio")?),
            format!("{:.1} %", 100.0 * n("top1_agreement")?),
            format!("{:.1}", n("encode_us")?),
            format!("{:.1}", n("decode_us")?),
        ]);
    }
    Ok(table(
        &[
            "codec",
            "bytes/token",
            "in frames of 64",
            "mean KL",
            "p99",
            "largest",
            "perplexity, ratio",
            "same top token",
            "encode, µs",
            "decode, µs",
        ],
        &rows,
    ))
}

fn picture(cut: usize, entries: &[Value], from: &str) -> Result<String, Failure> {
    let mut series = Vec::new();
    for (name, begins) in FAMILIES {
        let mut points = Vec::new();
        for e in entries {
            let codec = e["codec"].as_str().unwrap_or_default();
            if begins.iter().any(|b| codec.starts_with(b)) {
                let bytes = number(e, "bytes_per_token", from)?;
                points.push((bytes, number(e, "kl_mean", from)?));
            }
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        series.push(Series {
            name: name.to_owned(),
            points,
            line: match name {
                "tcq" => Line::Solid,
                "ts-tabq" | "OmniQuant-like" => Line::Dashed,
                _ => Line::None,
            },
        });
    }
    let axis = |label: &str| Axis {
        label: label.into(),
        logarithmic: true,
    };
    Ok(plot(
        &format!("SmolLM2-135M, cut {cut}"),
        &axis("bytes a token, frames of one row"),
        &axis("mean KL, nats"),
        &series,
        Some((0.0027, "llama.cpp's own 8-bit arithmetic")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_points_come_from_the_object() {
        let entry = serde_json::json!({
            "asked": "auto", "codec": "tcq:step=0.3", "bytes_per_token": 282.6, "bytes_per_token_64": 275.0,
            "kl_mean": 0.00183, "kl_p99": 0.017, "kl_max": 0.078, "perplexity_ratio": 1.002,
            "top1_agreement": 0.98, "encode_us": 9.2, "decode_us": 4.7,
        });
        let text = figures(std::slice::from_ref(&entry), "x").unwrap();
        for part in ["`auto` (`tcq:step=0.3`)", "282.6", "0.00183", "98.0 %"] {
            assert!(text.contains(part), "{text}");
        }
        let svg = picture(10, std::slice::from_ref(&entry), "x").unwrap();
        assert!(svg.contains("OmniQuant-like") && svg.contains("llama.cpp"));
        let mut less = entry;
        less["kl_p99"] = Value::Null;
        assert!(figures(&[less], "x").is_err());
    }
}
