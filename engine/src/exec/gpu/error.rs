//! What can go wrong on a graphics processor.

use std::fmt;

/// Why the graphics processor cannot run this, or stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// This build has no executor for one.
    #[error(
        "this splitrun was built without its GPU executor; use --device cpu, or build it with the feature `gpu` (cargo has it on unless it is told --no-default-features)"
    )]
    NotBuilt,
    /// There is none.
    #[error(
        "no graphics adapter was found; install its Vulkan driver (Debian's mesa-vulkan-drivers brings one for many cards, and one in software), or use --device cpu"
    )]
    NoAdapter,
    /// The driver gave no device.
    #[error("{adapter}: cannot be opened: {why}; `splitrun devices` lists what there is")]
    Open {
        /// Its name.
        adapter: String,
        /// The driver's words.
        why: String,
    },
    /// Not enough memory for the weights.
    #[error(
        "{adapter}: layers {first}..{end} need {} of device memory and there is {}: {advice}",
        Bytes(*needed), Available(*available)
    )]
    Weights {
        /// Its name.
        adapter: String,
        /// First layer.
        first: usize,
        /// End layer.
        end: usize,
        /// Bytes of all that is kept.
        needed: u64,
        /// Bytes there are, where the driver tells.
        available: Option<u64>,
        /// What would fit.
        advice: String,
    },
    /// Not enough memory for something else.
    #[error(
        "{adapter}: no {} of device memory for {what}; lower -c, or run fewer sessions",
        Bytes(*needed)
    )]
    Memory {
        /// Its name.
        adapter: String,
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        needed: u64,
    },
    /// A shape that the shaders are not made for.
    #[error("{what} cannot run on a graphics processor yet; use --device cpu")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// The device is gone, or does not answer.
    #[error("{adapter}: the device failed: {why}; start again, or use --device cpu")]
    Lost {
        /// Its name.
        adapter: String,
        /// The driver's words.
        why: String,
    },
}

/// A number of bytes as people read it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: f64 = 1024.0 * 1024.0;
        let mib = self.0 as f64 / MIB;
        if mib >= 1024.0 {
            write!(f, "{:.2} GiB", mib / 1024.0)
        } else {
            write!(f, "{mib:.1} MiB")
        }
    }
}

/// Bytes, where they are known.
struct Available(Option<u64>);

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => Bytes(n).fmt(f),
            None => f.write_str("less"),
        }
    }
}
