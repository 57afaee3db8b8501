//! What a process must hold to run a range of layers: the equations that `splitconv plan` plans
//! with and `splitrun --memory-limit` counts with.
//!
//! Resident bytes = the file (every page of weights is touched by one token) + KV cache + buffers
//! of activations + tables made from the metadata + the program itself.

use std::ops::Range;

use super::{HParams, KV_BLOCK, KV_PAGE, KvType};

/// What the processor's attention goes by (`exec/cpu/attention.rs` of the engine): positions of a
/// span, and of a tile of keys or values as floats.
const SPAN: u64 = 256;
const TILE: u64 = 64;
/// Rows from which a thread takes rows and all their spans; of fewer it takes a span.
const FEW: u64 = 4;
/// Rows that a thread then takes, and rows times heads, at most.
const MOST_SHARED: u64 = 32;
const TOGETHER: u64 = 96;

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
    /// In what form keys and values are kept.
    pub kv_type: KvType,
    /// Sequences at a time.
    pub sessions: u64,
    /// Executors that share the layers, each with buffers of its own: two where both halves are in one
    /// process.
    pub executors: u64,
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
        let scores = times(&[self.scores().bytes(self.n_ctx), self.executors]);
        let buffers = self.buffer_bytes().saturating_add(scores);
        let taken = usize::try_from(self.n_ctx).map_or(u64::MAX, |n| KvType::positions(n) as u64);
        Memory {
            weights: self.file_bytes,
            kv: times(&[self.kv_bytes_per_position(), taken, self.sessions]),
            activations: times(&[buffers, self.sessions]),
            tables: self.table_bytes(),
            runtime: self.runtime_bytes,
        }
    }

    /// Bytes of one session for each position of its context: keys and values
    /// (2 · layers · bytes of H_kv · D of them).
    pub fn kv_bytes_per_position(&self) -> u64 {
        let page = (self.hparams).kv_bytes(self.kv_type, &self.layers, KV_PAGE) as u64;
        page / KV_PAGE as u64
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
        // Queries as codes: a line of the cache for each block of 32.
        let codes = match self.kv_type {
            KvType::F16 => 0,
            KvType::Q8_0 | KvType::Q4_0 => 16 * hp.q_width().div_ceil(KV_BLOCK) as u64,
        };
        let pass = times(&[4, self.rows, layer + rows + codes, self.executors]);
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

/// The buffers of attention of one session on the processor.
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
    /// For each thread a tile of 64 positions as floats, and of each row and head that it works on
    /// the scores of a span of 256 positions, its sums and two numbers; where there are many rows,
    /// two more. Of one to three rows, what each span came to.
    pub fn bytes(&self, n_ctx: u64) -> u64 {
        let group = self.n_head / self.n_head_kv;
        let sums = self.head_dim + 2;
        let rows = self.rows.min(n_ctx);
        let few = rows.min(FEW - 1);
        let spans = times(&[4, n_ctx.div_ceil(SPAN), self.n_head_kv, few, group, sums]);
        if rows == 0 {
            return 0;
        }
        let mut pairs = times(&[few, group, SPAN + sums]);
        if rows >= FEW {
            let items = times(&[rows, self.n_head_kv]);
            let even = items.div_ceil(times(&[4, self.threads]).max(1));
            let shared = (TOGETHER / group.max(1)).min(even).clamp(1, MOST_SHARED);
            pairs = pairs.max(times(&[shared.min(rows), group, SPAN + sums + 2]));
        }
        let each = pairs.saturating_add(times(&[TILE, self.head_dim]));
        times(&[4, self.threads, each]).saturating_add(spans)
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
            kv_type: KvType::F16,
            sessions: 1,
            executors: 1,
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
        // 34 and 18 bytes for 32 values of two bytes, in whole pages of 16 positions.
        for (kv_type, block) in [(KvType::Q8_0, 34), (KvType::Q4_0, 18)] {
            let thin = Load {
                kv_type,
                ..load(&hp, 497)
            };
            assert_eq!(thin.memory().kv, (128 << 20) / 64 * block);
        }
        assert_eq!(two.memory().weights, 1 << 30);
    }

    #[test]
    fn the_longest_context_just_fits() {
        let hp = llama_7b();
        for (sessions, kv_type) in [
            (1, KvType::F16),
            (3, KvType::F16),
            (1, KvType::Q8_0),
            (3, KvType::Q4_0),
        ] {
            let load = Load {
                kv_type,
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

    /// Both halves in one process: buffers of a pass and of attention twice, logits and the rest once.
    #[test]
    fn two_executors_have_two_sets_of_buffers() {
        let hp = llama_7b();
        let one = load(&hp, 512);
        let both = Load {
            executors: 2,
            ..one.clone()
        };
        let logits = 12 * hp.n_vocab as u64;
        let (one, both) = (one.memory(), both.memory());
        assert_eq!(both.activations, 2 * one.activations - logits);
        assert_eq!(
            both.total() - both.activations,
            one.total() - one.activations
        );
    }

    #[test]
    fn scores_are_those_of_spans() {
        let scores = Scores {
            rows: 64,
            threads: 2,
            n_head: 9,
            n_head_kv: 3,
            head_dim: 64,
        };
        // 24 rows of three heads: 64 rows of 3 key heads among 8 items. Three rows have a span.
        let thread = 24 * 3 * (256 + 64 + 2 + 2) + 64 * 64;
        let span = 3 * 9 * (64 + 2);
        assert_eq!(scores.bytes(100), 4 * (2 * thread + span));
        assert_eq!(scores.bytes(2049), 4 * (2 * thread + 9 * span));
        let one = Scores { rows: 1, ..scores };
        let thread = 3 * (256 + 64 + 2) + 64 * 64;
        assert_eq!(one.bytes(100), 4 * (2 * thread + 9 * 66));
        let many = Scores {
            threads: 16,
            n_head: 64,
            n_head_kv: 1,
            ..scores
        };
        let lens = [0, 1, 3, 4, 5, 63, 64, 100, 1000, 3000, 1 << 16, u64::MAX];
        assert!(lens.is_sorted_by_key(|n| many.bytes(*n)));
        assert!(lens.is_sorted_by_key(|n| scores.bytes(*n)));
    }
}
