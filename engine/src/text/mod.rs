//! Tokenizer, chat template, sampler.
