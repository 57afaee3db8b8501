//! What is told about adapters and their kernels: data alone, which a build without the executor has
//! as well.

use std::fmt;

use formats::blocks::BlockType;
use serde::Serialize;

/// What an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// Shares the processor's memory.
    Integrated,
    /// Given to a virtual machine, or of a kind the driver does not tell.
    Virtual,
    /// Computes on the processor (llvmpipe): never chosen unless asked for.
    Software,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
        })
    }
}

/// What an adapter can do, and which variants of the kernels it gets for that.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// As the driver calls it.
    pub name: String,
    /// What it is.
    pub kind: AdapterKind,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver, with its version.
    pub driver: String,
    /// Bytes of the memory it computes from, where the driver tells.
    pub memory_bytes: Option<u64>,
    /// Bytes that a kernel can see of one buffer.
    pub max_binding_bytes: u64,
    /// Threads of a subgroup, where all have this many.
    pub subgroup_size: Option<u32>,
    /// Optional features it has that matter here.
    pub features: Vec<&'static str>,
    /// Variants of the kernels it gets.
    pub variants: Vec<String>,
}

/// What a kernel has cost since the clock was started.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTime {
    /// The kernel.
    pub kernel: &'static str,
    /// Dispatches.
    pub dispatches: u64,
    /// Time on the device.
    pub ms: f64,
    /// Bytes of weights, keys and values that it read.
    pub bytes: u64,
    /// The same by time.
    pub gb_per_s: f64,
}

impl KernelTime {
    pub(crate) fn new(kernel: &'static str, dispatches: u64, ms: f64, bytes: u64) -> Self {
        Self {
            kernel,
            dispatches,
            ms,
            bytes,
            gb_per_s: if ms > 0.0 {
                bytes as f64 / ms / 1e6
            } else {
                0.0
            },
        }
    }

    /// Adds what the same kernel has cost elsewhere.
    pub(crate) fn add(&mut self, other: &Self) {
        *self = Self::new(
            self.kernel,
            self.dispatches + other.dispatches,
            self.ms + other.ms,
            self.bytes + other.bytes,
        );
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct ShapeOptions {
    /// Types of the weights.
    pub types: Vec<BlockType>,
    /// Rows of activations at a time.
    pub rows: Vec<usize>,
    /// Runs, of which medians are reported.
    pub runs: usize,
    /// Sizes: `7B`, `13B`, `70B`.
    pub models: Vec<String>,
}

/// One product.
#[derive(Clone, Debug, Serialize)]
pub struct ShapeTime {
    /// Llama-2's size.
    pub model: &'static str,
    /// Its matrix.
    pub matrix: &'static str,
    /// Rows of weights.
    pub outputs: usize,
    /// Weights in each.
    pub inputs: usize,
    /// Their type.
    pub block_type: &'static str,
    /// Rows of activations.
    pub rows: usize,
    /// Which variant of the kernel: `plain`, `subgroups`, `int8`, `f16` or `cooperative`. What an adapter cannot
    /// do is not there, nor a variant that is another one at this number of rows.
    pub variant: &'static str,
    /// Whether it is the one that models run with here.
    pub chosen: bool,
    /// Median time of a product.
    pub ms: f64,
    /// Bytes of weights by time.
    pub gb_per_s: f64,
    /// The same by the bandwidth of a copy.
    pub share_of_copy: f64,
    /// Multiplications and additions by time.
    pub tflop_per_s: f64,
}

/// All products of a run.
#[derive(Clone, Debug, Serialize)]
pub struct ShapeReport {
    /// The adapter.
    pub adapter: String,
    /// Its driver.
    pub driver: String,
    /// Bytes that a copy reads and writes in a second.
    pub copy_gb_per_s: f64,
    /// Runs, of which times are medians.
    pub runs: usize,
    /// Which variants models run with.
    pub variants: Vec<String>,
    /// The products.
    pub products: Vec<ShapeTime>,
}
