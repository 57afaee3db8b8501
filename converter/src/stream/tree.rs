//! BLAKE3 of a tensor whose pieces come in any order from any thread.
//!
//! BLAKE3 is a hash tree, so subtrees can be hashed where their bytes are. The leaves here are
//! groups of 32 KiB. A thread hashes the whole groups of its piece; what is left at the piece's
//! ends waits for its neighbour. The result is the ordinary BLAKE3 of all bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use formats::pair::Digest;

/// Bytes of a leaf: a power of two, large enough that all lanes of the hash are busy.
const GROUP: usize = 32 * 1024;

/// Hashes a whole group. The only group of a short text is the root itself.
fn leaf(index: usize, groups: usize, bytes: &[u8]) -> ChainingValue {
    if groups == 1 {
        return blake3::hash(bytes).into();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset((index * GROUP) as u64);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// What a piece contributes; made without the tree, so that no other thread waits meanwhile.
pub(super) struct Part<'a> {
    /// Groups that lie in the piece.
    leaves: Vec<(usize, ChainingValue)>,
    /// Positions and bytes of parts of groups.
    edges: Vec<(usize, &'a [u8])>,
}

/// The tree of one text.
pub(super) struct Tree {
    len: usize,
    groups: Vec<Option<ChainingValue>>,
    /// Groups of which only a part is known: the bytes, and how many of them.
    open: BTreeMap<usize, (Vec<u8>, usize)>,
}

/// The length of group `index` in a text of `len` bytes.
fn group_len(len: usize, index: usize) -> usize {
    (len - index * GROUP).min(GROUP)
}

/// Hashes `bytes`, which stand at `at` in a text of `len` bytes, as far as it can be done alone.
pub(super) fn part(len: usize, at: usize, bytes: &[u8]) -> Part<'_> {
    let groups = len.div_ceil(GROUP);
    let mut part = Part {
        leaves: Vec::with_capacity(bytes.len() / GROUP + 1),
        edges: Vec::new(),
    };
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let index = at / GROUP;
        let whole = group_len(len, index);
        let inside = at % GROUP;
        let take = (whole - inside).min(rest.len());
        let (now, later) = rest.split_at(take);
        if take == whole {
            part.leaves.push((index, leaf(index, groups, now)));
        } else {
            part.edges.push((at, now));
        }
        (at, rest) = (at + take, later);
    }
    part
}

impl Tree {
    /// The tree of a text of `len` bytes, none of which is known yet.
    pub(super) fn new(len: usize) -> Self {
        Self {
            len,
            groups: vec![None; len.div_ceil(GROUP)],
            open: BTreeMap::new(),
        }
    }

    /// Adds a piece. Pieces neither overlap nor reach past the end.
    pub(super) fn add(&mut self, part: &Part<'_>) {
        for (index, leaf) in &part.leaves {
            self.groups[*index] = Some(*leaf);
        }
        let count = self.groups.len();
        for (at, bytes) in &part.edges {
            let index = at / GROUP;
            let whole = group_len(self.len, index);
            let mut group = match self.open.entry(index) {
                Entry::Occupied(group) => group,
                Entry::Vacant(v) => v.insert_entry((vec![0; whole], 0)),
            };
            let (text, known) = group.get_mut();
            text[at % GROUP..][..bytes.len()].copy_from_slice(bytes);
            *known += bytes.len();
            if *known == whole {
                self.groups[index] = Some(leaf(index, count, text));
                group.remove();
            }
        }
    }

    /// The digest; `None` while bytes are missing.
    pub(super) fn digest(&self) -> Option<Digest> {
        let leaves: Option<Vec<ChainingValue>> = self.groups.iter().copied().collect();
        let leaves = leaves?;
        Some(match leaves.as_slice() {
            [] => Digest::of(&[]),
            [only] => Digest(*only),
            many => {
                let (left, right) = many.split_at(left_of(many.len()));
                let (left, right) = (merge(left), merge(right));
                merge_subtrees_root(&left, &right, Mode::Hash).into()
            }
        })
    }
}

/// Leaves in the left subtree: the largest power of two that leaves something for the right.
fn left_of(leaves: usize) -> usize {
    leaves.next_power_of_two() / 2
}

fn merge(leaves: &[ChainingValue]) -> ChainingValue {
    match leaves {
        [only] => *only,
        many => {
            let (left, right) = many.split_at(left_of(many.len()));
            merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any sizes, any pieces, any order: the ordinary digest.
    #[test]
    fn equals_blake3() {
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        let text: Vec<u8> = (0..GROUP * 9).map(|_| random(256) as u8).collect();
        let mut lens = vec![0, 1, 1023, 1024, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP];
        lens.extend([3 * GROUP, 4 * GROUP + 1, 8 * GROUP, 9 * GROUP]);
        lens.extend((0..20).map(|_| random(text.len())));
        for len in lens {
            let text = &text[..len];
            let step = 1 + random(GROUP * 3);
            let mut pieces: Vec<(usize, &[u8])> = text
                .chunks(step)
                .enumerate()
                .map(|(i, piece)| (i * step, piece))
                .collect();
            let mut tree = Tree::new(len);
            while !pieces.is_empty() {
                assert_eq!(tree.digest(), None);
                let (at, piece) = pieces.swap_remove(random(pieces.len()));
                tree.add(&part(len, at, piece));
            }
            assert!(tree.open.is_empty());
            assert_eq!(tree.digest(), Some(Digest::of(text)), "{len} by {step}");
        }
    }
}
