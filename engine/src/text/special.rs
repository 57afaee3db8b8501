//! Cutting special tokens out of a text before it is tokenized.
//!
//! llama.cpp takes the special tokens longest first and cuts each out of what the longer ones
//! left. The same result comes here from one pass per distinct *length*, so the work does not grow
//! with the number of special tokens a file declares.

use std::collections::HashMap;
use std::ops::Range;

use super::{Attr, Vocab};

/// A stretch of ordinary text, or a token that was written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Range<usize>),
    Token(u32),
}

#[derive(Debug)]
struct Group {
    len: usize,
    /// Whether some text of the group starts with this byte.
    first: Box<[bool; 256]>,
    ids: HashMap<Box<[u8]>, u32>,
}

/// The texts that are looked for, by length, longest first.
#[derive(Debug)]
pub(super) struct Specials {
    groups: Vec<Group>,
}

impl Specials {
    pub(super) fn new(vocab: &Vocab) -> Self {
        let mut by_len: HashMap<usize, Group> = HashMap::new();
        for id in 0..vocab.len() as u32 {
            let attr = vocab.attr(id);
            if !(attr.is_special() || attr.any(Attr::USER_DEFINED)) {
                continue;
            }
            let text = vocab.text(id);
            let Some(first) = text.first() else { continue };
            let group = by_len.entry(text.len()).or_insert_with(|| Group {
                len: text.len(),
                first: Box::new([false; 256]),
                ids: HashMap::new(),
            });
            group.first[usize::from(*first)] = true;
            group.ids.insert(text.into(), id);
        }
        let mut groups: Vec<Group> = by_len.into_values().collect();
        groups.sort_by_key(|g| std::cmp::Reverse(g.len));
        Self { groups }
    }

    /// Texts of the control and unknown tokens.
    pub(super) fn control_texts<'a>(&'a self, vocab: &'a Vocab) -> impl Iterator<Item = &'a [u8]> {
        let ids = self.groups.iter().flat_map(|g| g.ids.iter());
        ids.filter(|(_, id)| vocab.attr(**id).is_special())
            .map(|(t, _)| &**t)
    }

    /// Byte offsets at which a control or unknown token is written in `text`, ascending per length.
    pub(super) fn occurrences(&self, vocab: &Vocab, text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        for group in &self.groups {
            for (at, window) in text.as_bytes().windows(group.len).enumerate() {
                if group.first[usize::from(window[0])]
                    && let Some(id) = group.ids.get(window)
                    && vocab.attr(*id).is_special()
                {
                    found.push(at);
                }
            }
        }
        found
    }

    /// Cuts `text`. Control and unknown tokens only if `parse_special`, and nowhere over one of
    /// the byte offsets in `shields` (ascending); user-defined tokens always.
    pub(super) fn partition(
        &self,
        vocab: &Vocab,
        text: &str,
        parse_special: bool,
        shields: &[usize],
    ) -> Vec<Piece> {
        let bytes = text.as_bytes();
        let mut pieces = Vec::new();
        if !bytes.is_empty() {
            pieces.push(Piece::Text(0..bytes.len()));
        }
        let allowed = |id: u32, at: usize, len: usize| {
            let attr = vocab.attr(id);
            attr.any(Attr::USER_DEFINED) && !attr.is_special()
                || parse_special && {
                    let next = shields.partition_point(|s| *s < at);
                    shields.get(next).is_none_or(|s| *s >= at + len)
                }
        };
        for group in &self.groups {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let Piece::Text(range) = piece else {
                    next.push(piece);
                    continue;
                };
                let mut from = range.start;
                let mut at = range.start;
                while let Some(window) = bytes.get(at..(at + group.len).min(range.end)) {
                    if window.len() < group.len {
                        break;
                    }
                    let hit = window
                        .first()
                        .filter(|b| group.first[usize::from(**b)])
                        .and_then(|_| group.ids.get(window))
                        .filter(|id| allowed(**id, at, group.len));
                    let Some(id) = hit else {
                        at += 1;
                        continue;
                    };
                    if at > from {
                        next.push(Piece::Text(from..at));
                    }
                    next.push(Piece::Token(*id));
                    at += group.len;
                    if vocab.attr(*id).any(Attr::RSTRIP) {
                        let rest = bytes.get(at..range.end).unwrap_or_default();
                        at += rest.iter().take_while(|b| is_space(**b)).count();
                    }
                    from = at;
                }
                if range.end > from {
                    next.push(Piece::Text(from..range.end));
                }
            }
            pieces = next;
        }
        pieces
    }
}

/// C's `isspace`, which counts the vertical tab.
fn is_space(b: u8) -> bool {
    b.is_ascii_whitespace() || b == 0x0b
}
