//! The tokens that end a generation by what they are called.

/// Texts of tokens that end a generation wherever they stand in a vocabulary, whatever its keys
/// say. The list is llama.cpp's (`llama-vocab.cpp`): a GGUF names three such tokens at most, and
/// models have more.
///
/// The engine stops at them; the converter need not look for a key that says so.
pub const END_TEXTS: [&str; 19] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
];
