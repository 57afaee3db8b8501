//! Perplexity, KL, speed.
