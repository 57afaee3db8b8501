//! Byte-level BPE: words from the pre-tokenizer, bytes as letters, merges by the `tokenizers`
//! crate.

use std::collections::HashSet;

use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};

use super::pretok::Splitter;
use super::{TextError, Vocab};

/// GPT-2's alphabet: each byte as a printable character. Printable Latin-1 stands for itself, the
/// rest is numbered from U+0100 on.
pub(super) fn byte_letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|b| match b {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(b as u8),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or('?')
        }
    })
}

/// The byte that a letter of GPT-2's alphabet stands for.
pub(super) fn letter_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u8::try_from(code).ok(),
        // the 68 others in order: 0..=0x20, 0x7f..=0xa0, 0xad
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

pub(super) struct ByteBpe {
    splitter: Splitter,
    bpe: BPE,
    letters: [char; 256],
    /// Bytes whose letter is a token; text is cut at the others, which have no id.
    known: [bool; 256],
}

impl ByteBpe {
    pub(super) fn new(vocab: &Vocab) -> Result<Self, TextError> {
        // Plain text never gives a control token, not even where a word is taken whole.
        let plain = |t: &[u8]| vocab.id(t).is_some_and(|id| !vocab.attr(id).is_special());
        let mut texts = BpeVocab::default();
        for id in 0..vocab.len() as u32 {
            let text = vocab.text(id);
            if let (true, Ok(t)) = (plain(text), std::str::from_utf8(text)) {
                texts.insert(t.to_owned(), id);
            }
        }
        // A pair merges only if both parts and the whole are tokens; of a pair that is listed
        // twice the first rank counts.
        let mut seen = HashSet::new();
        let mut merges = Vec::with_capacity(vocab.merges().len());
        for (a, b) in vocab.merges() {
            let (Ok(a), Ok(b)) = (std::str::from_utf8(a), std::str::from_utf8(b)) else {
                continue;
            };
            let whole = format!("{a}{b}");
            if [a, b, &whole].iter().all(|t| texts.contains_key(*t)) && seen.insert((a, b)) {
                merges.push((a.to_owned(), b.to_owned()));
            }
        }
        let letters = byte_letters();
        let known = letters.map(|c| texts.contains_key(c.encode_utf8(&mut [0; 4])));
        let bpe = BPE::builder()
            .vocab_and_merges(texts, merges)
            .ignore_merges(vocab.pre_tokenizer().ignores_merges())
            .build()
            .map_err(|e| TextError::BadVocabulary(e.to_string()))?;
        Ok(Self {
            splitter: Splitter::new(vocab.pre_tokenizer())?,
            bpe,
            letters,
            known,
        })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut letters = String::new();
        self.splitter.split(text, &mut |word| {
            letters.clear();
            for b in word.bytes() {
                if self.known[usize::from(b)] {
                    letters.push(self.letters[usize::from(b)]);
                } else {
                    self.merge(&letters, out);
                    letters.clear();
                }
            }
            self.merge(&letters, out);
        });
    }

    fn merge(&self, letters: &str, out: &mut Vec<u32>) {
        if letters.is_empty() {
            return;
        }
        // it fails only with dropout or an unknown token, and has neither
        if let Ok(tokens) = self.bpe.tokenize(letters) {
            out.extend(tokens.iter().map(|t| t.id));
        }
    }
}

impl std::fmt::Debug for ByteBpe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteBpe").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_a_bijection() {
        let letters = byte_letters();
        for (b, c) in letters.iter().enumerate() {
            assert_eq!(letter_byte(*c), Some(b as u8));
        }
        assert_eq!(letters[usize::from(b' ')], 'Ġ');
        assert_eq!(letters[usize::from(b'\n')], 'Ċ');
        assert_eq!(letter_byte('\u{144}'), None);
    }
}
