//! A text cut into windows of tokens.

use crate::role::RunError;
use crate::text::Tokenizer;

/// Windows of `ctx` tokens of `text`, at most `most` of them, as llama-perplexity cuts them: the
/// text is one sequence, windows do not overlap, and each begins with BOS where the model adds it.
///
/// # Errors
/// When the text is too short for one.
pub(super) fn windows(
    tokenizer: &Tokenizer,
    text: &str,
    ctx: usize,
    most: Option<usize>,
) -> Result<Vec<Vec<u32>>, RunError> {
    if ctx < 4 {
        return Err(RunError::Usage("--ctx must be at least 4".into()));
    }
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let mut ids = tokenizer.encode(text, false);
    if let Some(bos) = bos {
        ids.insert(0, bos);
    }
    let count = (ids.len() / ctx).min(most.unwrap_or(usize::MAX));
    if count == 0 {
        return Err(RunError::Request(format!(
            "the text has {} tokens, fewer than one window of {ctx}; lower --ctx or take a longer text",
            ids.len()
        )));
    }
    let window = |w: usize| {
        let mut window = ids[w * ctx..(w + 1) * ctx].to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window
    };
    Ok((0..count).map(window).collect())
}
