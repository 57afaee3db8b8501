//! What can go wrong.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a task stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A program could not be started.
    #[error("cannot start `{line}`")]
    Start {
        /// The command.
        line: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed; it has said why itself.
    #[error("`{line}` failed ({status})")]
    Command {
        /// The command.
        line: String,
        /// Its exit status.
        status: String,
    },
    /// A program did not end, or did not come up.
    #[error("`{line}` did not {what} within {} s", after.as_secs())]
    Late {
        /// The command.
        line: String,
        /// `end`, `start to listen`.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// A program's output is not what it should be.
    #[error("`{line}`: {why}")]
    Output {
        /// The command.
        line: String,
        /// What is wrong.
        why: String,
    },
    /// The cloud ended before its time.
    #[error("`{line}` ended ({status}); it said:\n{said}")]
    Ended {
        /// The command.
        line: String,
        /// Its exit status.
        status: String,
        /// The last lines it wrote.
        said: String,
    },
    /// A model or text cannot be had.
    #[error("cannot get the model")]
    Fetch(#[from] fixtures::fetch::FetchError),
    /// A file or folder.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tool that is not installed.
    #[error(
        "`cargo {tool}` is missing and could not be installed; run `rustup component add {component}`"
    )]
    Tool {
        /// The subcommand.
        tool: &'static str,
        /// What rustup calls it.
        component: &'static str,
    },
    /// No graphics adapter for the tests of the shaders.
    #[error(
        "there is no Vulkan adapter to test the shaders on, and `{package}` could not be installed; on Debian: apt install {package} (elsewhere Mesa's lavapipe)"
    )]
    Adapter {
        /// Debian's package.
        package: &'static str,
    },
    /// No way to build for aarch64, or to run what was built.
    #[error(
        "the aarch64 build needs {}, which could not be installed; on Debian: apt install {} && rustup target add {target}",
        missing.join(", "), packages.join(" ")
    )]
    Emulator {
        /// What was looked for in vain.
        missing: Vec<String>,
        /// Debian's packages.
        packages: &'static [&'static str],
        /// rustup's name of the target.
        target: &'static str,
    },
    /// Two processors disagree.
    #[error("`{line}` on aarch64 answers\n{got}\nand one process of this machine\n{want}")]
    Differs {
        /// What ran on aarch64.
        line: String,
        /// Tokens and log-probabilities of that.
        got: String,
        /// What they should be.
        want: String,
    },
    /// Files over the limit.
    #[error("these files have more than {limit} lines, divide them:\n{}", files.join("\n"))]
    TooLong {
        /// The limit.
        limit: usize,
        /// Path and length of each.
        files: Vec<String>,
    },
    /// Signals cannot be watched.
    #[error("cannot watch for Ctrl-C")]
    Signals(#[from] ctrlc::Error),
    /// Ctrl-C, or the system asked us to end.
    #[error("interrupted")]
    Interrupted,
}

/// An error with its causes, on one line.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}
