//! `cargo xtask report`: measures, and writes a folder of results with their tables and plots.
//!
//! A section is one file beside this one and a function in [`SECTIONS`]; it measures by running
//! the programs, and answers Markdown and plots. It becomes a page of its own as soon as it is
//! measured, since together they take hours; the folder's README leads to all that are there.

mod codecs;
mod context;
mod links;
mod opsc;
mod plot;
mod tasks;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fixtures::fetch::{C4, SMOLLM2};
use serde_json::Value;

use crate::error::Failure;
use crate::process::{self, Profile, Programs, Workspace, say};
use crate::versus::today;

/// The name of what leads to the pages.
const INDEX: &str = "README.md";
/// What stands below the heading of everything that is written, by which it is known again.
const WRITTEN_BY: &str = "Written by `cargo xtask report";
/// Where pages go unless told otherwise, and where those go of which nothing is to be concluded.
const KEPT: &str = "docs/results";
const PASSING: &str = "target/results";
/// How long one command may take.
const DEADLINE: Duration = Duration::from_hours(2);
/// Windows of [`C4`] that a pair is calibrated on.
const CALIBRATED_ON: &str = "6";

/// Measures a part of the page.
type Make = fn(&Report) -> Result<Section, Failure>;

/// The section that needs what is not part of this project.
const TASKS: &str = "tasks";

/// All parts, by the name that a person types, in the page's order.
const SECTIONS: &[(&str, Make)] = &[
    ("opsc", opsc::make),
    ("codecs", codecs::make),
    ("links", links::make),
    (TASKS, tasks::make),
    ("context", context::make),
];

/// What to measure.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    /// Folder of the pages; `None` for [`KEPT`], or with `quick` for [`PASSING`].
    pub(crate) out: Option<PathBuf>,
    /// Names of sections; empty for all.
    pub(crate) sections: Vec<String>,
    /// Few windows, to see whether everything runs.
    pub(crate) quick: bool,
    /// Folder of files of questions.
    pub(crate) tasks: Option<PathBuf>,
    /// Questions of each set at most; `None` for as many as tell three points of a hundred apart.
    pub(crate) questions: Option<u32>,
}

impl Options {
    /// Reads what follows `report`; `None` when it is not understood.
    pub(crate) fn parse(args: &[&str]) -> Option<Self> {
        let mut options = Self {
            out: None,
            sections: Vec::new(),
            quick: false,
            tasks: None,
            questions: None,
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--out" => options.out = Some(args.next()?.into()),
                "--quick" => options.quick = true,
                "--tasks" => options.tasks = Some(args.next()?.into()),
                "--questions" => {
                    let n = args.next()?.parse().ok()?;
                    options.questions = Some(n).filter(|n| *n > 0);
                    options.questions?;
                }
                name if SECTIONS.iter().any(|(n, _)| *n == name) => {
                    options.sections.push(name.to_owned());
                }
                _ => return None,
            }
        }
        Some(options)
    }
}

/// The names of the sections, for the usage.
pub(crate) fn names() -> String {
    SECTIONS
        .iter()
        .map(|(n, _)| *n)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What a section measured.
pub(crate) struct Section {
    /// Its heading.
    pub(crate) title: String,
    /// Markdown below the heading: tables, each with the command that printed its figures.
    pub(crate) markdown: String,
    /// File names and SVG of the plots that the Markdown shows.
    pub(crate) plots: Vec<(String, String)>,
}

/// What sections measure with.
pub(crate) struct Report {
    programs: Programs,
    /// What was asked for.
    pub(crate) options: Options,
}

/// What a command printed.
pub(crate) struct Measured {
    /// The command as it is shown: paths by their file names.
    pub(crate) command: String,
    /// Its JSON object.
    pub(crate) object: Value,
}

impl Measured {
    /// A number of the object, by its path of keys.
    pub(crate) fn number(&self, key: &str) -> Result<f64, Failure> {
        process::number(&self.object, key, &self.command)
    }
}

impl Report {
    /// Runs `NAME ARGS… --json`; in what is shown, `paths` go by their file names.
    pub(crate) fn measure(
        &self,
        name: &str,
        args: &[OsString],
        paths: &[&Path],
    ) -> Result<Measured, Failure> {
        let mut command = self.programs.command(name, args);
        command.arg("--json");
        let mut shown = say(&command);
        for path in paths {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            shown = shown.replace(&*path.to_string_lossy(), &file);
        }
        let object = process::json(command, DEADLINE)?;
        Ok(Measured {
            command: shown,
            object,
        })
    }

    /// A folder for what the report makes on its way.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        self.programs.folder(name)
    }

    /// SmolLM2 cut at `cut` with an edge of four bits, calibrated on [`C4`] at that cut: the
    /// folder of the pair, and how it was made.
    pub(crate) fn calibrated_pair(&self, cut: usize) -> Result<(PathBuf, Vec<String>), Failure> {
        let (model, text) = (SMOLLM2.get()?, C4.get()?);
        let folder = self.folder(&format!("report/cut-{cut}"))?;
        let im = folder.join("im.gguf");
        let cut = cut.to_string();
        let mut calibrate: Vec<OsString> = vec!["calibrate".into(), "--model".into()];
        calibrate.push(model.clone().into());
        calibrate.extend(["--text".into(), text.clone().into(), "--out".into()]);
        calibrate.push(im.clone().into());
        let more = [
            "--chunks",
            CALIBRATED_ON,
            "--cut",
            &cut,
            "--cut-chunks",
            "1",
        ];
        calibrate.extend(more.map(Into::into));
        let mut convert: Vec<OsString> = vec![model.clone().into()];
        convert.extend(["--split", &cut, "--edge-bits", "4", "--imatrix"].map(Into::into));
        convert.push(im.clone().into());
        convert.extend(["--out".into(), folder.clone().into()]);
        convert.push("--force".into());
        let paths = [&*model, &*text, &*im, &*folder];
        let calibrated = self.measure("splitrun", &calibrate, &paths)?.command;
        let converted = self.measure("splitconv", &convert, &paths)?.command;
        Ok((folder, vec![calibrated, converted]))
    }
}

/// Measures, and writes each section as soon as it is there.
pub(crate) fn run(workspace: &Workspace, options: Options) -> Result<(), Failure> {
    let programs = workspace.build(Profile::Release)?;
    let report = Report { programs, options };
    let usual = if report.options.quick { PASSING } else { KEPT };
    let folder = report.options.out.as_deref().unwrap_or(Path::new(usual));
    let out = workspace.root.join(folder);
    let asked = |name: &str| {
        let options = &report.options;
        // A page that somebody has measured is not replaced by one without figures.
        let can = name != TASKS || options.tasks.is_some();
        let named = options.sections.iter().any(|a| a == name);
        named || (options.sections.is_empty() && can)
    };
    let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
    let to_write = names.iter().filter(|n| asked(n)).map(|n| page(n));
    for name in to_write.chain([INDEX.to_owned()]) {
        if fs::read_to_string(out.join(&name)).is_ok_and(|t| heading(&t).is_none()) {
            return Err(Failure::Output {
                line: format!("cargo xtask report --out {}", folder.display()),
                why: format!("a {name} stands there that no report wrote; choose another folder"),
            });
        }
    }
    fs::create_dir_all(&out).map_err(|source| Failure::File {
        path: out.clone(),
        source,
    })?;
    for (name, make) in SECTIONS.iter().filter(|(name, _)| asked(name)) {
        let section = make(&report)?;
        let quick = if report.options.quick {
            "\n**Few windows (`--quick`): whether everything runs, not how well.**\n"
        } else {
            ""
        };
        let text = format!(
            "# {}\n\n{WRITTEN_BY} {name}` on {}; do not edit. Machine: {}.\n{quick}\n{}\n",
            section.title,
            today(),
            machine(),
            section.markdown.trim()
        );
        for (name, text) in section.plots.iter().chain([&(page(name), text)]) {
            write(&out.join(name), text)?;
        }
        write(&out.join(INDEX), &index(&out, &names))?;
    }
    Ok(())
}

/// The file name of a section's page.
fn page(name: &str) -> String {
    format!("{name}.md")
}

/// The heading of a text that a report wrote.
fn heading(text: &str) -> Option<&str> {
    let (heading, rest) = text.strip_prefix("# ")?.split_once("\n\n")?;
    rest.starts_with(WRITTEN_BY).then_some(heading)
}

/// What leads to the pages of `names` that stand in `folder`.
fn index(folder: &Path, names: &[&str]) -> String {
    let mut out = format!("# Results\n\n{WRITTEN_BY}`; do not edit.\n\n");
    for name in names {
        let text = fs::read_to_string(folder.join(page(name))).unwrap_or_default();
        if let Some(heading) = heading(&text) {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "- [{heading}]({})", page(name));
        }
    }
    out
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|source| Failure::File {
        path: path.to_owned(),
        source,
    })?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// The processor, how many of it, and the system.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{name}, {cores} cores, {}", std::env::consts::OS)
}

/// A table of Markdown.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let mut out = line(&head);
    out += &line(&vec!["---".to_owned(); head.len()]);
    for row in rows {
        out += &line(row);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_report_is_read_strictly() {
        let read = |args: &[&str]| Options::parse(args);
        assert_eq!(read(&[]).unwrap().out, None);
        let some = read(&["codecs", "--out", "x", "--quick"]).unwrap();
        assert_eq!(
            (some.sections, some.out, some.quick),
            (vec!["codecs".to_owned()], Some("x".into()), true)
        );
        let tasks = read(&["--tasks", "y", "tasks"]).unwrap().tasks;
        assert_eq!(tasks.as_deref(), Some(Path::new("y")));
        assert_eq!(read(&["--questions", "9"]).unwrap().questions, Some(9));
        for bad in [
            &["--out"][..],
            &["no-section"],
            &["--fast"],
            &["--tasks"],
            &["--questions", "0"],
            &["--questions", "-1"],
        ] {
            assert_eq!(read(bad), None);
        }
    }

    #[test]
    fn the_index_leads_to_what_a_report_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(
            path("links.md"),
            format!("# Links, by hand\n\n{WRITTEN_BY} links` on 2026-11-30; do not edit.\n"),
        )
        .unwrap();
        fs::write(path("tasks.md"), "# Notes\n\nof a person\n").unwrap();
        let text = index(folder.path(), &["links", "tasks", "context"]);
        assert!(text.ends_with("do not edit.\n\n- [Links, by hand](links.md)\n"));
        assert_eq!(heading(&text), Some("Results"));
        assert_eq!(heading("# Notes\n\nof a person\n"), None);
    }

    #[test]
    fn tables_have_a_head_and_a_line_a_row() {
        let text = table(&["a", "b"], &[vec!["1".into(), "2".into()]]);
        assert_eq!(text, "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
