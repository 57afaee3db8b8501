//! Right answers to multiple-choice questions: of the source, and of pairs through the codec.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fixtures::fetch::SMOLLM2;

use super::opsc::{self, pair};
use super::{Measured, Report, Section, table};
use crate::error::Failure;
use crate::process::number;

/// Bits of the edge's layers.
const EDGE_BITS: &str = "4";
/// Questions of each set: enough to tell three points of a hundred apart.
const QUESTIONS: &str = "500";
const FEW_QUESTIONS: &str = "20";

/// The sets in a folder, by name.
fn sets(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let error = |source| Failure::File {
        path: folder.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == "jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Measures.
pub(super) fn make(report: &Report) -> Result<Section, Failure> {
    let Some(folder) = &report.options.tasks else {
        return Err(Failure::Output {
            line: "cargo xtask report tasks".into(),
            why: "the sets are their authors' and not part of this project; --tasks DIR takes a \
                  folder of them"
                .into(),
        });
    };
    let source = SMOLLM2.get()?;
    let few = pair(report, EDGE_BITS, "8")?;
    let uniform = pair(report, EDGE_BITS, EDGE_BITS)?;
    let kept = report.folder("report/answers")?;
    let limit = match report.options.questions {
        Some(n) => n.to_string(),
        None if report.options.quick => FEW_QUESTIONS.to_owned(),
        None => QUESTIONS.to_owned(),
    };
    let mut rows = Vec::new();
    for set in sets(folder)? {
        let stem = set.file_stem().unwrap_or_default().to_string_lossy();
        let answers = kept.join(format!("{stem}.jsonl"));
        // Those of an earlier report may be of other programs.
        match fs::remove_file(&answers) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Failure::File {
                    path: answers,
                    source,
                });
            }
            _ => {}
        }
        let run = |model: &Path, more: &[OsString]| {
            let mut args: Vec<OsString> = vec!["eval".into(), "--model".into(), model.into()];
            args.extend(["--task".into(), set.clone().into()]);
            args.extend(["--limit", &limit].map(Into::into));
            args.extend_from_slice(more);
            report.measure("splitrun", &args, &[model, &set, &answers])
        };
        let base = run(&source, &["--results".into(), answers.clone().into()])?;
        rows.push(row(&stem, "source", &base)?);
        for (name, folder) in [("OPSC", &few.folder), ("uniform", &uniform.folder)] {
            let more = ["--codec", "auto", "--compare"].map(Into::into);
            let m = run(folder, &[&more[..], &[answers.clone().into()]].concat())?;
            rows.push(row(&stem, name, &m)?);
        }
    }
    let head = [
        "set",
        "model",
        "n",
        "accuracy",
        "per byte",
        "less the source's (95 %)",
        "only this, only the source right",
        "McNemar mid-p",
        "bytes/token",
        "with",
    ];
    Ok(Section {
        title: "Questions".into(),
        markdown: format!(
            "SmolLM2-135M-Instruct Q4_1 and its pairs cut at {}, `--edge-bits {EDGE_BITS}`, through codec \
             `auto`. *OPSC*: the source's own bits behind the cut; *uniform*: {EDGE_BITS} bits there too. The first {limit} \
             questions of each set.\n\n    {}\n    {}\n\n{}",
            opsc::CUT,
            few.command,
            uniform.command,
            table(&head, &rows)
        ),
        plots: Vec::new(),
    })
}

/// A line of the table.
fn row(set: &str, model: &str, m: &Measured) -> Result<Vec<String>, Failure> {
    let percent = |key: &str| Ok::<_, Failure>(100.0 * m.number(key)?);
    let has = |key: &str| m.object.get(key).is_some();
    let mut out = vec![
        set.to_owned(),
        model.to_owned(),
        m.number("n")?.to_string(),
        format!("{:.1} % ± {:.1}", percent("accuracy")?, percent("stderr")?),
        format!(
            "{:.1} % ± {:.1}",
            percent("accuracy_norm")?,
            percent("stderr_norm")?
        ),
    ];
    if has("compare") {
        let of = |key: &str| number(&m.object["compare"], key, &m.command);
        out.push(format!(
            "{:+.1} ({:+.1} to {:+.1})",
            100.0 * of("difference")?,
            100.0 * of("difference_low")?,
            100.0 * of("difference_high")?
        ));
        out.push(format!("{}, {}", of("only_this")?, of("only_other")?));
        out.push(format!("{:.3}", of("mcnemar_mid_p")?));
    } else {
        out.extend(vec![String::new(); 3]);
    }
    out.push(if has("bytes_per_token") {
        format!("{:.1}", m.number("bytes_per_token")?)
    } else {
        String::new()
    });
    out.push(format!("`{}`", m.command));
    Ok(out)
}
