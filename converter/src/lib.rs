//! splitconv: a model in, a pair of halves out.
//!
//! | module | what it does |
//! |---|---|
//! | [`source`] | opens a model and checks that it is whole and of a kind that can be cut |
//! | [`recipe`] | decides which tensor goes to which half in which block type |
//! | [`stream`] | sends the tensors through the encoders into the two files |
//! | [`report`] | what is said about a conversion: table, lines, JSON |
//! | [`inspect`], [`verify`] | looking at files, checking them |
//! | [`cli`] | the command line |

pub mod cli;
pub mod convert;
pub mod inspect;
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
    line.replace('\n', " ")
}
