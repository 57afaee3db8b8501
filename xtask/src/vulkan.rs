//! A Vulkan adapter for the tests of the shaders: any will do, Debian has one in software.

use std::process::Command;
use std::time::Duration;

use crate::error::Failure;
use crate::process::{self, Profile, Workspace, say};

/// How long listing the adapters may take.
const LIST: Duration = Duration::from_mins(2);
/// How long a package may take to come.
const INSTALL: Duration = Duration::from_mins(10);
/// Debian's name of the driver, with the loader it needs.
const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// Makes sure that there is one. Tests that need it fail without, they do not skip.
pub(crate) fn provide(workspace: &Workspace) -> Result<(), Failure> {
    if let Some(name) = adapter(workspace)? {
        eprintln!("  {name}");
        return Ok(());
    }
    for args in [
        &["update"][..],
        &[
            "install",
            "-y",
            "--no-install-recommends",
            PACKAGES[0],
            PACKAGES[1],
        ],
    ] {
        let command = as_root("apt-get", args);
        say(&command);
        // Not Debian, or no network: what matters is whether an adapter is there afterwards.
        if let Err(Failure::Interrupted) = process::run(command, INSTALL) {
            return Err(Failure::Interrupted);
        }
    }
    match adapter(workspace)? {
        Some(name) => {
            eprintln!("  {name}");
            Ok(())
        }
        None => Err(Failure::Adapter {
            package: PACKAGES[0],
        }),
    }
}

/// The first adapter that splitrun sees.
fn adapter(workspace: &Workspace) -> Result<Option<String>, Failure> {
    let programs = workspace.build(Profile::Tests)?;
    let devices = process::json(programs.command("splitrun", &["devices", "--json"]), LIST)?;
    let name = devices["adapters"][0]["name"].as_str();
    Ok(name.map(str::to_owned))
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
