//! Templates whose namespaces could come to hold themselves.
//!
//! `{% set ns.a = ns %}` makes a value without an end; whoever writes it out or drops it runs out of
//! stack, which no thread survives, and the template engine has no hook to see it coming. Real
//! templates keep counters and flags in a namespace, never another namespace. So one may only be
//! made by `{% set NAME = namespace(…) %}`, and NAME may then only be followed by `.` or `[`.

/// Says what of `source` breaks the rule.
pub(super) fn check(source: &str) -> Result<(), String> {
    let tags: Vec<Vec<Token<'_>>> = tags(source).map(tokens).collect();
    let mut names = Vec::new();
    for tag in &tags {
        for (i, token) in tag.iter().enumerate() {
            if token.text != "namespace" || is_field(tag, i) {
                continue;
            }
            match definition(tag, i) {
                Some(name) => names.push(name),
                None => {
                    return Err("`namespace` may only stand in `set NAME = namespace(…)`".into());
                }
            }
        }
    }
    for tag in &tags {
        for (i, token) in tag.iter().enumerate() {
            if !names.contains(&token.text) || is_field(tag, i) {
                continue;
            }
            let defines = tag.get(i + 2).is_some_and(|t| t.text == "namespace");
            let follows = tag.get(i + 1).map_or("", |t| t.text);
            if !defines && !matches!(follows, "." | "[") {
                return Err(format!(
                    "the namespace `{}` may not be used as a value",
                    token.text
                ));
            }
        }
    }
    Ok(())
}

/// NAME of `set NAME = namespace(` around token `i`.
fn definition<'s>(tag: &[Token<'s>], i: usize) -> Option<&'s str> {
    let [set, name, equals] = tag.get(i.checked_sub(3)?..i)? else {
        return None;
    };
    let called = tag.get(i + 1).is_some_and(|t| t.text == "(");
    (set.text == "set" && equals.text == "=" && called && i == 3).then_some(name.text)
}

/// An identifier, or one character of anything else.
#[derive(Clone, Copy)]
struct Token<'s> {
    text: &'s str,
}

/// Whether token `i` of its tag comes after a dot: a field of something, no variable.
fn is_field(tag: &[Token<'_>], i: usize) -> bool {
    let before = i.checked_sub(1).and_then(|i| tag.get(i));
    before.is_some_and(|t| t.text == ".")
}

/// What stands between `{%` or `{{` and the end of that tag, comments apart.
fn tags(source: &str) -> impl Iterator<Item = &str> {
    let mut rest = source;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find('{')?;
            let tail = rest.get(at + 1..)?;
            match tail.as_bytes().first() {
                Some(b'%' | b'{') => {
                    let body = tail.get(1..)?;
                    let end = end_of_tag(body);
                    rest = body.get(end..)?;
                    return body.get(..end);
                }
                Some(b'#') => rest = tail.get(tail.find("#}")?..)?,
                _ => rest = tail,
            }
        }
    })
}

/// Length of a tag's body: to `%}` or `}}` outside strings, or all there is.
fn end_of_tag(body: &str) -> usize {
    let bytes = body.as_bytes();
    let mut quote = None;
    let mut i = 0;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(q), b) if b == q => quote = None,
            (None, b @ (b'\'' | b'"')) => quote = Some(b),
            (None, b'%' | b'}') if bytes.get(i + 1) == Some(&b'}') => return i,
            _ => {}
        }
        i += 1;
    }
    body.len()
}

/// Identifiers and punctuation of a tag; strings and spaces are left out, and so is the `-` that
/// trims at its start.
fn tokens(body: &str) -> Vec<Token<'_>> {
    let body = body.strip_prefix(['-', '+']).unwrap_or(body);
    let mut out = Vec::new();
    let mut chars = body.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\'' || c == '"' {
            while let Some((_, s)) = chars.next() {
                match s {
                    '\\' => drop(chars.next()),
                    s if s == c => break,
                    _ => {}
                }
            }
        } else if c == '_' || c.is_alphanumeric() {
            let mut end = at + c.len_utf8();
            while let Some((i, c)) = chars.next_if(|(_, c)| *c == '_' || c.is_alphanumeric()) {
                end = i + c.len_utf8();
            }
            out.push(Token {
                text: &body[at..end],
            });
        } else if !c.is_whitespace() {
            out.push(Token {
                text: &body[at..at + c.len_utf8()],
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_flags_pass() {
        for t in [
            "no tags, but a namespace",
            "{%- set ns = namespace(found=false, n=0) -%}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
            "{% set ns = namespace() %}{# ns #}{% if ns['x'] and m.ns %}{{ 'ns }} namespace' }}{% endif %}",
            "{{ messages | length }} {",
        ] {
            assert_eq!(check(t), Ok(()), "{t}");
        }
    }

    #[test]
    fn namespaces_as_values_do_not() {
        for t in [
            "{% set ns=namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set b = [ns] %}",
            "{% set a = namespace() %}{%- for x in a -%}",
            "{% set f = namespace %}",
            "{{ namespace() }}",
            "{% set a = [namespace()][0] %}",
            "{% set ns = namespace() %}{% set ns.b = namespace() %}",
            "{% set ns = namespace(x=namespace()) %}",
            "{% set ns = namespace() %}{% with x = ns",
            "{% set ns = namespace() %}{{ '\\'' ~ ns }}",
        ] {
            assert!(check(t).is_err(), "{t}");
        }
    }
}
