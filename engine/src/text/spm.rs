//! SentencePiece BPE without merges: two neighbours merge when their joined text is a token, the
//! best score first, the leftmost among equals.
//!
//! Why not the `tokenizers` crate here: its BPE orders *pairs*, and the same piece can come from
//! several pairs. Giving each pair a rank of its own decides between equal scores by pair where
//! SentencePiece decides by position; and a pair may have a part that is no token itself.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashSet};

use super::{TextError, Vocab};

const NONE: usize = usize::MAX;

/// One piece of the text so far, in a doubly linked list.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Bytes; 0 once merged into its left neighbour.
    len: usize,
    prev: usize,
    next: usize,
}

/// A possible merge, as it was when it was found.
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Bigram {
    fn key(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(Reverse(self.left).cmp(&Reverse(other.left)))
            .then(self.len.cmp(&other.len))
    }
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Bigram {}
impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key(other)
    }
}

/// The merge loop's fixed part.
#[derive(Debug)]
pub(super) struct Spm {
    /// The token for each byte that has no text of its own.
    bytes: Box<[Option<u32>; 256]>,
    /// Characters that follow each other inside some token. Where two others meet no merge can
    /// ever reach across, so the text falls into short stretches (words, mostly) that are merged
    /// one by one, out of the cache instead of out of memory.
    neighbours: HashSet<(char, char)>,
}

impl Spm {
    pub(super) fn new(vocab: &Vocab) -> Result<Self, TextError> {
        let mut bytes = Box::new([None; 256]);
        for (b, slot) in bytes.iter_mut().enumerate() {
            let named = format!("<0x{b:02X}>");
            *slot = vocab
                .id(named.as_bytes())
                .or_else(|| vocab.id(&[b as u8]))
                .or(vocab.unk());
        }
        if bytes.iter().any(Option::is_none) {
            return Err(TextError::BadVocabulary(
                "it has neither byte tokens (`<0x00>` to `<0xFF>`) nor an unknown token".into(),
            ));
        }
        let mut neighbours = HashSet::new();
        for id in 0..vocab.len() as u32 {
            let text = std::str::from_utf8(vocab.text(id)).unwrap_or_default();
            neighbours.extend(text.chars().zip(text.chars().skip(1)));
        }
        Ok(Self { bytes, neighbours })
    }

    /// Appends the ids of `text`, in which spaces already are `▁`. O(n log n).
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut symbols = Vec::new();
        let mut heap = BinaryHeap::new();
        let mut before = None;
        for (start, c) in text.char_indices() {
            if before.is_some_and(|b| !self.neighbours.contains(&(b, c))) {
                self.merge(vocab, text.as_bytes(), &mut symbols, &mut heap, out);
            }
            symbols.push(Symbol {
                start,
                len: c.len_utf8(),
                prev: symbols.len().wrapping_sub(1), // the first: NONE
                next: symbols.len() + 1,
            });
            before = Some(c);
        }
        self.merge(vocab, text.as_bytes(), &mut symbols, &mut heap, out);
    }

    /// Merges one stretch, appends its ids, and leaves `symbols` empty.
    fn merge(
        &self,
        vocab: &Vocab,
        bytes: &[u8],
        symbols: &mut Vec<Symbol>,
        heap: &mut BinaryHeap<Bigram>,
        out: &mut Vec<u32>,
    ) {
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        for right in 1..symbols.len() {
            heap.extend(bigram(vocab, bytes, symbols, right - 1, right));
        }
        while let Some(b) = heap.pop() {
            let (left, right) = (symbols[b.left], symbols[b.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != b.len {
                continue; // one of them has merged elsewhere
            }
            symbols[b.left].len = b.len;
            symbols[b.left].next = right.next;
            symbols[b.right].len = 0;
            if right.next != NONE {
                symbols[right.next].prev = b.left;
            }
            if left.prev != NONE {
                heap.extend(bigram(vocab, bytes, symbols, left.prev, b.left));
            }
            if right.next != NONE {
                heap.extend(bigram(vocab, bytes, symbols, b.left, right.next));
            }
        }
        for s in symbols.drain(..).filter(|s| s.len > 0) {
            let piece = &bytes[s.start..s.start + s.len];
            match plain(vocab, piece) {
                Some(id) => out.push(id),
                None => out.extend(piece.iter().filter_map(|b| self.bytes[usize::from(*b)])),
            }
        }
    }
}

/// The token with this text, unless it is one that plain text must not give.
fn plain(vocab: &Vocab, text: &[u8]) -> Option<u32> {
    if text.len() > vocab.max_token_len() {
        return None;
    }
    vocab.id(text).filter(|id| !vocab.attr(*id).is_special())
}

fn bigram(
    vocab: &Vocab,
    text: &[u8],
    symbols: &[Symbol],
    left: usize,
    right: usize,
) -> Option<Bigram> {
    let len = symbols[left].len + symbols[right].len;
    let start = symbols[left].start;
    let id = plain(vocab, text.get(start..start + len)?)?;
    Some(Bigram {
        score: vocab.score(id),
        left,
        right,
        len,
    })
}
