//! How fast one host computes with one device: all that a prediction of times needs.
//!
//! The times of a model follow from its shapes:
//!
//! - a product of `n` rows with a matrix of `w` weights: `matrices[type].curve.at(n) · w`;
//! - attention of `n` rows over `p` positions in one layer: `at(n) · p · n_head · head_dim`, the
//!   times at other contexts lying on straight lines between those of the measured ones;
//! - the rest of a layer (norms, rotation, SwiGLU, sums): `layer_fixed_ns + n · (n_embd + n_ff) ·
//!   layer_value_ns`;
//! - the embedding of `n` rows: `n · n_embd · embed_value_ns`;
//! - the head: a product as above, and `n_vocab · sample_value_ns` for the choice of the token;
//! - a codec, per row: `encode_fixed_ns + n_embd · encode_value_ns`, decoding likewise.
//!
//! Every figure is the median time of the kernel in a running model, with all of the device's
//! `threads`, weights not in the caches before.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::curve::Curve;
use super::error::{MeasuredError, MeasuredErrorKind as Kind, amount, bytes, value};
use super::file::{self, Form};
use crate::blocks::BlockType;

/// The newest version of the file.
pub const PROFILE_VERSION: u32 = 1;

const FORM: Form = Form {
    name: "splitconv.profile",
    version: PROFILE_VERSION,
    maker: "`splitrun bench --profile OUT.json`",
};

/// The most entries of each list.
const MAX_ENTRIES: usize = 256;
/// The most characters of a text.
const MAX_TEXT: usize = 4096;
/// The most threads.
const MAX_THREADS: u32 = 1 << 16;

/// A host as [`splitrun bench --profile`](self) has measured it, or as it was derived from
/// published figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// `splitconv.profile`.
    pub format: String,
    /// [`PROFILE_VERSION`].
    pub version: u32,
    /// The machine: processor or board, as a person would name it.
    pub machine: String,
    /// The program that measured: name, version, profile of the build.
    pub build: String,
    /// What computed: `cpu (avx2)`, or the name of the adapter.
    pub device: String,
    /// Threads that computed; 0 on a graphics processor.
    pub threads: u32,
    /// Not measured, but derived from published bandwidth and compute.
    pub derived: bool,
    /// Whether other work disturbed the measurement: processor time or load average of others
    /// were more than a few percent.
    pub loaded: bool,
    /// What else should be known, one line each.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Products, one curve per block type: nanoseconds per weight of the matrix.
    pub matrices: Vec<MatrixTime>,
    /// Attention, one curve per context length, ascending.
    pub attention: Vec<AttentionTime>,
    /// What a layer costs once a pass, beside products and attention, in nanoseconds.
    pub layer_fixed_ns: f64,
    /// What it costs per row and value (of `n_embd + n_ff` values), in nanoseconds.
    pub layer_value_ns: f64,
    /// What a pass costs whatever its layers (waking threads, submitting), in nanoseconds.
    pub pass_fixed_ns: f64,
    /// Looking up the embedding, per value of a row, in nanoseconds.
    pub embed_value_ns: f64,
    /// Choosing a token, per logit, in nanoseconds.
    pub sample_value_ns: f64,
    /// Coding the boundary row, by codec.
    pub codecs: Vec<CodecTime>,
    /// What a message and its answer cost both halves together beyond the wire (gRPC, threads,
    /// sockets, measured over loopback of one machine), in nanoseconds; `null` when it could not
    /// be measured.
    #[serde(default)]
    pub message_ns: Option<f64>,
    /// What the memory delivers to a reader, in 10⁹ bytes per second.
    pub memory_gb_per_s: f64,
    /// How fast a file that is in the system's cache becomes a model that can run, in 10⁹ bytes
    /// per second; on a graphics processor with the upload.
    pub load_gb_per_s: f64,
    /// Resident bytes of the process besides what follows from the model: weights, KV cache,
    /// buffers of activations, metadata and tokenizer ([`crate::model::Load`] counts them).
    pub runtime_bytes: u64,
    /// Memory of the device in bytes, where it is known.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// Products with matrices of one block type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixTime {
    /// GGML's name, as `Q4_K`.
    pub block_type: String,
    /// Nanoseconds per weight of the matrix, by rows.
    pub curve: Curve,
}

/// Attention over contexts of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionTime {
    /// Positions that each row looks at.
    pub positions: u32,
    /// Nanoseconds per position and value of a query row (`n_head · head_dim`), by rows.
    pub curve: Curve,
}

/// Coding of one boundary row with one codec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodecTime {
    /// As `--codec` takes it; `tcq:step=0.4`.
    pub codec: String,
    /// Encoding, whatever the width, in nanoseconds.
    pub encode_fixed_ns: f64,
    /// Encoding, per value, in nanoseconds.
    pub encode_value_ns: f64,
    /// Decoding, whatever the width, in nanoseconds.
    pub decode_fixed_ns: f64,
    /// Decoding, per value, in nanoseconds.
    pub decode_value_ns: f64,
}

impl Profile {
    /// The value of the key `format`.
    pub const FORMAT: &'static str = FORM.name;

    /// Reads and checks a file; memory is bounded by [`super::MAX_BYTES`].
    ///
    /// # Errors
    /// [`MeasuredError`], naming the file and what in it is wrong.
    pub fn open(path: &Path) -> Result<Self, MeasuredError> {
        let profile: Self = file::open(path, &FORM)?;
        profile
            .check()
            .map_err(|kind| MeasuredError::new(path, kind))?;
        Ok(profile)
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        file::text(self)
    }

    /// Checks that every figure can be one: nothing negative, infinite or out of order, known
    /// block types, each once.
    ///
    /// # Errors
    /// What is wrong, by its key.
    pub fn check(&self) -> Result<(), Kind> {
        for (key, text) in [
            ("machine", &self.machine),
            ("build", &self.build),
            ("device", &self.device),
        ] {
            if text.len() > MAX_TEXT {
                return Err(value(key, format!("more than {MAX_TEXT} bytes")));
            }
        }
        let lists = [
            ("matrices", self.matrices.len(), 1),
            ("attention", self.attention.len(), 1),
            ("codecs", self.codecs.len(), 0),
            ("notes", self.notes.len(), 0),
        ];
        for (key, n, least) in lists {
            if !(least..=MAX_ENTRIES).contains(&n) {
                return Err(value(
                    key,
                    format!("{n} entries, expected {least} to {MAX_ENTRIES}"),
                ));
            }
        }
        let mut seen = Vec::new();
        for m in &self.matrices {
            let key = format!(
                "matrices.{}",
                m.block_type.chars().take(20).collect::<String>()
            );
            let ty: BlockType =
                (m.block_type.parse()).map_err(|_| value(&key, "no block type has this name"))?;
            if seen.contains(&ty) {
                return Err(value(&key, "it stands twice"));
            }
            seen.push(ty);
            m.curve.check(&key)?;
        }
        for a in &self.attention {
            a.curve.check(&format!("attention.{}", a.positions))?;
        }
        let ascending = self
            .attention
            .windows(2)
            .all(|p| p[0].positions < p[1].positions);
        if !ascending || self.attention.first().is_some_and(|a| a.positions == 0) {
            return Err(value(
                "attention",
                "expected positions from 1 on, ascending",
            ));
        }
        for c in &self.codecs {
            let key = format!("codecs.{}", c.codec.chars().take(60).collect::<String>());
            for v in [
                c.encode_fixed_ns,
                c.encode_value_ns,
                c.decode_fixed_ns,
                c.decode_value_ns,
            ] {
                amount(&key, v)?;
            }
        }
        for (key, v) in [
            ("layer_fixed_ns", self.layer_fixed_ns),
            ("layer_value_ns", self.layer_value_ns),
            ("pass_fixed_ns", self.pass_fixed_ns),
            ("embed_value_ns", self.embed_value_ns),
            ("sample_value_ns", self.sample_value_ns),
            ("message_ns", self.message_ns.unwrap_or(0.0)),
        ] {
            amount(key, v)?;
        }
        bytes("runtime_bytes", self.runtime_bytes)?;
        bytes("memory_bytes", self.memory_bytes.unwrap_or(0))?;
        if self.threads > MAX_THREADS {
            return Err(value("threads", format!("more than {MAX_THREADS}")));
        }
        for (key, v) in [
            ("memory_gb_per_s", self.memory_gb_per_s),
            ("load_gb_per_s", self.load_gb_per_s),
        ] {
            amount(key, v)?;
            if v == 0.0 {
                return Err(value(key, "nothing is that slow"));
            }
        }
        Ok(())
    }

    /// The curve for products with matrices of type `ty`, in nanoseconds per weight; and whether
    /// it is that type's own. Without one: that of the type of nearest size, by bits per weight.
    pub fn matrix(&self, ty: BlockType) -> Option<(&Curve, bool)> {
        let parsed = |m: &MatrixTime| m.block_type.parse::<BlockType>().ok();
        if let Some(m) = self.matrices.iter().find(|m| parsed(m) == Some(ty)) {
            return Some((&m.curve, true));
        }
        let distance = |m: &MatrixTime| {
            parsed(m).map_or(f64::INFINITY, |t| {
                (t.bits_per_weight() - ty.bits_per_weight()).abs()
            })
        };
        let nearest = self
            .matrices
            .iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        Some((&nearest.curve, false))
    }

    /// Time of attention of `rows` rows over `positions` positions each, in nanoseconds, per value
    /// of a query row: a straight line through the measured contexts, which never falls.
    pub fn attention_ns(&self, rows: f64, positions: f64) -> f64 {
        let (mut from, mut last) = ((0.0, 0.0), 0.0);
        for a in &self.attention {
            let p = f64::from(a.positions);
            last = a.curve.at(rows);
            // Noise must not make a longer context cheaper.
            let to = (p, (last * p).max(from.1));
            if positions <= p {
                return from.1 + (to.1 - from.1) * (positions - from.0) / (to.0 - from.0);
            }
            from = to;
        }
        from.1 + last * (positions - from.0)
    }

    /// The times of `codec`: its own, else those of the same kind (`tcq`, `ts-tabq`, …) at
    /// another setting.
    pub fn codec(&self, codec: &str) -> Option<&CodecTime> {
        let kind = |name: &str| name.split(':').next().unwrap_or("").to_owned();
        let exact = self.codecs.iter().find(|c| c.codec == codec);
        exact.or_else(|| self.codecs.iter().find(|c| kind(&c.codec) == kind(codec)))
    }
}
