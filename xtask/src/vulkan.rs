//! A Vulkan adapter for the tests of the shaders: any will do, Debian has one in software.

use std::time::Duration;

use crate::error::Failure;
use crate::packages;
use crate::process::{self, Profile, Workspace};

/// How long listing the adapters may take.
const LIST: Duration = Duration::from_mins(2);
/// Debian's name of the driver, with the loader it needs.
const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// Makes sure that there is one. Tests that need it fail without, they do not skip.
pub(crate) fn provide(workspace: &Workspace) -> Result<(), Failure> {
    if let Some(name) = adapter(workspace)? {
        eprintln!("  {name}");
        return Ok(());
    }
    packages::install(&PACKAGES)?;
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
