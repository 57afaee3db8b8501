//! How far a conversion is: two bars on a terminal, plain lines elsewhere, always on standard
//! error.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use formats::blocks::BlockType;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Set by a signal, never cleared: the process is to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and the signals that ask for an end stop a conversion between two pieces,
/// so that it can say what is kept. A second one ends the process at once, which costs no more
/// than the pieces at hand.
pub fn stop_on_signals() {
    // An error means that someone else decides about signals: a program that uses this library,
    // or `nohup`, whose ignored signals stay ignored. Then all is as without a handler.
    let _ = ctrlc::try_set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
    });
}

/// A tensor that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes to be read for it.
    pub bytes: u64,
    /// From which type to which: equal kinds take equal time per byte.
    pub kind: (BlockType, BlockType),
    /// Whether an earlier run has done it.
    pub done: bool,
}

/// A piece of a tensor that has been written.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Which of the items.
    pub tensor: usize,
    /// Bytes read for it.
    pub bytes: u64,
    /// What it took one thread.
    pub time: Duration,
}

/// Hears how far it is, and may ask for an end. All calls come from one thread.
pub trait Progress {
    /// These tensors are to be written, about in this order.
    fn start(&self, items: &[Item<'_>]);
    /// A piece is done.
    fn advance(&self, step: &Step);
    /// What is being done now, when it is no tensor.
    fn say(&self, line: &str);
    /// Something to know; it stays to be read.
    fn note(&self, line: &str);
    /// All is done.
    fn finish(&self);
    /// Whether the conversion is to end now, unfinished. Asked often.
    fn stopped(&self) -> bool {
        false
    }
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &[Item<'_>]) {}
    fn advance(&self, _: &Step) {}
    fn say(&self, _: &str) {}
    fn note(&self, _: &str) {}
    fn finish(&self) {}
}

/// The kind that suits standard error; stops on signals once [`stop_on_signals`] was called.
pub fn for_stderr() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bars::default())
    } else {
        Box::new(Lines::default())
    }
}

/// Keeps count, and tells how long the rest will take.
#[derive(Debug, Default)]
struct Account {
    tensors: Vec<Tensor>,
    kinds: BTreeMap<(BlockType, BlockType), Kind>,
    /// Bytes that an earlier run has done with.
    before: u64,
    /// Bytes to be read in this run, and those that are.
    total: u64,
    read: u64,
    begun: Option<Instant>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    kind: (BlockType, BlockType),
    bytes: u64,
    read: u64,
}

/// What one kind of work costs, as seen so far.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    left: u64,
    read: u64,
    /// Seconds of one thread.
    spent: f64,
}

impl Account {
    fn new(items: &[Item<'_>]) -> Self {
        let mut me = Self {
            begun: Some(Instant::now()),
            ..Self::default()
        };
        for item in items {
            me.tensors.push(Tensor {
                name: item.name.to_owned(),
                kind: item.kind,
                bytes: item.bytes,
                read: if item.done { item.bytes } else { 0 },
            });
            if item.done {
                me.before += item.bytes;
            } else {
                me.total += item.bytes;
                me.kinds.entry(item.kind).or_default().left += item.bytes;
            }
        }
        me
    }

    fn advance(&mut self, step: &Step) {
        let Some(tensor) = self.tensors.get_mut(step.tensor) else {
            return;
        };
        tensor.read += step.bytes;
        self.read += step.bytes;
        let kind = self.kinds.entry(tensor.kind).or_default();
        kind.left = kind.left.saturating_sub(step.bytes);
        kind.read += step.bytes;
        kind.spent += step.time.as_secs_f64();
    }

    fn elapsed(&self) -> f64 {
        self.begun.map_or(0.0, |b| b.elapsed().as_secs_f64())
    }

    /// Bytes read per second.
    fn rate(&self) -> f64 {
        self.read as f64 / self.elapsed().max(1e-3)
    }

    /// Seconds that `left` bytes of each kind will take, after `elapsed` seconds. Each kind at its
    /// own pace; one that has not been seen yet at the average pace.
    fn seconds(&self, left: impl Iterator<Item = ((BlockType, BlockType), u64)>) -> Option<f64> {
        let spent: f64 = self.kinds.values().map(|k| k.spent).sum();
        if self.read == 0 || spent <= 0.0 {
            return None;
        }
        let average = spent / self.read as f64;
        let threads = |seconds: f64| seconds * self.elapsed() / spent;
        let pace = |kind| match self.kinds.get(&kind) {
            Some(k) if k.read > 0 => k.spent / k.read as f64,
            _ => average,
        };
        Some(threads(left.map(|(k, n)| n as f64 * pace(k)).sum()))
    }

    /// Seconds until all is done.
    fn eta(&self) -> Option<f64> {
        self.seconds(self.kinds.iter().map(|(k, v)| (*k, v.left)))
    }

    /// Seconds until a tensor is done.
    fn tensor_eta(&self, tensor: &Tensor) -> Option<f64> {
        let left = tensor.bytes.saturating_sub(tensor.read);
        self.seconds(std::iter::once((tensor.kind, left)))
    }
}

/// Seconds as a person says them: `7 s`, `3:07`, `2:03:07`.
fn clock(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else {
        return "?".to_owned();
    };
    let s = seconds.ceil() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02}"),
        (h, m, s) => format!("{h}:{m:02}:{s:02}"),
    }
}

/// One bar for all, one for the tensor at hand.
#[derive(Default)]
struct Bars(RefCell<Option<Drawn>>);

struct Drawn {
    account: Account,
    // Holds the two together.
    both: MultiProgress,
    all: ProgressBar,
    tensor: ProgressBar,
    /// Which tensor is shown.
    shown: usize,
}

impl Progress for Bars {
    fn start(&self, items: &[Item<'_>]) {
        let account = Account::new(items);
        let both = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let bar = |length, template| {
            let bar = both.add(ProgressBar::new(length));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        };
        let all = bar(
            account.before + account.total,
            "{bar:32} {bytes}/{total_bytes}  {wide_msg}",
        );
        let tensor = bar(0, "{bar:32} {bytes}/{total_bytes}  {wide_msg}");
        *self.0.borrow_mut() = Some(Drawn {
            account,
            both,
            all,
            tensor,
            shown: usize::MAX,
        });
    }

    fn advance(&self, step: &Step) {
        let mut drawn = self.0.borrow_mut();
        let Some(d) = drawn.as_mut() else {
            return;
        };
        d.account.advance(step);
        let Some(t) = d.account.tensors.get(step.tensor) else {
            return;
        };
        let rate = HumanBytes(d.account.rate() as u64);
        let left = clock(d.account.eta());
        d.all.set_message(format!("{rate}/s  {left} left"));
        d.all.set_position(d.account.before + d.account.read);
        // The newest tensor; pieces of the one before may still come in.
        if step.tensor >= d.shown || d.shown == usize::MAX {
            if step.tensor != d.shown {
                d.shown = step.tensor;
                d.tensor.set_length(t.bytes);
            }
            let left = clock(d.account.tensor_eta(t));
            d.tensor.set_message(format!("{}  {left}", t.name));
            d.tensor.set_position(t.read);
        }
    }

    fn say(&self, line: &str) {
        if let Some(d) = self.0.borrow().as_ref() {
            d.tensor.set_message(line.to_owned());
        }
    }

    fn note(&self, line: &str) {
        let line = format!("splitconv: {line}");
        match self.0.borrow().as_ref() {
            Some(d) => {
                let _ = d.both.println(line);
            }
            None => tell(&line),
        }
    }

    fn finish(&self) {
        if let Some(d) = self.0.borrow().as_ref() {
            d.tensor.finish_and_clear();
            d.all.finish_and_clear();
        }
    }

    fn stopped(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Writes a line; whoever read this may have gone, and that is no reason to fail.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Lines are at least so far apart …
const SHORTEST: Duration = Duration::from_secs(2);
/// … and at most so far, or a twentieth of the work.
const LONGEST: Duration = Duration::from_secs(30);

/// Plain lines.
#[derive(Default)]
struct Lines(RefCell<Told>);

#[derive(Default)]
struct Told {
    account: Account,
    /// When the last line was written, and how much had been read then.
    last: Option<Instant>,
    read: u64,
}

impl Progress for Lines {
    fn start(&self, items: &[Item<'_>]) {
        let account = Account::new(items);
        *self.0.borrow_mut() = Told {
            last: account.begun,
            account,
            read: 0,
        };
    }

    fn advance(&self, step: &Step) {
        let mut told = self.0.borrow_mut();
        told.account.advance(step);
        let waited = told.last.map_or(Duration::MAX, |l| l.elapsed());
        let a = &told.account;
        let far = (a.read - told.read) * 20 >= a.total || a.read == a.total;
        if waited < SHORTEST || !(far || waited >= LONGEST) {
            return;
        }
        if let Some(t) = a.tensors.get(step.tensor) {
            let done = (a.before + a.read) * 100;
            let percent = done.checked_div(a.before + a.total).unwrap_or(100);
            tell(&format!(
                "{percent:3} %  {:.0} MB/s  {} left  {} ({})",
                a.rate() / 1e6,
                clock(a.eta()),
                t.name,
                clock(a.tensor_eta(t)),
            ));
        }
        told.last = Some(Instant::now());
        told.read = told.account.read;
    }

    fn say(&self, _: &str) {}

    fn note(&self, line: &str) {
        tell(&format!("splitconv: {line}"));
    }

    fn finish(&self) {}

    fn stopped(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_its_own_pace() {
        let (fast, slow) = (
            (BlockType::F16, BlockType::Q8_0),
            (BlockType::F16, BlockType::Q3_K),
        );
        let item = |name, kind, done| Item {
            name,
            bytes: 1000,
            kind,
            done,
        };
        let items = [
            item("old", slow, true),
            item("a", slow, false),
            item("b", fast, false),
            item("c", slow, false),
        ];
        let mut account = Account::new(&items);
        assert_eq!((account.total, account.eta()), (3000, None));
        let step = |tensor, bytes, ms| Step {
            tensor,
            bytes,
            time: Duration::from_millis(ms),
        };
        // Two threads for four seconds.
        account.begun = Instant::now().checked_sub(Duration::from_secs(4));
        account.advance(&step(1, 1000, 7_000));
        account.advance(&step(2, 500, 1_000));
        let near = |found: Option<f64>, wanted: f64| {
            let found = found.unwrap();
            assert!((found - wanted).abs() < 0.1, "{found} is not {wanted}");
        };
        // 500 fast bytes in 1 s of a thread, 1000 slow ones in 7 s.
        near(account.eta(), 4.0);
        near(account.tensor_eta(&account.tensors[2]), 0.5);
        near(account.tensor_eta(&account.tensors[3]), 3.5);
        account.advance(&step(2, 500, 1_000));
        account.advance(&step(3, 1000, 7_000));
        near(account.eta(), 0.0);
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(None), "?");
        assert_eq!(clock(Some(0.2)), "1 s");
        assert_eq!(clock(Some(187.0)), "3:07");
        assert_eq!(clock(Some(7387.0)), "2:03:07");
    }
}
