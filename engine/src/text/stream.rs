//! Ids to text, one at a time.

use super::Tokenizer;

/// Turns ids into text as they come, never half a character.
///
/// A character can span several tokens; its bytes wait here until it is whole. Bytes that can no
/// longer become a character come out as U+FFFD at once, as [`String::from_utf8_lossy`] has it, so
/// the parts joined are the text of all ids.
#[derive(Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes of an unfinished character: at most 3.
    waiting: Vec<u8>,
    ready: String,
    strip: bool,
}

impl<'t> StreamDecoder<'t> {
    /// For text that continues a prompt: a leading space is part of it.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self {
            tokenizer,
            waiting: Vec::new(),
            ready: String::new(),
            strip: false,
        }
    }

    /// For a whole sequence: the space that SentencePiece puts before a text is dropped, as
    /// [`Tokenizer::decode`] does.
    pub fn whole(tokenizer: &'t Tokenizer) -> Self {
        Self {
            strip: tokenizer.vocab().add_space_prefix(),
            ..Self::new(tokenizer)
        }
    }

    /// The text that `id` makes printable; empty for control tokens and unfinished characters.
    pub fn push(&mut self, id: u32) -> &str {
        let mut piece = self.tokenizer.printed(id);
        if self.strip && !piece.is_empty() {
            self.strip = false;
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
        }
        self.waiting.extend(piece);
        self.ready.clear();
        let mut done = 0;
        for chunk in self.waiting.utf8_chunks() {
            self.ready.push_str(chunk.valid());
            done += chunk.valid().len();
            let bad = chunk.invalid();
            // an error at the very end may be the head of a character to come
            if !bad.is_empty() {
                if done + bad.len() == self.waiting.len() && is_head(bad) {
                    break;
                }
                self.ready.push('\u{FFFD}');
                done += bad.len();
            }
        }
        self.waiting.drain(..done);
        &self.ready
    }

    /// The end: what still waits was never a character.
    pub fn finish(&mut self) -> &str {
        self.ready.clear();
        if !self.waiting.is_empty() {
            self.waiting.clear();
            self.ready.push('\u{FFFD}');
        }
        &self.ready
    }
}

/// Whether some continuation makes `bytes`, which are not UTF-8, a character.
fn is_head(bytes: &[u8]) -> bool {
    // `error_len` is None exactly when the input ended too early
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
