//! The one order of every sum, but for attention (`kv_floats`).
//!
//! A sum along K runs in eight virtual lanes: element `k` belongs to lane `k mod 8`, products are
//! accumulated with fused multiply-add in ascending `k`, and the lanes are folded in one fixed
//! tree. Whoever follows this (scalar code, AVX2, later NEON and AVX-512) gets the same bits.
//!
//! Weights come in groups of `G` (16 or 32) quants with one scale `s` and maybe one minimum `m`:
//!
//! ```text
//! t   = q[0..8]·x[0..8], then fused: t = q[8..16]·x[8..16] + t, …
//! acc = s·t + acc                       (fused)
//! acc = m·Σx + acc                      (fused; Σx is the lane-wise sum of x over the group)
//! ```
//!
//! Quants are small integers (or table values) and exact in f32; plain floats are a group of 32
//! with scale 1.

/// Lanes of a sum.
pub(crate) const LANES: usize = 8;

/// Values in eight lanes.
pub(crate) type Lanes = [f32; LANES];

/// Folds eight lanes: halves first, as a 256-bit register splits.
pub(crate) fn fold(a: &Lanes) -> f32 {
    let b = [a[0] + a[4], a[1] + a[5], a[2] + a[6], a[3] + a[7]];
    (b[0] + b[2]) + (b[1] + b[3])
}

/// Constants of `exp`, shared by all instruction sets.
pub(crate) mod exp {
    /// Below this the result is 0.
    pub(crate) const LO: f32 = -87.0;
    /// Above this the argument is clamped.
    pub(crate) const HI: f32 = 88.0;
    /// High part of ln 2: few bits, so that `n · LN2_HI` is exact.
    pub(crate) const LN2_HI: f32 = 0.693_359_4;
    /// The rest of ln 2.
    pub(crate) const LN2_LO: f32 = -2.121_944_4e-4;
    /// Minimax polynomial of (eʳ − 1 − r) / r² on ±ln 2 / 2, highest power first (the figures of
    /// the Cephes library's `expf`).
    pub(crate) const POLY: [f32; 6] = [
        1.987_569_1e-4,
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ];
}
