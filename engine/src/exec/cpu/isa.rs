//! Choosing an instruction set, once, at start.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use formats::blocks::BlockType;

use super::integer::{self, CodeBlock, Codes, Matrix};
use super::kv_floats::{self, Kept, Queries, Seen};
use super::matmul::{Acts, Out};
use super::scalar;
use crate::cache::KvShape;

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// An instruction set for the kernels. All give the same bits.
///
/// Only [`available`](Self::available) makes one, so a value is proof
/// that the processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    /// With FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// F, BW, DQ, VL and VNNI, beside all that `Avx2` says.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// What every aarch64 processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// With `sdot` and `smmla`.
    #[cfg(target_arch = "aarch64")]
    NeonMat,
}

impl Isa {
    /// Plain Rust: slow, everywhere, and the definition of right.
    pub const SCALAR: Self = Self(Kind::Scalar);

    /// The best this processor has.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::SCALAR)
    }

    /// Every set this processor can run, the best last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            all.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Self(Kind::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Self(Kind::Neon));
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                all.push(Self(Kind::NeonDot));
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    all.push(Self(Kind::NeonMat));
                }
            }
        }
        all
    }

    /// Codes of one row of activations: `out(b, block)` receives block `b`.
    pub(super) fn encode(self, x: &[f32], out: &mut dyn FnMut(usize, CodeBlock)) {
        match self.0 {
            Kind::Scalar => integer::encode(x, out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::encode(x, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::encode(x, out) },
            // Compiled with NEON already, as all is there.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => integer::encode(x, out),
        }
    }

    /// As many weight rows as the vectors of [`products`](Self::products) have lanes, the rows of a tile;
    /// `None` where there are no vectors.
    pub(super) fn lanes(self) -> Option<usize> {
        match self.0 {
            Kind::Scalar => None,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Some(8),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Some(16),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => Some(8),
        }
    }

    /// Products in whole numbers; the type of `w` is one that [`integer::covers`], and if it lies in tiles, they
    /// are of [`lanes`](Self::lanes) and `rows` begins with one.
    pub(super) fn products(self, w: Matrix<'_>, rows: Range<usize>, x: &Codes, out: Out) {
        match self.0 {
            Kind::Scalar => scalar::products(w, rows, x, &mut |r, i, v| {
                // SAFETY: `matmul` gives each task its own range of columns.
                unsafe { out.set(r, i, v) }
            }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected; `matmul` gives each task its own range of
            // columns and has checked the sizes.
            Kind::Avx2 => unsafe { avx2::products(w, rows, x, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::products(w, rows, x, out) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon => unsafe { neon::products(w, rows, x, out) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::NeonDot => unsafe { neon::products_dot(w, rows, x, out) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::NeonMat => unsafe { neon::products_mat(w, rows, x, out) },
        }
    }

    pub(crate) fn matmul(
        self,
        ty: BlockType,
        weights: &[u8],
        row_bytes: usize,
        rows: Range<usize>,
        x: &Acts<'_>,
        out: Out,
    ) {
        match self.0 {
            Kind::Scalar => scalar::matmul(ty, weights, row_bytes, rows, x, &mut |r, i, v| {
                // SAFETY: `matmul` gives each task its own range of columns.
                unsafe { out.set(r, i, v) }
            }),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 | Kind::Avx512 => {
                let registers = if self.0 == Kind::Avx2 {
                    avx2::Registers::Sixteen
                } else {
                    avx2::Registers::ThirtyTwo
                };
                // SAFETY: `available` is the only maker of these and has seen the features; `matmul`
                // gives each task its own range of columns and has checked the sizes.
                unsafe { avx2::matmul(registers, ty, weights, row_bytes, rows, x, out) }
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe {
                neon::matmul(ty, weights, row_bytes, rows, x, out);
            },
        }
    }

    /// Σ x².
    pub(crate) fn sum_squares(self, x: &[f32]) -> f32 {
        match self.0 {
            Kind::Scalar => scalar::sum_squares(x),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 | Kind::Avx512 => unsafe { avx2::sum_squares(x) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe { neon::sum_squares(x) },
        }
    }

    /// Attention scores in floats: see [`kv_floats::scores`]. What is at `next` will be read next: it may
    /// be any address.
    pub(super) fn float_scores(
        self,
        q: &Queries<'_>,
        keys: Kept<'_>,
        seen: Seen,
        scale: f32,
        next: *const u8,
        scores: &mut [f32],
    ) {
        match self.0 {
            Kind::Scalar => kv_floats::plain_scores(q, keys, seen, scale, scores),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::float_scores(q, keys, seen, scale, next, scores) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::float_scores(q, keys, seen, scale, next, scores) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe {
                neon::float_scores(q, keys, seen, scale, next, scores);
            },
        }
    }

    /// Weighted sums in floats, added to what is there: see [`kv_floats::add_sums`]; `shape` is of as many
    /// queries and the dimensions, `next` as above.
    pub(super) fn float_sums(
        self,
        weights: &[f32],
        values: Kept<'_>,
        shape: (usize, usize),
        seen: Seen,
        next: *const u8,
        sums: &mut [f32],
    ) {
        match self.0 {
            Kind::Scalar => kv_floats::add_plain_sums(weights, values, shape, seen, sums),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::float_sums(weights, values, shape, seen, next, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe {
                avx512::float_sums(weights, values, shape, seen, next, sums);
            },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe {
                neon::float_sums(weights, values, shape, seen, next, sums);
            },
        }
    }

    /// Keys in f16 to floats: see [`kv_floats::key_tile`].
    pub(super) fn key_tile(self, keys: &[u8], n: usize, dim: usize, tile: &mut [f32]) {
        match self.0 {
            Kind::Scalar => kv_floats::plain_key_tile(keys, n, dim, tile),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::key_tile(keys, n, dim, tile) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::key_tile(keys, n, dim, tile) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe {
                neon::key_tile(keys, n, dim, tile);
            },
        }
    }

    /// Scores over keys in q8_0 or q4_0, in whole numbers: `scores[r·SPAN + t]` is query `r` times
    /// key `from + t`. `from` begins a span; up to the end of the last page more may be written.
    /// At `next` are the keys of the span that comes next: it may be any address.
    #[allow(clippy::too_many_arguments)] // a kernel's
    pub(super) fn kv_scores(
        self,
        shape: KvShape,
        keys: &[u8],
        from: usize,
        n: usize,
        q: &[CodeBlock],
        next: *const u8,
        scores: &mut [f32],
    ) {
        match self.0 {
            Kind::Scalar => scalar::kv_scores(shape, keys, from, n, q, scores),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::kv_scores(shape, keys, from, n, q, next, scores) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::kv_scores(shape, keys, from, n, q, next, scores) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon => unsafe { neon::kv_scores(shape, keys, from, n, q, next, scores) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::NeonDot | Kind::NeonMat => unsafe {
                neon::kv_scores_dot(shape, keys, from, n, q, next, scores);
            },
        }
    }

    /// Asks memory for the `i`th of `n` parts of what comes between [`kv_scores`](Self::kv_scores) and
    /// [`kv_sums`](Self::kv_sums), of `bytes` of keys at `next`, which may be any address.
    pub(super) fn ask(self, next: *const u8, bytes: usize, i: usize, n: usize) {
        let [from, to] = [integer::WITH_SCORES, integer::UNTIL_SOFTENED].map(|n| bytes * n / 64);
        let line = |i: usize| (from + (to - from) * i / n.max(1)).next_multiple_of(64);
        for line in (line(i)..line(i + 1)).step_by(64) {
            let at = next.wrapping_add(line);
            match self.0 {
                Kind::Scalar => {}
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the features were detected; a hint changes nothing and faults nowhere.
                Kind::Avx2 | Kind::Avx512 => unsafe { avx2::prefetch(at) },
                #[cfg(target_arch = "aarch64")]
                Kind::Neon | Kind::NeonDot | Kind::NeonMat => neon::prefetch::<true>(at),
            }
        }
    }

    /// Scores of [`kv_scores`](Self::kv_scores) to weights: see [`integer::soften`].
    pub(super) fn soften(self, scores: &mut [f32], n: usize) -> [f32; 2] {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::soften(scores, n) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::soften(scores, n) },
            Kind::Scalar => integer::soften(scores, n),
            // Compiled with NEON already, as all is there.
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => integer::soften(scores, n),
        }
    }

    /// Weighted sums of values in q8_0 or q4_0, in whole numbers: `sums[r·D + d]` over the first
    /// `seen(r)` of `n` positions from `from` on, which begins a span, with `weights[r·SPAN + t]`. `next` are
    /// the keys and values that will be read next, any addresses.
    #[allow(clippy::too_many_arguments)] // a kernel's
    pub(super) fn kv_sums(
        self,
        shape: KvShape,
        values: &[u8],
        from: usize,
        n: usize,
        seen: &dyn Fn(usize) -> usize,
        weights: &[f32],
        next: [*const u8; 2],
        sums: &mut [f32],
    ) {
        match self.0 {
            Kind::Scalar => scalar::kv_sums(shape, values, from, seen, weights, sums),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe {
                avx2::kv_sums(shape, values, from, n, seen, weights, next, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe {
                avx512::kv_sums(shape, values, from, n, seen, weights, next, sums);
            },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe {
                neon::kv_sums(shape, values, from, n, seen, weights, next, sums);
            },
        }
    }

    /// Joins a span to those before it: see [`scalar::join`].
    pub(crate) fn join(self, so_far: &mut [f32], out: &mut [f32], weights: [f32; 2], sums: &[f32]) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 | Kind::Avx512 => unsafe { avx2::join(so_far, out, weights, sums) },
            Kind::Scalar => scalar::join(so_far, out, weights, sums),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => scalar::join(so_far, out, weights, sums),
        }
    }

    /// `s[t] = e^(s[t] − max s)`; returns the maximum and the sum.
    pub(crate) fn softmax(self, s: &mut [f32]) -> (f32, f32) {
        match self.0 {
            Kind::Scalar => scalar::softmax(s),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::softmax(s) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::softmax(s) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe { neon::softmax(s) },
        }
    }

    /// `gate[i] = silu(gate[i]) · up[i]`.
    pub(crate) fn swiglu(self, gate: &mut [f32], up: &[f32]) {
        match self.0 {
            Kind::Scalar => scalar::swiglu(gate, up),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the features were detected.
            Kind::Avx2 => unsafe { avx2::swiglu(gate, up) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { avx512::swiglu(gate, up) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon | Kind::NeonDot | Kind::NeonMat => unsafe { neon::swiglu(gate, up) },
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonMat => "neon-i8mm",
        })
    }
}

/// An instruction set this processor lacks, or no name of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernels `{name}` cannot run here; this processor has: {available}")]
pub struct IsaError {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub available: String,
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s == "auto" {
            return Ok(Self::detect());
        }
        let all = Self::available();
        all.iter()
            .copied()
            .find(|i| i.to_string() == s)
            .ok_or_else(|| IsaError {
                name: s.to_owned(),
                available: all
                    .iter()
                    .map(Self::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}
