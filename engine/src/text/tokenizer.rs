//! Text to ids and back.

use formats::gguf::Metadata;

use super::bpe::{ByteBpe, letter_byte};
use super::shield::protect;
use super::special::{Piece, Specials};
use super::spm::Spm;
use super::{Attr, Model, TextError, Vocab};

#[derive(Debug)]
enum Engine {
    Spm(Spm),
    Bpe(Box<ByteBpe>),
}

/// A model's tokenizer. Shared between threads freely.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    engine: Engine,
    specials: Specials,
    /// Bytes of every token, one after the other; `ends[i]` is where token i's end.
    pieces: Vec<u8>,
    ends: Vec<usize>,
}

impl Tokenizer {
    /// From a model file's metadata.
    ///
    /// # Errors
    /// As [`Vocab::from_metadata`].
    pub fn from_metadata(meta: &Metadata) -> Result<Self, TextError> {
        Self::from_vocab(Vocab::from_metadata(meta)?)
    }

    /// From a vocabulary.
    ///
    /// # Errors
    /// A vocabulary without a way to write some byte.
    pub fn from_vocab(vocab: Vocab) -> Result<Self, TextError> {
        let engine = match vocab.model() {
            Model::Spm => Engine::Spm(Spm::new(&vocab)?),
            Model::Bpe => Engine::Bpe(Box::new(ByteBpe::new(&vocab)?)),
        };
        let mut pieces = Vec::new();
        let ends = (0..vocab.len() as u32)
            .map(|id| {
                push_piece(&vocab, id, &mut pieces);
                pieces.len()
            })
            .collect();
        Ok(Self {
            specials: Specials::new(&vocab),
            vocab,
            engine,
            pieces,
            ends,
        })
    }

    /// The ids of `text`, without BOS. Special tokens written in it are recognised if
    /// `parse_special`: never set it for text by someone who must not steer the model.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        self.encode_shielded(text, parse_special, &[])
    }

    /// As [`Tokenizer::encode`]; no special token lies over one of the offsets in `shields`.
    pub(super) fn encode_shielded(
        &self,
        text: &str,
        parse_special: bool,
        shields: &[usize],
    ) -> Vec<u32> {
        let pieces = self
            .specials
            .partition(&self.vocab, text, parse_special, shields);
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut after_special = true;
        for piece in pieces {
            match (piece, &self.engine) {
                (Piece::Token(id), _) => {
                    out.push(id);
                    after_special = true;
                }
                (Piece::Text(range), engine) => {
                    let part = text.get(range).unwrap_or_default();
                    match engine {
                        Engine::Bpe(bpe) => bpe.encode(part, &mut out),
                        Engine::Spm(spm) => {
                            let prefix = self.vocab.add_space_prefix() && after_special;
                            let mut escaped = part.replace(' ', "▁");
                            if prefix {
                                escaped.insert(0, '▁');
                            }
                            spm.encode(&self.vocab, &escaped, &mut out);
                        }
                    }
                    after_special = false;
                }
            }
        }
        out
    }

    /// The ids of a whole prompt: special tokens recognised, BOS (and EOS) where the model adds
    /// one.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let mut out: Vec<u32> = self.bos_if_added().into_iter().collect();
        out.extend(self.encode(text, true));
        if self.vocab.add_eos() {
            out.extend(self.vocab.eos());
        }
        out
    }

    fn bos_if_added(&self) -> Option<u32> {
        self.vocab.bos().filter(|_| self.vocab.add_bos())
    }

    /// The ids of a text that a chat template wrote: BOS once, whether the template writes it or
    /// the model adds it.
    pub(super) fn encode_rendered(&self, text: &str, shields: &[usize]) -> Vec<u32> {
        let mut out = self.encode_shielded(text, true, shields);
        if let Some(bos) = self.bos_if_added()
            && out.first() != Some(&bos)
        {
            out.insert(0, bos);
        }
        out
    }

    /// The text of a whole sequence. Control tokens print nothing, the space that
    /// SentencePiece put before the text is dropped, broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        let mut strip = self.vocab.add_space_prefix();
        for id in ids {
            let piece = self.printed(*id);
            bytes.extend(match (strip, piece) {
                (true, [b' ', rest @ ..]) => rest,
                _ => piece,
            });
            strip &= piece.is_empty();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes a token stands for, control tokens by their name; empty for an id out of range.
    pub fn piece_bytes(&self, id: u32) -> &[u8] {
        let i = id as usize;
        let start = match i.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0),
            None => 0,
        };
        self.ends
            .get(i)
            .and_then(|end| self.pieces.get(start..*end))
            .unwrap_or_default()
    }

    /// The bytes a token prints: none for control and unknown tokens.
    pub fn printed(&self, id: u32) -> &[u8] {
        if self.vocab.attr(id).is_special() {
            return &[];
        }
        self.piece_bytes(id)
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// `content` with `mark` before every character that [`Tokenizer::encode_shielded`] must keep
    /// out of special tokens; see the module `shield`.
    pub(super) fn protect(&self, content: &str, mark: char) -> String {
        let at = self.specials.occurrences(&self.vocab, content);
        protect(content, self.specials.control_texts(&self.vocab), at, mark)
    }

    /// Whether a prompt starts with BOS.
    pub fn add_bos(&self) -> bool {
        self.vocab.add_bos()
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos()
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos()
    }

    /// Whether a generation ends with this token.
    pub fn is_eog(&self, id: u32) -> bool {
        self.vocab.eog().contains(&id)
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }
}

fn push_piece(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    let text = vocab.text(id);
    let attr = vocab.attr(id);
    if attr.is_special() || attr.any(Attr::USER_DEFINED) {
        out.extend(text);
    } else if attr.any(Attr::NORMAL) {
        match (vocab.model(), std::str::from_utf8(text)) {
            (_, Err(_)) => out.extend(text),
            (Model::Spm, Ok(t)) => out.extend(t.replace('▁', " ").bytes()),
            (Model::Bpe, Ok(t)) => {
                for c in t.chars() {
                    match letter_byte(c) {
                        Some(b) => out.push(b),
                        None => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
                    }
                }
            }
        }
    } else if attr.any(Attr::BYTE) {
        let hex = text.get(3..5).and_then(|h| std::str::from_utf8(h).ok());
        out.extend(hex.and_then(|h| u8::from_str_radix(h, 16).ok()));
    }
}
