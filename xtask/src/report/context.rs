//! What a long context costs a token, for each form of keys and values.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use fixtures::fetch::{SMOLLM2, WIKI_64K};

use super::plot::{Axis, Line, Series, plot};
use super::{Measured, Report, Section, table};
use crate::error::Failure;

/// The forms.
const TYPES: [&str; 3] = ["f16", "q8_0", "q4_0"];
/// Positions that the context holds.
const DEPTHS: [&str; 5] = ["0", "1024", "2048", "4096", "8192"];
/// Tokens that are decoded behind them.
const DECODED: &str = "32";

/// `splitrun bench` of SmolLM2 with these arguments.
fn bench(report: &Report, model: &Path, args: &[&str]) -> Result<Measured, Failure> {
    let mut all: Vec<OsString> = vec!["bench".into(), "--device".into(), "cpu".into()];
    all.extend(["--model".into(), model.into()]);
    all.extend(args.iter().map(Into::into));
    report.measure("splitrun", &all, &[model])
}

/// What was measured of one form.
struct Cost {
    /// Milliseconds per token, by depth.
    ms: Vec<f64>,
    /// Megabytes that the largest depth adds.
    mb: f64,
    /// Gigabytes a second that the threads read, the best of what each run measured.
    gb_per_s: f64,
    /// The last command.
    command: String,
}

impl Cost {
    /// Milliseconds that the largest depth adds.
    fn added(&self) -> f64 {
        match (self.ms.first(), self.ms.last()) {
            (Some(first), Some(last)) => last - first,
            _ => 0.0,
        }
    }

    /// Milliseconds that reading what it adds takes.
    fn floor(&self) -> f64 {
        self.mb / self.gb_per_s
    }
}

/// Decoding behind each of `depths`.
fn decode(report: &Report, model: &Path, kv: &str, depths: &[&str]) -> Result<Cost, Failure> {
    let mut cost = Cost {
        ms: Vec::new(),
        mb: 0.0,
        gb_per_s: 0.0,
        command: String::new(),
    };
    for depth in depths {
        let args = [
            "-p",
            "0",
            "-n",
            DECODED,
            "-r",
            "3",
            "-d",
            depth,
            "--kv-type",
            kv,
        ];
        let m = bench(report, model, &args)?;
        cost.ms.push(1000.0 / m.number("decode_tokens_per_s")?);
        cost.mb = m.number("kv_bytes")? / 1e6;
        cost.gb_per_s = cost.gb_per_s.max(m.number("cpu.memory_gb_per_s")?);
        cost.command = m.command;
    }
    Ok(cost)
}

/// Measures.
pub(super) fn make(report: &Report) -> Result<Section, Failure> {
    let (depths, long, windows) = if report.options.quick {
        (&DEPTHS[..2], "1024", "1")
    } else {
        (&DEPTHS[..], "8192", "8")
    };
    let (model, text) = (SMOLLM2.get()?, WIKI_64K.get()?);
    let mut series = Vec::new();
    let (mut decoded, mut others) = (Vec::new(), Vec::new());
    let mut commands = String::new();
    for kv in TYPES {
        let cost = decode(report, &model, kv, depths)?;
        let _ = writeln!(commands, "    {}", cost.command);
        let points = depths.iter().zip(&cost.ms);
        series.push(Series {
            name: kv.into(),
            points: points
                .filter_map(|(d, ms)| Some((d.parse().ok()?, *ms)))
                .collect(),
            line: Line::Solid,
        });
        if let (Some(start), Some(last)) = (cost.ms.first(), depths.last()) {
            let end = last.parse().unwrap_or(0.0);
            series.push(Series {
                name: format!("{kv}: reading alone"),
                points: vec![(0.0, *start), (end, start + cost.floor())],
                line: Line::Dashed,
            });
        }
        let mut row = vec![kv.to_owned()];
        row.extend(cost.ms.iter().map(|ms| format!("{ms:.2}")));
        row.extend([
            format!("{:.1} MB", cost.mb),
            format!("{:.1}", cost.gb_per_s),
            format!("{:.2}", cost.added()),
            format!("{:.2}", cost.floor()),
            format!("{:.2}", cost.added() / cost.floor()),
        ]);
        decoded.push(row);

        let mut row = vec![kv.to_owned()];
        for prompt in ["512", long] {
            let args = ["-p", prompt, "-n", "0", "-r", "1", "--kv-type", kv];
            let m = bench(report, &model, &args)?;
            row.push(format!("{:.0}", m.number("prefill_tokens_per_s")?));
            let _ = writeln!(commands, "    {}", m.command);
        }
        for how in ["--exact", "--int8"] {
            let mut args: Vec<OsString> = vec!["eval".into(), "--device".into(), "cpu".into()];
            args.extend(["--model".into(), model.clone().into(), "--against".into()]);
            args.extend([model.clone().into(), "--text".into(), text.clone().into()]);
            args.extend(
                ["--ctx", "512", "--chunks", windows, "--kv-type", kv, how].map(Into::into),
            );
            let m = report.measure("splitrun", &args, &[&model, &text])?;
            row.push(format!("{:.5}", m.number("kl_mean")?));
            row.push(format!("{:.2} %", 100.0 * m.number("top1_agreement")?));
            let _ = writeln!(commands, "    {}", m.command);
        }
        others.push(row);
    }
    let mut head = vec!["keys and values".to_owned()];
    head.extend(depths.iter().map(|d| format!("ms a token behind {d}")));
    head.extend(
        [
            "added",
            "memory, GB/s",
            "added ms",
            "reading alone, ms",
            "ratio",
        ]
        .map(ToOwned::to_owned),
    );
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let long = format!("prompt of {long}, tokens/s");
    let more = [
        "keys and values",
        "prompt of 512, tokens/s",
        &*long,
        "KL, floats",
        "same top token",
        "KL, 8 bits",
        "same top token",
    ];
    let axis = |label: &str| Axis {
        label: label.into(),
        logarithmic: false,
    };
    let svg = plot(
        "A token against its context",
        &axis("positions held"),
        &axis("milliseconds a token"),
        &series,
        None,
    );
    Ok(Section {
        title: "What a context costs".into(),
        markdown: format!(
            "SmolLM2-135M-Instruct Q4_1 on the processor. *Reading alone*: the keys and values that \
             the context adds by the speed at which the same threads read memory. KL is to the same \
             file with f16 and float activations, over {windows} windows of 512 tokens.\n\n\
             ![milliseconds a token against positions held](context.svg)\n\n{}\n{}\n\n{commands}",
            table(&head, &decoded),
            table(&more, &others)
        ),
        plots: vec![("context.svg".into(), svg)],
    })
}
