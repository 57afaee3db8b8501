//! Everything a change must pass, in the order in which it fails fastest.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixtures::fetch::{LLAMA2_VOCAB, SMOLLM2, WIKI_64K};

use crate::error::Failure;
use crate::process::{self, Profile, Workspace, say};
use crate::{arm, demo, sources, vulkan};

/// How long one step may take: a machine that needs longer is stuck.
const STEP: Duration = Duration::from_mins(30);
/// How long an answer of cargo about itself may take.
const QUICK: Duration = Duration::from_mins(1);
/// How long rustup may download.
const INSTALL: Duration = Duration::from_mins(5);

/// Runs every step, stops at the first that fails.
pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    let start = Instant::now();
    step("tools", || {
        tool(workspace, "fmt", "rustfmt")?;
        tool(workspace, "clippy", "clippy")
    })?;
    step("models and texts", || {
        for asset in [&SMOLLM2, &LLAMA2_VOCAB, &WIKI_64K] {
            eprintln!("  {}", asset.get()?.display());
        }
        Ok(())
    })?;
    step("length of files", || {
        sources::check_lengths(&workspace.root)
    })?;
    let cargo = |args: &[&str]| {
        let command = workspace.cargo(args);
        say(&command);
        process::run(command, STEP)
    };
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    step("lints", || cargo(&clippy))?;
    // Tests of one crate start the programs of another, which cargo does not build for them.
    step("programs", || cargo(&process::BUILD_FOR_TESTS))?;
    step("a Vulkan adapter", || vulkan::provide(workspace))?;
    step("tools for aarch64", arm::provide)?;
    step("tests", || {
        cargo(&["test", "--workspace", "--lib", "--bins", "--tests"])
    })?;
    step("examples in the documentation", || {
        cargo(&["test", "--workspace", "--doc"])
    })?;
    // The demo of the programs that are built already; the optimised ones differ in speed only.
    step("demo", || {
        demo::run(workspace, demo::QUESTION, Profile::Tests)
    })?;
    step("aarch64", || arm::run(workspace))?;
    eprintln!("\nall passed in {}", seconds(start));
    Ok(())
}

fn step(name: &str, f: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    eprintln!("\n== {name}");
    let start = Instant::now();
    let done = f();
    let how = if done.is_ok() { "ok" } else { "FAILED" };
    eprintln!("== {name}: {how}, {}", seconds(start));
    done
}

fn seconds(start: Instant) -> String {
    format!("{:.1} s", start.elapsed().as_secs_f64())
}

/// Makes sure that `cargo TOOL` is there.
fn tool(workspace: &Workspace, tool: &'static str, component: &'static str) -> Result<(), Failure> {
    let there = || {
        let mut command = workspace.cargo(&[tool, "--version"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        process::run(command, QUICK)
    };
    match there() {
        Err(Failure::Interrupted) => return Err(Failure::Interrupted),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    let mut install = Command::new("rustup");
    install
        .args(["component", "add", component])
        .current_dir(&workspace.root);
    say(&install);
    // Without rustup, or without a network: what matters is whether the tool is there.
    if let Err(Failure::Interrupted) = process::run(install, INSTALL) {
        return Err(Failure::Interrupted);
    }
    there().map_err(|e| match e {
        Failure::Interrupted => e,
        _ => Failure::Tool { tool, component },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_failing_step_stops_with_its_error() {
        assert!(step("good", || Ok(())).is_ok());
        let failed = step("bad", || Err(Failure::Interrupted));
        assert!(matches!(failed, Err(Failure::Interrupted)));
    }
    /// Crates with other features are other crates: they would be compiled for xtask, and again
    /// for all the rest.
    #[test]
    fn xtask_needs_nothing_that_the_workspace_does_not_build_as_well() {
        let tree = |which: &[&str]| -> BTreeSet<String> {
            let args = ["tree", "--locked", "--prefix", "none"];
            let mut command = Workspace::find().cargo(&args);
            command.args(["--format", "{p} [{f}]"]).args(which);
            let text = process::output(command, QUICK).unwrap();
            let lines = text.lines().map(|l| l.trim_end_matches(" (*)"));
            lines.map(str::to_owned).collect()
        };
        // Features of what runs in the compiler are apart, so what is linked is also compared alone.
        for (all, own) in [
            ("normal,build,dev", "normal,build"),
            ("normal,dev,no-proc-macro", "normal,no-proc-macro"),
        ] {
            let all = tree(&["--workspace", "-e", all]);
            let own = tree(&["-p", "xtask", "-e", own]);
            assert!(own.len() > 50);
            let other: Vec<_> = own.difference(&all).collect();
            assert!(
                other.is_empty(),
                "these have more features elsewhere (see `cargo tree`), which xtask/Cargo.toml must name: {other:#?}"
            );
        }
    }
}
