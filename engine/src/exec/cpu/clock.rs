//! Where the time of a pass goes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A part of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// RMS norms.
    Norm,
    /// `attn_q`, `attn_k` and `attn_v`.
    Qkv,
    /// Rotating queries and keys, and writing keys and values.
    Rope,
    /// Attention.
    Attention,
    /// `attn_output`, and its sum with the row.
    AttnOutput,
    /// `ffn_gate` and `ffn_up`.
    GateUp,
    /// The gate's function.
    Swiglu,
    /// `ffn_down`, and its sum with the row.
    Down,
    /// The head.
    Head,
}

impl Phase {
    /// All, in the order of a pass.
    pub const ALL: [Self; 9] = [
        Self::Norm,
        Self::Qkv,
        Self::Rope,
        Self::Attention,
        Self::AttnOutput,
        Self::GateUp,
        Self::Swiglu,
        Self::Down,
        Self::Head,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::Qkv => "qkv",
            Self::Rope => "rope",
            Self::Attention => "attention",
            Self::AttnOutput => "attn_output",
            Self::GateUp => "gate_up",
            Self::Swiglu => "swiglu",
            Self::Down => "down",
            Self::Head => "head",
        }
    }
}

/// Sums up the time of phases while it is switched on.
#[derive(Debug, Default)]
pub(super) struct Clock {
    on: AtomicBool,
    ns: [AtomicU64; Phase::ALL.len()],
}

impl Clock {
    /// Starts from zero.
    pub(super) fn start(&self) {
        for ns in &self.ns {
            ns.store(0, Ordering::Relaxed);
        }
        self.on.store(true, Ordering::Relaxed);
    }

    /// Stops; milliseconds of each phase, in the order of [`Phase::ALL`].
    pub(super) fn stop(&self) -> Vec<(Phase, f64)> {
        self.on.store(false, Ordering::Relaxed);
        let ms = |p: Phase| self.ns[p as usize].load(Ordering::Relaxed) as f64 / 1e6;
        Phase::ALL.into_iter().map(|p| (p, ms(p))).collect()
    }

    /// A lap that begins now; it costs nothing while the clock is off.
    pub(super) fn lap(&self) -> Lap<'_> {
        Lap {
            clock: self,
            since: self.on.load(Ordering::Relaxed).then(Instant::now),
        }
    }
}

/// Time since the last mark.
pub(super) struct Lap<'a> {
    clock: &'a Clock,
    since: Option<Instant>,
}

impl Lap<'_> {
    /// The time since the last mark was `phase`'s.
    pub(super) fn mark(&mut self, phase: Phase) {
        if let Some(since) = &mut self.since {
            let now = Instant::now();
            let ns = now.duration_since(*since).as_nanos() as u64;
            self.clock.ns[phase as usize].fetch_add(ns, Ordering::Relaxed);
            *since = now;
        }
    }
}
