//! The chat loop of a terminal.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::back::Back;
use super::error::RunError;
use super::generate::{GenerateOptions, Generator, Stop};
use crate::text::{ChatTemplate, Message, Tokenizer};

/// Reads lines and answers them until Ctrl-D or `/exit`. Only what is new of the conversation
/// goes through the model; where the template rewrites the past, the sequence is rolled back to
/// what still holds.
///
/// # Errors
/// When the terminal or a half fails.
pub fn chat_loop<B: Back>(
    generator: &mut Generator<B>,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    system: Option<&str>,
    options: &GenerateOptions,
    stop: &AtomicBool,
) -> Result<(), RunError> {
    let terminal = |e: ReadlineError| RunError::Request(format!("the terminal: {e}"));
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    let mut messages: Vec<Message> = system
        .map(|s| Message::new("system", s))
        .into_iter()
        .collect();
    // The ids that the sequence holds.
    let mut held: Vec<u32> = Vec::new();
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(e) => return Err(terminal(e)),
        };
        if line.trim().is_empty() {
            continue;
        }
        if line.trim() == "/exit" {
            return Ok(());
        }
        // History is a convenience: a failure to record a line is no reason to stop.
        let _ = editor.add_history_entry(&line);
        messages.push(Message::new("user", &line));
        let ids = template.render(tokenizer, &messages, true)?;
        let same = ids.iter().zip(&held).take_while(|(a, b)| a == b).count();
        let keep = same.min(ids.len() - 1);
        generator.rollback(keep)?;
        held.truncate(keep);
        stop.store(false, Ordering::Relaxed);
        let mut print = |text: &str| {
            let mut out = std::io::stdout().lock();
            // A closed output ends the program at the next line it cannot read.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        };
        match generator.generate(tokenizer, &ids[keep..], options, stop, &mut print) {
            Ok(g) => {
                println!();
                if g.stop == Stop::Context {
                    eprintln!("(the context of {} positions is full)", generator.n_ctx());
                }
                held.extend_from_slice(&ids[keep..]);
                // The last token was sampled but not run.
                held.extend(
                    g.ids
                        .iter()
                        .take(generator.len().saturating_sub(held.len())),
                );
                messages.push(Message::new("assistant", &g.text));
            }
            Err(RunError::Exec(e)) => {
                eprintln!("{e}\nstarting over with an empty conversation");
                messages.retain(|m| m.role == "system");
                generator.rollback(0)?;
                held.clear();
            }
            Err(e) => return Err(e),
        }
    }
}
