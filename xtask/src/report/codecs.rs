//! What each coding of the boundary costs: bytes against divergence.

use std::ffi::OsString;

use fixtures::fetch::WIKI_64K;

use super::plot::{Axis, Line, Series, plot};
use super::{Report, Section, table};
use crate::error::Failure;

/// Layers on the edge.
const CUT: usize = 10;
/// What is measured.
const CODECS: [&str; 7] = [
    "f16",
    "int8",
    "ts-tabq:tau=5s,delta=0,bits=5",
    "tcq:step=0.4",
    "tcq:step=0.7",
    "tcq:step=1",
    "auto",
];

/// Measures.
pub(super) fn make(report: &Report) -> Result<Section, Failure> {
    let windows = if report.options.quick { "1" } else { "16" };
    let (pair, made) = report.calibrated_pair(CUT)?;
    let text = WIKI_64K.get()?;
    let mut rows = Vec::new();
    let mut points = Vec::new();
    for codec in CODECS {
        let mut args: Vec<OsString> = ["eval", "--model"].map(Into::into).into();
        args.push(pair.clone().into());
        args.extend(["--text".into(), text.clone().into()]);
        args.extend(["--ctx", "512", "--chunks", windows, "--codec", codec].map(Into::into));
        let m = report.measure("splitrun", &args, &[&pair, &text])?;
        let (bytes, kl) = (m.number("bytes_per_token")?, m.number("kl_mean")?);
        points.push((bytes, kl));
        rows.push(vec![
            format!("`{codec}`"),
            format!("{bytes:.1}"),
            format!("{kl:.5}"),
            format!("{:.4}", m.number("kl_p99")?),
            format!("`{}`", m.command),
        ]);
    }
    let mut markdown = String::new();
    for command in made {
        markdown += &format!("    {command}\n");
    }
    markdown += "\n![bytes against divergence](codecs.svg)\n\n";
    markdown += &table(&["codec", "bytes/token", "mean KL", "p99", "with"], &rows);
    let series = [Series {
        name: "all".into(),
        points,
        line: Line::None,
    }];
    let (x, y) = (
        Axis {
            label: "bytes a token".into(),
            logarithmic: true,
        },
        Axis {
            label: "mean KL, nats".into(),
            logarithmic: true,
        },
    );
    let svg = plot("Bytes against divergence", &x, &y, &series, None);
    Ok(Section {
        title: "Codecs".into(),
        markdown,
        plots: vec![("codecs.svg".into(), svg)],
    })
}
