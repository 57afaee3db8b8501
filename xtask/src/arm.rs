//! The aarch64 build on a machine that is none: cross-compiled, run by qemu.
//!
//! Two things must hold there. Every kernel gives the bits of the scalar one, and so a token that
//! crosses from an aarch64 edge to a cloud of this machine is the token of one process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::demo::{Pair, READY};
use crate::error::Failure;
use crate::packages;
use crate::process::{self, Profile, Server, Workspace, on_the_processor, say};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// The target's name in cargo's variables.
const TARGET_VAR: &str = "AARCH64_UNKNOWN_LINUX_GNU";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Debian 12 has the first name only, later ones perhaps only the second.
const EMULATORS: [&str; 2] = ["qemu-aarch64-static", "qemu-aarch64"];
/// Where the cross compiler's C library lies.
const SYSROOT: &str = "/usr/aarch64-linux-gnu";
/// The dynamic loader: what a program needs to start.
const LOADER: &str = "lib/ld-linux-aarch64.so.1";
/// A header: what a build of C code needs.
const HEADER: &str = "include/stdio.h";
const PACKAGES: [&str; 3] = [
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "qemu-user-static",
];
/// Crates that are quicker to build than to have fast here, beside those of Cargo.toml. None of them is part
/// of a macro or of a build script: those are the same ones as elsewhere, and are built only once.
const LEAST: [&str; 10] = [
    "compact_str",
    "daachorse",
    "fancy-regex",
    "nom",
    "proptest",
    "rand",
    "rayon",
    "rayon-core",
    "tokenizers",
    "zstd-sys",
];
/// Crates in which the emulated tokens spend their time.
const LITTLE: [&str; 2] = ["engine", "formats"];

/// The equalities among kernels, and what a build without the GPU executor says.
const TESTS: [&str; 2] = ["exec::cpu::", "cli::device::"];
/// What the two processors complete together.
const PROMPT: &str = "The sky is blue because";
/// Tokens of that.
const TOKENS: &str = "16";

const QUICK: Duration = Duration::from_mins(1);
const BUILD: Duration = Duration::from_mins(30);
const TESTING: Duration = Duration::from_mins(10);
const ANSWER: Duration = Duration::from_mins(10);

/// Whether this machine is what is emulated elsewhere.
const AT_HOME: bool = cfg!(target_arch = "aarch64");

/// Makes sure that all is there that [`run`] needs, before anything takes long.
pub(crate) fn provide() -> Result<(), Failure> {
    if !AT_HOME {
        Emulator::provide()?;
    }
    Ok(())
}

/// Builds for aarch64 and compares.
pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    if AT_HOME {
        eprintln!("  this machine is aarch64: its ordinary tests are these");
        return Ok(());
    }
    let emulator = Emulator::provide()?;
    let built = Built::make(workspace)?;

    for filter in TESTS {
        // A filter that fits nothing is no error to whom it is given.
        let mut list = emulator.command(workspace, &built.tests);
        list.args([filter, "--list"]);
        let line = say(&list);
        if !process::output(list, QUICK)?.contains(": test") {
            return Err(Failure::Output {
                line,
                why: "there are no such tests".to_owned(),
            });
        }
    }
    let mut kernels = emulator.command(workspace, &built.tests);
    kernels.args(TESTS).arg("--quiet");
    say(&kernels);
    process::run(kernels, TESTING)?;

    let programs = workspace.build(Profile::Tests)?;
    let pair = Pair::make(&programs)?;
    // Whole numbers, then floats with rows that were coded on one processor, decoded on the other.
    for (math, codec) in [(&[][..], "f32"), (&["--exact"], "auto")] {
        let rest = [
            &["--prompt", PROMPT, "-n", TOKENS, "--temp", "0", "--json"],
            &["--top-logprobs", "5", "--codec", codec][..],
            math,
        ]
        .concat();
        let mut one = programs.command("splitrun", &["--role", "both", "--model"]);
        one.arg(&pair.folder).args(&rest);
        say(&one);
        let want = process::json(one, ANSWER)?;

        let mut cloud = programs.command("splitrun", &["--role", "cloud", "--model"]);
        cloud.arg(&pair.cloud).args(["--listen", "127.0.0.1:0"]);
        cloud.args(math);
        say(&cloud);
        let mut cloud = Server::start(cloud, READY)?;
        let mut edge = emulator.command(workspace, &built.splitrun);
        edge.args(["--role", "edge", "--model"]).arg(&pair.edge);
        edge.args(["--cloud", &cloud.address]).args(&rest);
        let line = say(&edge);
        match process::json(edge, ANSWER) {
            Ok(got) => compare(line, &got, &want)?,
            Err(e) => {
                // A cloud that died is the better reason.
                cloud.check()?;
                return Err(e);
            }
        }
    }
    Ok(())
}

/// What an aarch64 edge and a cloud of this machine have made must be what one process makes.
fn compare(line: String, got: &Value, want: &Value) -> Result<(), Failure> {
    if same(got, want) {
        eprintln!("  {}", got["ids"]);
        return Ok(());
    }
    let show = |object: &Value| format!("{} {}", object["ids"], object["logprobs"]);
    Err(Failure::Differs {
        line,
        got: show(got),
        want: show(want),
    })
}

/// Whether two answers have the same tokens with the same log-probabilities, digit for digit.
fn same(a: &Value, b: &Value) -> bool {
    let there = |v: &Value| v.as_array().is_some_and(|a| !a.is_empty());
    ["ids", "logprobs"]
        .iter()
        .all(|key| there(&a[key]) && a[key] == b[key])
}

/// The programs that were built for aarch64.
#[derive(Debug, PartialEq, Eq)]
struct Built {
    splitrun: PathBuf,
    /// The engine's unit tests.
    tests: PathBuf,
}

impl Built {
    fn make(workspace: &Workspace) -> Result<Self, Failure> {
        // In one go: tests and programs then share what they depend on. No small edge has a card,
        // and the drivers' interfaces would be a third of the build.
        let args = [
            "build",
            "-p",
            "engine",
            "--no-default-features",
            "--bins",
            "--tests",
        ];
        let mut command = workspace.cargo(&args);
        command.args(["--target", TARGET]);
        for (names, level) in [(&LEAST[..], 0), (&LITTLE, 1)] {
            for name in names {
                let setting = format!("profile.dev.package.{name}.opt-level={level}");
                command.args(["--config", &setting]);
            }
        }
        // Keeping what a next build could use costs more than this one gains.
        command.env("CARGO_INCREMENTAL", "0");
        command.env(format!("CARGO_TARGET_{TARGET_VAR}_LINKER"), LINKER);
        command.env(format!("CC_{}", TARGET.replace('-', "_")), LINKER);
        let line = say(&command);
        command.arg("--message-format=json-render-diagnostics");
        Self::find(&process::output(command, BUILD)?).ok_or_else(|| Failure::Output {
            line,
            why: "it built no splitrun, or no tests of the engine".to_owned(),
        })
    }

    /// The two in cargo's messages.
    fn find(messages: &str) -> Option<Self> {
        let (mut splitrun, mut tests) = (None, None);
        let messages = messages
            .lines()
            .filter_map(|m| serde_json::from_str(m).ok());
        for m in messages {
            let m: Value = m;
            let Some(path) = m["executable"].as_str().map(PathBuf::from) else {
                continue;
            };
            match (m["target"]["name"].as_str(), &m["profile"]["test"]) {
                (Some("splitrun"), Value::Bool(false)) => splitrun = Some(path),
                (Some("engine"), Value::Bool(true)) => tests = Some(path),
                _ => {}
            }
        }
        Some(Self {
            splitrun: splitrun?,
            tests: tests?,
        })
    }
}

/// What runs aarch64 programs.
struct Emulator(&'static str);

impl Emulator {
    /// Makes sure that all is there that building and running need.
    fn provide() -> Result<Self, Failure> {
        if !missing_tools().1.is_empty() {
            packages::install(&PACKAGES)?;
        }
        if !target_installed() {
            let mut add = Command::new("rustup");
            add.args(["target", "add", TARGET]);
            packages::attempt(add)?;
        }
        let (emulator, mut missing) = missing_tools();
        if !target_installed() {
            missing.push(format!("Rust's library for {TARGET}"));
        }
        match emulator {
            Some(name) if missing.is_empty() => Ok(Self(name)),
            _ => Err(Failure::Emulator {
                missing,
                packages: &PACKAGES,
                target: TARGET,
            }),
        }
    }

    /// `program`, run by it.
    fn command(&self, workspace: &Workspace, program: &Path) -> Command {
        let mut command = Command::new(self.0);
        command.args(["-L", SYSROOT]).arg(program);
        command.current_dir(&workspace.root);
        on_the_processor(&mut command);
        command
    }
}

/// The emulator's name, and what is missing of it, the linker and the C library.
fn missing_tools() -> (Option<&'static str>, Vec<String>) {
    let emulator = EMULATORS.into_iter().find(|name| answers(name));
    let mut missing = Vec::new();
    if emulator.is_none() {
        missing.push(EMULATORS[0].to_owned());
    }
    if !answers(LINKER) {
        missing.push(LINKER.to_owned());
    }
    for file in [LOADER, HEADER] {
        let path = Path::new(SYSROOT).join(file);
        if !path.exists() {
            missing.push(path.display().to_string());
        }
    }
    (emulator, missing)
}

/// Whether there is such a program.
fn answers(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    process::run(command, QUICK).is_ok()
}

/// Whether the compiler has the target's library.
fn target_installed() -> bool {
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", TARGET]);
    process::output(command, QUICK).is_ok_and(|path| Path::new(path.trim()).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_programs_in_cargos_messages() {
        let line = |name: &str, test: bool, path: &str| {
            serde_json::json!({
                "target": { "name": name }, "profile": { "test": test }, "executable": path,
            })
            .to_string()
        };
        let tests = line("engine", true, "/t/engine-1");
        let text = [
            &line("splitrun", true, "/t/splitrun-2"),
            "Compiling engine",
            &line("splitrun", false, "/t/splitrun"),
        ]
        .join("\n");
        assert_eq!(Built::find(&text), None);
        let built = Built {
            splitrun: "/t/splitrun".into(),
            tests: "/t/engine-1".into(),
        };
        assert_eq!(Built::find(&format!("{text}\n{tests}")), Some(built));
    }

    #[test]
    fn answers_are_compared_digit_for_digit() {
        let object = |ids: &[u32], logprob: f64| {
            let top = [serde_json::json!({ "id": 1, "logprob": logprob })];
            serde_json::json!({ "ids": ids, "logprobs": top, "text": logprob })
        };
        let a = object(&[1, 2], -0.123_456_7);
        assert!(same(&a, &object(&[1, 2], -0.123_456_7)));
        assert!(!same(&a, &object(&[1, 2], -0.123_456_8)));
        assert!(!same(&a, &object(&[1, 3], -0.123_456_7)));
        let silent = serde_json::json!({ "ids": [1, 2] });
        assert!(!same(&silent, &silent));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(!answers("no-such-program-at-all"));
        let error = Failure::Emulator {
            missing: vec![LINKER.to_owned()],
            packages: &PACKAGES,
            target: TARGET,
        };
        let text = error.to_string();
        for part in [LINKER, PACKAGES[2], TARGET] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
