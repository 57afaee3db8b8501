//! The command line of `splitrun`.

mod args;
mod calibrate;
mod codecs;
mod damage;
mod device;
mod measure;
mod memory;
mod profile;
mod roles;
mod task;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Cli, Command, Role};
use crate::model::HParams;
use crate::role::RunError;

/// Parses the arguments, runs, and says what went wrong. 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    quiet_vulkan();
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SPLITRUN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let done = match &cli.command {
        Some(Command::Eval(a)) => measure::eval(a),
        Some(Command::Bench(a)) => measure::bench(a),
        Some(Command::Calibrate(a)) => calibrate::calibrate(a),
        Some(Command::Tokenize(a)) => measure::tokenize(a),
        Some(Command::Devices(a)) => measure::devices(a),
        None => match cli.run.role {
            Some(Role::Cloud) => roles::cloud(&cli.run),
            Some(Role::Edge) => roles::edge(&cli.run),
            Some(Role::Both) => roles::both(&cli.run),
            None => {
                note(
                    "splitrun: error: say what to run: --role edge, cloud or both, or a command \
                     (eval, bench, calibrate, tokenize, devices); --help tells more",
                );
                return ExitCode::from(2);
            }
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            note(&format!("splitrun: error: {}", one_line(&e)));
            ExitCode::from(if matches!(e, RunError::Usage(_)) {
                2
            } else {
                1
            })
        }
    }
}

/// Mesa's layer that lets a desktop choose among graphics cards complains on standard error where
/// there is no desktop. Without one, and without a choice, it is left out.
fn quiet_vulkan() {
    let asked = [
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "MESA_VK_DEVICE_SELECT",
        "NODEVICE_SELECT",
    ];
    if cfg!(target_os = "linux") && asked.iter().all(|v| std::env::var_os(v).is_none()) {
        // SAFETY: the first thing the program does: no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// An error and its causes on one line, each said once.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let text = e.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = e.source();
    }
    line.replace('\n', " ")
}

/// The context to reserve: what was asked for, else what the model was trained for, within reason.
fn context(asked: Option<u32>, hparams: &HParams) -> usize {
    // A cache takes memory only as it fills, but its address space should stay sensible.
    const MOST: usize = 8192;
    asked.map_or_else(|| hparams.n_ctx_train.min(MOST), |n| n as usize)
}

/// A line on standard error; nobody listening is no reason to stop.
fn note(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints one JSON object on standard output.
fn print_json<T: serde::Serialize>(value: &T) -> Result<(), RunError> {
    let text = serde_json::to_string(value)
        .map_err(|e| RunError::Request(format!("cannot write JSON: {e}")))?;
    print_line(&text)
}

/// A line on standard output; a closed pipe is an error with a name, not a panic.
fn print_line(text: &str) -> Result<(), RunError> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(RunError::io("standard output"))
}

/// Writes beside the target, syncs, renames: no half file under the name.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    use std::io::Write as _;
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let io = || RunError::io(format!("writing {}", path.display()));
    let done = std::fs::File::create(&partial)
        .and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()))
        .and_then(|()| std::fs::rename(&partial, path));
    if done.is_err() {
        // What is left of it helps nobody; if it cannot go, the first error says why.
        let _ = std::fs::remove_file(&partial);
    }
    done.map_err(io())
}
