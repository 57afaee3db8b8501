//! The chat loop of a terminal.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::back::Back;
use super::error::RunError;
use super::generate::{GenerateOptions, Generation, Generator, Stop};
use crate::text::{ChatTemplate, Message, Tokenizer};

/// Starts a sequence; its argument is the prompt, for the repeat penalty.
pub type Open<'a, B> = &'a mut dyn FnMut(&[u32]) -> Result<Generator<B>, RunError>;

/// What a conversation needs besides its sequence.
pub struct Chat<'a> {
    /// Turns text into ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Puts messages into the form that the model was trained on.
    pub template: &'a ChatTemplate,
    /// System message, if any.
    pub system: Option<&'a str>,
    /// How far each answer may go.
    pub options: &'a GenerateOptions,
    /// Set to end an answer.
    pub stop: &'a AtomicBool,
}

/// Reads lines and answers them until Ctrl-D or `/exit`.
///
/// Only what is new of the conversation goes through the model; where the template rewrites the past, the sequence is
/// rolled back to what still holds. When the other half was lost between two lines, a new sequence
/// is opened and the conversation run again.
///
/// # Errors
/// When the terminal fails, or a half fails in the middle of an answer.
pub fn chat_loop<B: Back>(chat: &Chat<'_>, open: Open<'_, B>) -> Result<(), RunError> {
    let terminal = |e: ReadlineError| RunError::Request(format!("the terminal: {e}"));
    let mut editor = DefaultEditor::new().map_err(terminal)?;
    let mut messages: Vec<Message> = Vec::new();
    messages.extend(chat.system.map(|s| Message::new("system", s)));
    let mut sequence: Option<Sequence<B>> = None;
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
        let ids = chat.template.render(chat.tokenizer, &messages, true)?;
        chat.stop.store(false, Ordering::Relaxed);
        let (mut current, fresh) = match sequence.take() {
            Some(s) => (s, false),
            None => (
                Sequence {
                    generator: open(&ids)?,
                    held: Vec::new(),
                },
                true,
            ),
        };
        let mut printed = false;
        let mut answer = current.answer(chat, &ids, &mut printed);
        if matches!(answer, Err(RunError::Link(_))) && !fresh && !printed {
            note("(the connection was lost; running the conversation again)");
            current = Sequence {
                generator: open(&ids)?,
                held: Vec::new(),
            };
            answer = current.answer(chat, &ids, &mut printed);
        }
        match answer {
            Ok(g) => {
                print_text("\n");
                if g.stop == Stop::Context {
                    let n = current.generator.n_ctx();
                    note(&format!("(the context of {n} positions is full)"));
                }
                messages.push(Message::new("assistant", &g.text));
                sequence = Some(current);
            }
            Err(RunError::Exec(e)) => {
                note(&format!("{e}\nstarting over with an empty conversation"));
                messages.retain(|m| m.role == "system");
            }
            Err(e) => return Err(e),
        }
    }
}

/// A sequence and the ids that it holds.
struct Sequence<B> {
    generator: Generator<B>,
    held: Vec<u32>,
}

impl<B: Back> Sequence<B> {
    /// Generates what follows `ids`; what of them is held already is not run again.
    fn answer(
        &mut self,
        chat: &Chat<'_>,
        ids: &[u32],
        printed: &mut bool,
    ) -> Result<Generation, RunError> {
        let same = ids
            .iter()
            .zip(&self.held)
            .take_while(|(a, b)| a == b)
            .count();
        // At least one row must run to be followed by something.
        let keep = same.min(ids.len().saturating_sub(1));
        self.generator.rollback(keep)?;
        self.held.truncate(keep);
        let mut print = |text: &str| {
            *printed = true;
            print_text(text);
        };
        let (generator, options) = (&mut self.generator, chat.options);
        let new = &ids[keep..];
        let done = generator.generate(chat.tokenizer, new, options, chat.stop, &mut print)?;
        self.held.extend_from_slice(new);
        self.held.extend(&done.ids);
        // The last token was sampled but not run, and an interrupted prompt stopped short: only
        // what the sequence holds counts.
        self.held.truncate(self.generator.len());
        Ok(done)
    }
}

/// Text on standard output. A closed output ends the program at the next line it cannot read.
fn print_text(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line on standard error; nobody listening is no reason to stop.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
