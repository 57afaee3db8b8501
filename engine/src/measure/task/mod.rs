//! Multiple-choice questions, answered by likelihood.
//!
//! A question is a text and some ways to go on. The model answers with the choice whose tokens are
//! the likeliest after the question, all together (`accuracy`) or per byte of the choice
//! (`accuracy_norm`). docs/scales.md says how texts are joined and cut into tokens.
//!
//! | file | idea |
//! |---|---|
//! | `question` | files of questions, read with bounds |
//! | `published` | the layouts in which their authors publish the well-known sets |
//! | `tokens` | where the question ends and the choice begins |
//! | `score` | log-probabilities of choices, several questions at a time |
//! | `paired` | two models on the same questions |

mod paired;
mod published;
mod question;
mod score;
mod tokens;

use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use self::paired::{Paired, PairedCounts};
pub use self::question::{Question, read_questions};
pub use self::score::{Scorer, TaskModel};

use super::journal::Journal;
use crate::role::RunError;
use crate::text::Tokenizer;

/// What is known of one question once it was run; its key in a journal is
/// [`Question::key`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Summed log-probability of each choice, nats.
    pub logprobs: Vec<f64>,
    /// Tokens scored of each choice.
    pub tokens: Vec<u32>,
    /// Whether the question's beginning was left out because the context is shorter.
    pub truncated: bool,
    /// Rows that crossed the boundary of a pair.
    pub rows: u64,
    /// Bytes of their frames.
    pub frame_bytes: u64,
}

/// Which choices a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pick {
    /// The one with the highest summed log-probability, the first among equals.
    pub sum: usize,
    /// The one with the highest log-probability per byte of its text.
    pub per_byte: usize,
}

impl Answered {
    /// The answers to `question`.
    pub fn pick(&self, question: &Question) -> Pick {
        let per_byte = self.logprobs.iter().zip(&question.choices);
        Pick {
            sum: first_largest(self.logprobs.iter().copied()),
            per_byte: first_largest(per_byte.map(|(l, c)| l / c.len().max(1) as f64)),
        }
    }

    /// Whether it can be what a run of `question` gave.
    fn fits(&self, question: &Question) -> bool {
        let n = question.choices.len();
        self.logprobs.len() == n
            && self.tokens.len() == n
            && self.logprobs.iter().all(|l| l.is_finite())
    }
}

fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, v) in values.enumerate() {
        if v > best.1 {
            best = (i, v);
        }
    }
    best.0
}

/// A share of right answers and its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Right answers by questions.
    pub mean: f64,
    /// √(p (1 − p) / (n − 1)); `null` for a single question.
    pub stderr: Option<f64>,
}

impl Share {
    /// Of `right` answers among `n`, at least one.
    pub fn of(right: usize, n: usize) -> Self {
        let mean = right as f64 / n.max(1) as f64;
        Self {
            mean,
            stderr: (n > 1).then(|| (mean * (1.0 - mean) / (n - 1) as f64).sqrt()),
        }
    }
}

/// What a model made of a set of questions.
#[derive(Clone, Debug, Serialize)]
pub struct TaskReport {
    /// The file's name.
    pub task: String,
    /// Questions.
    pub n: usize,
    /// Share of right answers by summed log-probability.
    pub accuracy: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Share of right answers by log-probability per byte.
    pub accuracy_norm: f64,
    /// Its standard error.
    pub stderr_norm: Option<f64>,
    /// The codec at the boundary, `auto` resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// Mean bytes of a row's frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<f64>,
    /// Questions whose beginning was left out because the context is shorter.
    pub truncated: usize,
    /// Questions whose results were in the journal already.
    pub resumed: usize,
    /// Tokens run.
    pub tokens: usize,
    /// Time of it, in seconds.
    pub seconds: f64,
    /// Against another model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare: Option<Paired>,
    /// The choices taken, question by question: `[sum, per_byte]`.
    pub answers: Vec<[usize; 2]>,
}

/// The answers of one model to all questions, in their order.
#[derive(Clone, Debug)]
pub struct Answers {
    /// One for each question.
    pub all: Vec<Answered>,
    /// How many of them were in the journal.
    pub resumed: usize,
    /// Tokens run.
    pub tokens: usize,
    /// Time of it, in seconds.
    pub seconds: f64,
}

/// Answers `questions` with `scorer`; those that `journal` has are not run again. `progress`
/// hears how many are done.
///
/// # Errors
/// When a question does not fit the model's context, a part refuses, a score is not finite, or
/// the journal cannot be written.
pub fn answer(
    scorer: &mut Scorer<'_>,
    tokenizer: &Tokenizer,
    questions: &[Question],
    ctx: usize,
    journal: &mut Journal,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Answers, RunError> {
    let start = Instant::now();
    let keys: Vec<String> = questions.iter().map(Question::key).collect();
    let held = |journal: &Journal, i: usize| {
        let mut found: Answered = journal.get(&keys[i])?;
        found
            .logprobs
            .iter_mut()
            .for_each(|l| *l = score::rounded(*l));
        found.fits(&questions[i]).then_some(found)
    };
    let mut all: Vec<Option<Answered>> = (0..questions.len()).map(|i| held(journal, i)).collect();
    let resumed = all.iter().flatten().count();
    let mut pending = Vec::new();
    for (i, q) in questions.iter().enumerate() {
        if all[i].is_none() {
            pending.push((i, tokens::cut(tokenizer, q, ctx)?));
        }
    }
    let longest = pending.iter().map(|(_, c)| c.longest()).max().unwrap_or(1);
    scorer.reserve(longest)?;
    let (mut done, mut tokens) = (resumed, 0);
    for group in pending.chunks(scorer.batch()) {
        let cuts: Vec<_> = group.iter().map(|(_, c)| c).collect();
        for ((i, cut), answered) in group.iter().zip(scorer.run(&cuts)?) {
            if !answered.fits(&questions[*i]) {
                return Err(RunError::Request(format!(
                    "the log-probabilities of question {} ({}) are not finite; the model is damaged",
                    i + 1,
                    questions[*i].start()
                )));
            }
            tokens += cut.tokens();
            journal.put(&keys[*i], &answered)?;
            all[*i] = Some(answered);
        }
        done += group.len();
        progress(done, questions.len());
    }
    Ok(Answers {
        all: all.into_iter().flatten().collect(),
        resumed,
        tokens,
        seconds: start.elapsed().as_secs_f64(),
    })
}

impl Answers {
    /// The choices taken.
    pub fn picks(&self, questions: &[Question]) -> Vec<Pick> {
        let each = self.all.iter().zip(questions);
        each.map(|(a, q)| a.pick(q)).collect()
    }

    /// The report on `questions`; `codec` is the one at the boundary, if any.
    pub fn report(&self, task: &str, questions: &[Question], codec: Option<String>) -> TaskReport {
        let picks = self.picks(questions);
        let n = questions.len();
        let right = |f: fn(&Pick) -> usize| {
            let each = picks.iter().zip(questions);
            Share::of(each.filter(|(p, q)| f(p) == q.gold).count(), n)
        };
        let (sum, norm) = (right(|p| p.sum), right(|p| p.per_byte));
        let rows: u64 = self.all.iter().map(|a| a.rows).sum();
        let bytes: u64 = self.all.iter().map(|a| a.frame_bytes).sum();
        TaskReport {
            task: task.to_owned(),
            n,
            accuracy: sum.mean,
            stderr: sum.stderr,
            accuracy_norm: norm.mean,
            stderr_norm: norm.stderr,
            bytes_per_token: codec
                .as_ref()
                .filter(|_| rows > 0)
                .map(|_| bytes as f64 / rows as f64),
            codec,
            truncated: self.all.iter().filter(|a| a.truncated).count(),
            resumed: self.resumed,
            tokens: self.tokens,
            seconds: self.seconds,
            compare: None,
            answers: picks.iter().map(|p| [p.sum, p.per_byte]).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_favours_short_choices_and_bytes_do_not() {
        let question = Question {
            query: "q".into(),
            choices: vec!["ab".into(), "abcdefgh".into(), "xy".into()],
            gold: 1,
        };
        let answered = Answered {
            logprobs: vec![-2.0, -4.0, -2.0],
            tokens: vec![1, 3, 1],
            truncated: false,
            rows: 0,
            frame_bytes: 0,
        };
        let pick = answered.pick(&question);
        assert_eq!((pick.sum, pick.per_byte), (0, 1));
        assert!(answered.fits(&question));
        let share = Share::of(3, 4);
        assert_eq!(share.mean, 0.75);
        assert!((share.stderr.unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(Share::of(1, 1).stderr, None);
    }
}
