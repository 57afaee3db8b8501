//! How far a conversion is: a bar on a terminal, plain lines elsewhere, always on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Set by a signal, never cleared: the process is to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and the signals that ask for an end stop a conversion between two pieces,
/// so that it can remove its files.
pub fn stop_on_signals() {
    // An error means that someone else decides about signals: a program that uses this library,
    // or `nohup`, whose ignored signals stay ignored. Then all is as without a handler.
    let _ = ctrlc::try_set_handler(|| STOP.store(true, Ordering::Relaxed));
}

/// Hears how far it is, and may ask for an end.
pub trait Progress {
    /// `bytes` of the source are to be read.
    fn start(&self, bytes: u64);
    /// `bytes` more have been read, of the tensor called `tensor`.
    fn advance(&self, bytes: u64, tensor: &str);
    /// Something to know.
    fn say(&self, line: &str);
    /// All is done.
    fn finish(&self);
    /// Whether the conversion is to end now, unfinished. Asked before every piece.
    fn stopped(&self) -> bool {
        false
    }
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: u64) {}
    fn advance(&self, _: u64, _: &str) {}
    fn say(&self, _: &str) {}
    fn finish(&self) {}
}

/// The kind that suits standard error; stops on signals once [`stop_on_signals`] was called.
pub fn for_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bar(ProgressBar::hidden()))
    } else {
        Box::new(Lines(Mutex::default()))
    }
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn start(&self, bytes: u64) {
        let template = "{bar:32} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.0.set_style(style);
        }
        self.0.set_length(bytes);
        self.0
            .set_draw_target(indicatif::ProgressDrawTarget::stderr());
    }

    fn advance(&self, bytes: u64, tensor: &str) {
        self.0.set_message(tensor.to_owned());
        self.0.inc(bytes);
    }

    fn say(&self, line: &str) {
        self.0.set_message(line.to_owned());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }

    fn stopped(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

/// One line for each tenth.
struct Lines(Mutex<Tenths>);

#[derive(Default)]
struct Tenths {
    total: u64,
    done: u64,
    said: u64,
}

impl Progress for Lines {
    fn start(&self, bytes: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).total = bytes;
    }

    fn advance(&self, bytes: u64, tensor: &str) {
        let mut t = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        t.done += bytes;
        let tenth = (t.done.saturating_mul(10))
            .checked_div(t.total)
            .unwrap_or(10);
        if tenth > t.said {
            t.said = tenth;
            // Whoever read this may have gone; that is no reason to fail.
            let _ = writeln!(std::io::stderr(), "{:3} %  {tensor}", tenth * 10);
        }
    }

    fn say(&self, _: &str) {}

    fn finish(&self) {}

    fn stopped(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}
