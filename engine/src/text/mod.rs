//! Tokenizer, chat template, sampler.
//!
//! [`Tokenizer`] is made from a model file's metadata and does what llama.cpp does with the same
//! file, id for id. [`ChatTemplate`] turns messages into ids, [`StreamDecoder`] turns ids back into
//! text one at a time, and [`Sampler`] picks the next id from logits.

mod bpe;
mod chat;
mod leash;
mod namespaces;
mod pretok;
mod sample;
mod shield;
mod special;
mod spm;
mod stream;
mod tokenizer;
mod vocab;

#[cfg(test)]
mod tests;

pub use chat::{CHATML, ChatTemplate, Message};
pub use pretok::PreTokenizer;
pub use sample::{Sampler, SamplingParams, argmax, top_logprobs};
pub use stream::StreamDecoder;
pub use tokenizer::Tokenizer;
pub use vocab::{Attr, Model, Vocab};

/// What can be wrong with a model file's text side.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A key that a tokenizer cannot do without.
    #[error("the model file has no `{key}`: convert the model again with its tokenizer")]
    Missing {
        /// The metadata key.
        key: &'static str,
    },
    /// A key whose value has another type than GGUF defines for it.
    #[error(
        "`{key}` is {found}, not {wanted}: the file is damaged or was made by a broken converter"
    )]
    WrongType {
        /// The metadata key.
        key: &'static str,
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
    /// An array that must have one entry per token has fewer.
    #[error("`{key}` has {found} entries for {tokens} tokens: the file is damaged")]
    WrongLength {
        /// The metadata key.
        key: &'static str,
        /// Number of entries.
        found: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A tokenizer model that this program does not know.
    #[error(
        "unknown tokenizer `{0}` in `tokenizer.ggml.model`: known are `llama` (SentencePiece) and `gpt2` (byte-level BPE)"
    )]
    UnknownModel(String),
    /// A pre-tokenizer that this program does not know; guessing one would give plausible wrong ids.
    #[error("unknown pre-tokenizer `{0}` in `tokenizer.ggml.pre`: known are {known}", known = PreTokenizer::NAMES.join(", "))]
    UnknownPreTokenizer(String),
    /// Two ids with one text.
    #[error("tokens {first} and {second} have the same text {text:?}: the vocabulary is damaged")]
    DuplicateToken {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// Their text.
        text: String,
    },
    /// A vocabulary that breaks a rule of its kind.
    #[error("the vocabulary cannot be used: {0}")]
    BadVocabulary(String),
    /// The chat template failed, or said that the messages do not suit it.
    #[error("chat template: {0}")]
    Template(String),
}
