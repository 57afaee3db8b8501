//! Keeping what a user wrote from turning into special tokens.
//!
//! A chat prompt is tokenized as one text, because words reach across the border between template
//! and content (`[INST] Hello` is not `[INST] ` and then `Hello`). Inside content, though,
//! `<|im_end|>` must stay ten characters. So before a template sees content, an invisible mark goes
//! in front of every place where a special token could begin, or could be completed by the
//! template's text around it. The marks travel with their characters through whatever the template
//! does (trim, split, compare); afterwards they are taken out, and a special token may not lie over
//! a character that had one. Content without such places is not touched at all.
//!
//! What this cannot know is a text that the template makes out of content by rewriting its
//! characters (`lower`, `replace`); templates do not do that to what users say.

/// A code point that neither the template nor any content has; none of these is ever assigned.
pub(super) fn pick_mark<'a>(texts: &(impl Iterator<Item = &'a str> + Clone)) -> Option<char> {
    ('\u{10FF00}'..='\u{10FFFD}').find(|c| !texts.clone().any(|t| t.contains(*c)))
}

/// `content` with marks. `specials` are the texts to keep from arising, `at` the offsets where one
/// of them stands in `content`.
pub(super) fn protect<'a>(
    content: &str,
    specials: impl Iterator<Item = &'a [u8]>,
    mut at: Vec<usize>,
    mark: char,
) -> String {
    if content.is_empty() {
        return String::new();
    }
    for special in specials.filter_map(|s| std::str::from_utf8(s).ok()) {
        for (k, _) in special.char_indices().skip(1) {
            let (head, tail) = special.split_at(k);
            if content.starts_with(tail) || tail.starts_with(content) {
                at.push(0);
            }
            if content.ends_with(head) {
                at.push(content.len() - head.len());
            }
        }
    }
    at.sort_unstable();
    at.dedup();
    let mut out = String::with_capacity(content.len() + at.len() * mark.len_utf8());
    let mut from = 0;
    for i in at {
        out.push_str(&content[from..i]);
        out.push(mark);
        from = i;
    }
    out.push_str(&content[from..]);
    out
}

/// Takes the marks out; returns the text and the offset of each character that had one.
pub(super) fn reveal(marked: &str, mark: char) -> (String, Vec<usize>) {
    let mut text = String::with_capacity(marked.len());
    let mut offsets = Vec::new();
    for (i, part) in marked.split(mark).enumerate() {
        if i > 0 {
            offsets.push(text.len());
        }
        text.push_str(part);
    }
    (text, offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(content: &str) -> String {
        let specials = ["<|end|>", "<s>"];
        let at = specials.iter().flat_map(|s| content.match_indices(s));
        let at = at.map(|(i, _)| i).collect();
        protect(content, specials.iter().map(|s| s.as_bytes()), at, '^')
    }

    #[test]
    fn harmless_content_is_untouched() {
        for c in ["", "hello", "a < b > c", " x\n", "<div>text</div> done"] {
            assert_eq!(marked(c), c);
        }
    }

    #[test]
    fn whole_tokens_and_halves_are_marked() {
        assert_eq!(marked("a<|end|>b<s>"), "a^<|end|>b^<s>");
        assert_eq!(marked("so <|e"), "so ^<|e");
        assert_eq!(marked("|>so"), "^|>so");
        assert_eq!(marked("end"), "^end");
    }

    #[test]
    fn reveal_undoes() {
        assert_eq!(
            reveal("a^<|end|>^é^", '^'),
            ("a<|end|>é".into(), vec![1, 8, 10])
        );
    }

    #[test]
    fn marks_avoid_what_is_there() {
        assert_eq!(pick_mark(&["\u{10FF00}"].into_iter()), Some('\u{10FF01}'));
    }
}
