//! One-point split compression against the same few bits everywhere, at equal edge memory.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use fixtures::fetch::{SMOLLM2, WIKI_64K};

use super::plot::{Axis, Line, Series, plot};
use super::{Report, Section, table};
use crate::error::Failure;

/// Layers on the edge.
pub(super) const CUT: &str = "10";
/// Bits of the edge's layers.
const EDGE_BITS: [&str; 3] = ["2", "3", "4"];

/// A pair of SmolLM2, and how it was made.
pub(super) struct Made {
    /// Its folder.
    pub(super) folder: PathBuf,
    /// Bytes of the edge file.
    pub(super) edge_bytes: f64,
    /// Bytes of both files.
    pub(super) bytes: f64,
    /// The command.
    pub(super) command: String,
}

/// SmolLM2 cut at [`CUT`] with these bits before and behind.
pub(super) fn pair(report: &Report, edge: &str, cloud: &str) -> Result<Made, Failure> {
    let model = SMOLLM2.get()?;
    let folder = report.folder(&format!("report/e{edge}-c{cloud}"))?;
    let mut args: Vec<OsString> = vec![model.clone().into()];
    args.extend(["--split", CUT, "--edge-bits", edge, "--cloud-bits", cloud].map(Into::into));
    args.extend(["--force".into(), "--out".into(), folder.clone().into()]);
    let m = report.measure("splitconv", &args, &[&model, &folder])?;
    let edge_bytes = m.number("edge_bytes")?;
    Ok(Made {
        edge_bytes,
        bytes: edge_bytes + m.number("cloud_bytes")?,
        command: m.command,
        folder,
    })
}

/// Measures.
pub(super) fn make(report: &Report) -> Result<Section, Failure> {
    let (bits, windows) = if report.options.quick {
        (&EDGE_BITS[2..], "1")
    } else {
        (&EDGE_BITS[..], "16")
    };
    let (source, text) = (SMOLLM2.get()?, WIKI_64K.get()?);
    let mut rows = Vec::new();
    let mut series = ["OPSC", "uniform"].map(|name| Series {
        name: name.into(),
        points: Vec::new(),
        line: Line::None,
    });
    let mut made = String::new();
    for &edge in bits {
        for (kind, cloud) in [(0, "8"), (1, edge)] {
            let pair = pair(report, edge, cloud)?;
            let _ = writeln!(made, "    {}", pair.command);
            let mut args: Vec<OsString> = vec!["eval".into(), "--model".into()];
            args.extend([pair.folder.clone().into(), "--against".into()]);
            args.extend([source.clone().into(), "--text".into(), text.clone().into()]);
            args.extend(["--ctx", "512", "--chunks", windows].map(Into::into));
            let shown: [&Path; 3] = [&pair.folder, &source, &text];
            let m = report.measure("splitrun", &args, &shown)?;
            let (kl, perplexity) = (m.number("kl_mean")?, m.number("perplexity")?);
            let mib = pair.edge_bytes / f64::from(1 << 20);
            series[kind].points.push((mib, kl));
            let rise = 100.0 * (perplexity / m.number("perplexity_source")? - 1.0);
            rows.push(vec![
                format!("{} {edge} bits", series[kind].name),
                format!("{mib:.1}"),
                format!("{:.1}", (pair.bytes - pair.edge_bytes) / f64::from(1 << 20)),
                format!("{kl:.5}"),
                format!("{:.2} %", 100.0 * m.number("top1_agreement")?),
                format!("{perplexity:.4} ({rise:+.2} %)"),
                format!("`{}`", m.command),
            ]);
        }
    }
    let head = [
        "bits",
        "edge file, MiB",
        "cloud file, MiB",
        "mean KL to the source",
        "same top token",
        "perplexity",
        "with",
    ];
    let axis = |label: &str| Axis {
        label: label.into(),
        logarithmic: true,
    };
    let svg = plot(
        "Divergence against edge memory",
        &axis("edge file, MiB"),
        &axis("mean KL, nats"),
        &series,
        None,
    );
    Ok(Section {
        title: "OPSC against uniform bits".into(),
        markdown: format!(
            "SmolLM2-135M-Instruct Q4_1 cut at {CUT}. *OPSC*: few bits in the edge's layers, the source's \
             own behind. *Uniform*: the same few bits everywhere. Both edge files are the same.\n\n{made}\n\
             ![divergence against edge memory](opsc.svg)\n\n{}",
            table(&head, &rows)
        ),
        plots: vec![("opsc.svg".into(), svg)],
    })
}
