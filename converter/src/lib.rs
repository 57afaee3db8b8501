//! splitconv: a model in, a pair of halves out.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`] | opens a model and checks that it is whole and of a kind that can be cut |
//! | [`importance`] | what an error in each column of each matrix costs, from an importance matrix |
//! | [`recipe`] | decides which tensor goes to which half in which block type |
//! | [`plan`] | finds the best cut, bits, codec and context for two hosts and a link |
//! | [`stream`] | sends the tensors through the encoders into the two files |
//! | [`report`] | what is said about a conversion: table, lines, JSON |
//! | [`inspect`], [`verify`] | looking at files, checking them |
//! | [`at`] | files read and written by position |
//! | [`cli`] | the command line |

use std::borrow::Cow;

pub mod at;
pub mod cli;
pub mod convert;
pub mod importance;
pub mod inspect;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod source;
pub mod stream;
pub mod verify;

/// An error and its causes on one line, each said once.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let text = e.to_string();
        // Some errors already quote their cause.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = e.source();
    }
    printable(&line.replace('\n', " ")).into_owned()
}

/// `text`, which may come from a file, as it may be shown on a terminal: characters that would
/// steer the terminal or turn the direction of the text are written as escapes.
pub fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_debug());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert!(matches!(printable("a b × ö \\ \""), Cow::Borrowed(_)));
        assert_eq!(printable("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(printable("\u{9b}\u{7f}\u{202e}"), "\\u{9b}\\u{7f}\\u{202e}");
        let error = std::io::Error::other("bad\nname \u{1b}]0;x\u{7}");
        assert_eq!(one_line(&error), "bad name \\u{1b}]0;x\\u{7}");
    }
}
