//! What a process must hold to run a range of layers: the equations that `splitconv plan` plans
//! with and `splitrun --memory-limit` counts with.
//!
//! Resident bytes = the file (every page of weights is touched by one token) + KV cache + buffers
//! of activations + tables made from the metadata + the program itself.

use std::ops::Range;

use super::HParams;

/// Scores that a part of the processor's attention keeps where a prompt is long enough
/// (`exec/cpu/attention.rs` of the engine), and the positions of a tile of keys or values.
const TILE_SCORES: u64 = 1 << 16;
const TILE: u64 = 64;
/// Rows that share a tile, at most.
const TILE_ROWS: u64 = 32;
/// Rows from which attention goes by tiles; fewer go by strips, of which each thread has six.
const FEW: u64 = 4;
const STRIPS: u64 = 6;

/// Rows of a prompt that go through the layers at once where nobody has said otherwise.
pub const CHUNK_ROWS: u64 = 64;

/// Resident bytes of a `splitrun` without a model: code, stacks, allocator, gRPC. Measured on
/// Linux; a profile has its own host's figure.
pub const RUNTIME_BYTES: u64 = 11 << 20;

/// Bytes of the tables that a process with a tokenizer makes for each token of the vocabulary:
/// texts, ids, merges. Measured on vocabularies of 49 152 and 151 936 tokens.
pub const TOKENIZER_BYTES_PER_TOKEN: u64 = 270;

/// What a tokenizer takes whatever its vocabulary: patterns compiled, words it has seen, memory
/// that the allocator keeps after the tables are made. Measured likewise.
pub const TOKENIZER_BYTES: u64 = 9 << 20;

/// What runs where, and for how long a context.
#[derive(Clone, Debug)]
pub struct Load<'a> {
    /// The whole model's shape.
    pub hparams: &'a HParams,
    /// The layers held; the embedding is with the first, the head with the last.
    pub layers: Range<usize>,
    /// Size of the file, or files.
    pub file_bytes: u64,
    /// Bytes of its metadata, which are copied out of the map.
    pub metadata_bytes: u64,
    /// Whether this process turns text to tokens.
    pub tokenizer: bool,
    /// Positions of a context.
    pub n_ctx: u64,
    /// Sequences at a time.
    pub sessions: u64,
    /// Rows that go through the layers at once, at most.
    pub rows: u64,
    /// Threads that compute.
    pub threads: u64,
    /// The program itself; [`RUNTIME_BYTES`] where nothing better is known.
    pub runtime_bytes: u64,
}

/// Resident bytes, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The file.
    pub weights: u64,
    /// Keys and values, of all sessions.
    pub kv: u64,
    /// Buffers of a pass, of all sessions.
    pub activations: u64,
    /// Metadata and tokenizer.
    pub tables: u64,
    /// The program itself.
    pub runtime: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        [self.kv, self.activations, self.tables, self.runtime]
            .into_iter()
            .fold(self.weights, u64::saturating_add)
    }
}

impl Load<'_> {
    /// Counts.
    pub fn memory(&self) -> Memory {
        let buffers = (self.buffer_bytes()).saturating_add(self.scores().bytes(self.n_ctx));
        Memory {
            weights: self.file_bytes,
            kv: times(&[self.kv_bytes_per_position(), self.n_ctx, self.sessions]),
            activations: times(&[buffers, self.sessions]),
            tables: self.table_bytes(),
            runtime: self.runtime_bytes,
        }
    }

    /// Bytes of one session for each position of its context: keys and values in f16
    /// (2 · 2 · layers · H_kv · D).
    pub fn kv_bytes_per_position(&self) -> u64 {
        self.hparams.kv_bytes(&self.layers, 1) as u64
    }

    /// What one session's attention keeps beside keys and values.
    pub fn scores(&self) -> Scores {
        let hp = self.hparams;
        Scores {
            rows: self.rows,
            threads: self.threads.max(1),
            n_head: hp.n_head as u64,
            n_head_kv: (hp.n_head_kv as u64).max(1),
            head_dim: hp.head_dim as u64,
        }
    }

    /// Bytes of one session's buffers, whatever its context: the rows of a pass as they go
    /// through a layer, the boundary rows on both sides of the codec, and logits.
    pub fn buffer_bytes(&self) -> u64 {
        let hp = self.hparams;
        let wide = |n: usize| n.next_multiple_of(32) as u64;
        // The inputs of products carry sums of their groups of 16 or 32 beside them: eight lanes.
        let summed = |n: usize| wide(n) + wide(n) / 4 + wide(n) / 2;
        let layer = summed(hp.n_embd)
            + (hp.q_width() + 2 * hp.kv_width()) as u64
            + summed(hp.q_width())
            + hp.n_embd as u64
            + summed(hp.n_ff)
            + wide(hp.n_ff)
            + hp.rope.dims as u64;
        let rows = 2 * hp.n_embd as u64;
        let pass = times(&[4, self.rows, layer + rows]);
        let head = if self.layers.end == hp.n_layer {
            // Logits, and candidates (id and logit) while a token is chosen.
            times(&[12, hp.n_vocab as u64])
        } else {
            0
        };
        pass.saturating_add(head)
    }

    fn table_bytes(&self) -> u64 {
        let tokenizer = if self.tokenizer {
            times(&[TOKENIZER_BYTES_PER_TOKEN, self.hparams.n_vocab as u64])
                .saturating_add(TOKENIZER_BYTES)
        } else {
            0
        };
        // Norms are decoded to f32.
        let norms = times(&[
            4,
            2 * self.layers.len() as u64 + 1,
            self.hparams.n_embd as u64,
        ]);
        self.metadata_bytes
            .saturating_add(tokenizer)
            .saturating_add(norms)
    }

    /// The longest context, up to `most`, whose [`Memory`] is within `limit` bytes; `None` when
    /// not even one position is.
    pub fn longest_context(&self, limit: u64, most: u64) -> Option<u64> {
        let fits = |n_ctx| {
            let load = Self {
                n_ctx,
                ..self.clone()
            };
            load.memory().total() <= limit
        };
        if most > 0 && fits(most) {
            return Some(most);
        }
        // Memory never falls as the context grows.
        let (mut good, mut bad) = (0, most);
        while bad.saturating_sub(good) > 1 {
            let middle = u64::midpoint(good, bad);
            if fits(middle) {
                good = middle;
            } else {
                bad = middle;
            }
        }
        (good > 0).then_some(good)
    }
}

/// The buffer of attention of one session on the processor: scores, and a tile of keys or values
/// as floats for each thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scores {
    /// Rows that go through the layers at once, at most.
    pub rows: u64,
    /// Threads that compute.
    pub threads: u64,
    /// Heads of queries.
    pub n_head: u64,
    /// Heads of keys and values, above 0.
    pub n_head_kv: u64,
    /// Values of a head.
    pub head_dim: u64,
}

impl Scores {
    /// Bytes with a context of `n_ctx` positions; they never fall as it grows.
    ///
    /// One to three rows: a strip of `n_ctx` scores for each of six parts a thread. More: for each
    /// thread a tile of 64 positions, and the scores of the rows that share it: `group · n_ctx`
    /// for each of up to 32 rows, 65 536 at most, but those of a row.
    pub fn bytes(&self, n_ctx: u64) -> u64 {
        let few = self.rows.min(FEW - 1);
        let strips = times(&[STRIPS, self.threads]).min(times(&[few, self.n_head]));
        let strips = times(&[4, strips, n_ctx]);
        if self.rows < FEW || n_ctx < FEW {
            return strips;
        }
        let rows = self.rows.min(n_ctx);
        let items = times(&[rows, self.n_head_kv]);
        let shared = (items.div_ceil(times(&[4, self.threads]).max(1))).clamp(1, TILE_ROWS);
        let row = times(&[self.n_head / self.n_head_kv, n_ctx]);
        let scores = times(&[shared.min(rows), row]).min(TILE_SCORES).max(row);
        let each = scores.saturating_add(times(&[TILE, self.head_dim]));
        times(&[4, self.threads.min(items), each]).max(strips)
    }
}

/// A product that stays at the largest number instead of wrapping.
fn times(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |a, b| a.saturating_mul(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, Rope, RopeStyle};

    fn llama_7b() -> HParams {
        HParams {
            architecture: Architecture::Llama,
            n_layer: 32,
            n_embd: 4096,
            n_head: 32,
            n_head_kv: 32,
            head_dim: 128,
            n_ff: 11008,
            n_vocab: 32000,
            n_ctx_train: 4096,
            rms_eps: 1e-5,
            rope: Rope {
                dims: 128,
                base: 10_000.0,
                linear_scale: 1.0,
                factors: None,
                style: RopeStyle::Interleaved,
            },
            tied: false,
        }
    }

    fn load(hparams: &HParams, n_ctx: u64) -> Load<'_> {
        Load {
            hparams,
            layers: 16..32,
            file_bytes: 1 << 30,
            metadata_bytes: 1000,
            tokenizer: false,
            n_ctx,
            sessions: 1,
            rows: CHUNK_ROWS,
            threads: 2,
            runtime_bytes: RUNTIME_BYTES,
        }
    }

    #[test]
    fn keys_and_values_of_half_a_model() {
        let hp = llama_7b();
        // DESIGN.md: 512 tokens of Llama-2-7B cut in the middle, 128 MiB.
        assert_eq!(load(&hp, 512).memory().kv, 128 << 20);
        let two = Load {
            sessions: 2,
            ..load(&hp, 512)
        };
        assert_eq!(two.memory().kv, 256 << 20);
        assert_eq!(two.memory().weights, 1 << 30);
    }

    #[test]
    fn the_longest_context_just_fits() {
        let hp = llama_7b();
        for sessions in [1, 3] {
            let load = Load {
                sessions,
                ..load(&hp, 0)
            };
            let limit = 2 << 30;
            let n = load.longest_context(limit, u64::MAX).unwrap();
            let with = |n_ctx| {
                Load {
                    n_ctx,
                    ..load.clone()
                }
                .memory()
                .total()
            };
            assert!(with(n) <= limit && with(n + 1) > limit);
            assert_eq!(load.longest_context(limit, 7), Some(7));
        }
        assert_eq!(load(&hp, 0).longest_context(1 << 30, 100), None);
        assert_eq!(load(&hp, 0).longest_context(2 << 30, 0), None);
        let absurd = Load {
            n_ctx: u64::MAX,
            sessions: u64::MAX,
            ..load(&hp, 0)
        };
        assert_eq!(absurd.memory().total(), u64::MAX);
    }

    #[test]
    fn scores_are_those_of_tiles_or_of_strips() {
        let scores = Scores {
            rows: 64,
            threads: 2,
            n_head: 9,
            n_head_kv: 3,
            head_dim: 64,
        };
        // 24 rows share a tile: 64 rows of 3 heads among 8 items.
        assert_eq!(scores.bytes(100), 4 * 2 * (24 * 3 * 100 + 64 * 64));
        assert_eq!(scores.bytes(2048), 4 * 2 * (65536 + 64 * 64));
        // A row alone has more.
        assert_eq!(scores.bytes(1 << 20), 4 * 12 * (1 << 20));
        let many = Scores {
            threads: 16,
            n_head: 64,
            n_head_kv: 1,
            ..scores
        };
        assert_eq!(
            many.bytes(4096),
            (4 * 96 * 4096).max(4 * 16 * (64 * 4096 + 4096))
        );
        assert_eq!(scores.bytes(1), 4 * 12);
        let one = Scores { rows: 1, ..scores };
        assert_eq!(one.bytes(100), 4 * 9 * 100);
        let lens = [0, 1, 3, 4, 5, 63, 64, 100, 1000, 3000, 1 << 16, u64::MAX];
        assert!(lens.is_sorted_by_key(|n| many.bytes(*n)));
        assert!(lens.is_sorted_by_key(|n| scores.bytes(*n)));
    }
}
