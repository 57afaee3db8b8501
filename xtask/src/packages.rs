//! What Debian has and we need.

use std::process::Command;
use std::time::Duration;

use crate::error::Failure;
use crate::process::{self, say};

/// How long a package may take to come.
const INSTALL: Duration = Duration::from_mins(10);

/// Tries to install `packages`. Where that fails (not Debian, or no network) what matters is
/// whether the thing they bring is there afterwards: the caller looks.
///
/// # Errors
/// Only [`Failure::Interrupted`].
pub(crate) fn install(packages: &[&str]) -> Result<(), Failure> {
    let install = [&["install", "-y", "--no-install-recommends"], packages].concat();
    for args in [&["update"][..], &install] {
        attempt(as_root("apt-get", args))?;
    }
    Ok(())
}

/// Runs what may fail.
///
/// # Errors
/// Only [`Failure::Interrupted`].
pub(crate) fn attempt(command: Command) -> Result<(), Failure> {
    say(&command);
    match process::run(command, INSTALL) {
        Err(Failure::Interrupted) => Err(Failure::Interrupted),
        _ => Ok(()),
    }
}

/// `program args`, through sudo for who is not root.
fn as_root(program: &str, args: &[&str]) -> Command {
    let id = Command::new("id").arg("-u").output();
    let root = id.is_ok_and(|o| o.stdout.trim_ascii() == b"0");
    let mut command = if root {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", program]);
        sudo
    };
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
