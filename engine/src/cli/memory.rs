//! `--memory-limit`: counted before anything is loaded, with the equations that `splitconv plan`
//! plans with.

use std::ops::Range;
use std::path::Path;

use formats::gguf::{Gguf, GgufSet, metadata_bytes};
use formats::model::{CHUNK_ROWS, HParams, KvType, Load, Memory, RUNTIME_BYTES};
use formats::units::Size;

use super::args::Role;
use crate::role::RunError;

/// Rows that the processor takes through the layers at once, at most.
const MOST_ROWS: u64 = 128;

/// What this process would hold.
pub(super) struct Held<'a> {
    pub(super) role: Role,
    pub(super) path: &'a Path,
    pub(super) hparams: &'a HParams,
    pub(super) layers: Range<usize>,
    /// All models that are mapped, each with an executor, the one with the metadata first.
    pub(super) sets: Vec<&'a GgufSet>,
    pub(super) n_ctx: usize,
    pub(super) kv_type: KvType,
    pub(super) threads: usize,
    /// Rows of a prompt at a time, where this side decides.
    pub(super) chunk: usize,
}

impl Held<'_> {
    fn load(&self, sessions: u64) -> Load<'_> {
        let files = self.sets.iter().flat_map(|s| s.files());
        Load {
            hparams: self.hparams,
            layers: self.layers.clone(),
            file_bytes: files.map(|f| Gguf::file_bytes(f) as u64).sum(),
            metadata_bytes: self
                .sets
                .iter()
                .map(|s| metadata_bytes(s.metadata()) as u64)
                .sum(),
            tokenizer: self.role != Role::Cloud,
            n_ctx: self.n_ctx as u64,
            kv_type: self.kv_type,
            sessions,
            executors: self.sets.len() as u64,
            rows: match self.role {
                Role::Cloud => MOST_ROWS,
                Role::Edge | Role::Both => (self.chunk as u64).clamp(CHUNK_ROWS, MOST_ROWS),
            },
            threads: self.threads as u64,
            runtime_bytes: RUNTIME_BYTES,
        }
    }

    /// Checks that one session fits `limit`; returns how many of at most `most` do.
    ///
    /// # Errors
    /// [`RunError::Request`] with what is needed, and how to find a plan that fits.
    pub(super) fn check(&self, limit: u64, most: u64) -> Result<u64, RunError> {
        let need = self.load(1).memory();
        if need.total() > limit {
            return Err(RunError::Request(self.refusal(limit, &need)));
        }
        let each = self.load(2).memory().total() - need.total();
        let more = (limit - need.total()).checked_div(each).unwrap_or(most);
        Ok(most.min(1 + more).max(1))
    }

    fn refusal(&self, limit: u64, need: &Memory) -> String {
        let shorter = match self.load(1).longest_context(limit, self.n_ctx as u64) {
            Some(n) => format!("-c {n} would fit; "),
            None => String::new(),
        };
        let (flag, side) = match self.role {
            Role::Cloud => ("--cloud-memory", "half"),
            Role::Edge => ("--edge-memory", "half"),
            Role::Both => ("--edge-memory", "model"),
        };
        let mib = |bytes: u64| bytes / (1 << 20);
        let kv_type = match self.kv_type {
            KvType::F16 => String::new(),
            other => format!(" --kv-type {other}"),
        };
        format!(
            "--memory-limit: this {side} needs {} bytes ({}: file {}, keys and values of {} positions {}, activations {}, the rest {}), the limit is {}; {shorter}`splitconv plan MODEL {flag} {}MiB --context {}{kv_type} --uplink 20Mbit/s` finds a cut of the model behind {} that fits",
            need.total(),
            Size(need.total()),
            Size(need.weights),
            self.n_ctx,
            Size(need.kv),
            Size(need.activations),
            Size(need.tables + need.runtime),
            Size(limit),
            mib(limit).max(1),
            self.n_ctx,
            self.path.display(),
        )
    }

    /// Keys and values of one session.
    pub(super) fn kv_bytes(&self) -> usize {
        self.hparams
            .kv_bytes(self.kv_type, &self.layers, self.n_ctx)
    }
}

/// A size as `--memory-limit` takes it.
pub(super) fn size(text: &str) -> Result<u64, String> {
    formats::units::bytes(text).map_err(|e| e.to_string())
}
