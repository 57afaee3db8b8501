//! `splitrun eval --task`.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::args::Eval;
use super::device::Place;
use super::measure::{executors, place};
use super::roles::note_codec;
use super::{context, note, print_json, print_line};
use crate::measure::Journal;
use crate::measure::task::{
    Answered, Answers, Paired, Pick, Question, Scorer, TaskModel, TaskReport, answer,
    read_questions,
};
use crate::role::{OpenedModel, RunError, open_model};
use crate::text::Tokenizer;

/// How often it says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// A model and all that its answers depend on.
struct Ready {
    model: TaskModel,
    tokenizer: Tokenizer,
    ctx: usize,
    digest: String,
}

pub(super) fn eval_task(args: &Eval, task: &Path) -> Result<(), RunError> {
    let questions = read_questions(task, args.limit.map(usize::from))?;
    let place = place(args)?;
    let ready = open(args, args.model.model.as_deref(), &place)?;
    // Not after minutes of work.
    let other = match &args.compare {
        Some(path) if Journal::looks_like_one(path) => Some(other_of_file(path, &questions)?),
        Some(path)
            if !path.exists()
                && path
                    .extension()
                    .is_some_and(|e| e == "jsonl" || e == "json" || e == "gguf") =>
        {
            return Err(RunError::Request(format!(
                "--compare {}: there is neither a model nor a file of results",
                path.display()
            )));
        }
        _ => None,
    };
    let mut scorer = Scorer::new(&ready.model)?;
    let codec = scorer.codec();
    let mut journal = match &args.results {
        Some(path) => Journal::open(path, &head(&ready, &mut scorer)?)?,
        None => Journal::default(),
    };
    if journal.damaged() > 0 {
        note(&format!(
            "{} damaged lines of the results count for nothing; their questions are run again",
            journal.damaged()
        ));
    }
    let answers = run(&mut scorer, &ready, &questions, &mut journal)?;
    let name = task.file_name().unwrap_or_default().to_string_lossy();
    let mut report = answers.report(&name, &questions, codec);
    report.compare = match (&args.compare, other) {
        (None, _) => None,
        (Some(path), Some(picks)) => Some(paired(path, &answers, &picks, &questions)),
        (Some(path), None) => {
            note(&format!("now {}", path.display()));
            let other = open(args, Some(path), &place)?;
            let mut scorer = Scorer::new(&other.model)?;
            let of_other = run(&mut scorer, &other, &questions, &mut Journal::default())?;
            let picks = of_other.picks(&questions);
            Some(paired(path, &answers, &picks, &questions))
        }
    };
    if args.json {
        return print_json(&report);
    }
    print(&report)
}

fn paired(path: &Path, answers: &Answers, other: &[Pick], questions: &[Question]) -> Paired {
    let name = path.display().to_string();
    Paired::of(&name, &answers.picks(questions), other, questions)
}

fn open(args: &Eval, path: Option<&Path>, place: &Place) -> Result<Ready, RunError> {
    let model = open_model(path)?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let cut = match &model {
        OpenedModel::Whole { .. } => None,
        OpenedModel::Pair { edge, .. } => edge.boundary.clone(),
    };
    match (&args.codec, &model) {
        (Some(_), OpenedModel::Whole { .. }) => {
            note("an unsplit model has no boundary: the codec is ignored");
        }
        (Some(codec), OpenedModel::Pair { .. }) => note_codec(codec, cut.as_ref()),
        (None, _) => {}
    }
    let digest = match args.results {
        Some(_) => digest(&model)?,
        None => String::new(),
    };
    let model = TaskModel {
        parts: executors(model, place)?,
        codec: args.codec,
        cut,
    };
    let first =
        (model.parts.first()).ok_or_else(|| RunError::Request("a model without parts".into()))?;
    let asked = args.ctx.and_then(|n| u32::try_from(n.get()).ok());
    Ok(Ready {
        ctx: context(asked, first.hparams()),
        model,
        tokenizer,
        digest,
    })
}

/// A hash of the model's files.
pub(super) fn digest(model: &OpenedModel) -> Result<String, RunError> {
    let sets = match model {
        OpenedModel::Whole { set, .. } => vec![set],
        OpenedModel::Pair { edge, cloud } => vec![&edge.set, &cloud.set],
    };
    let mut all = blake3::Hasher::new();
    for file in sets.iter().flat_map(|s| s.files()) {
        let path = file.path();
        let io = || RunError::io(path.display().to_string());
        let mut hash = blake3::Hasher::new();
        hash.update_reader(File::open(path).map_err(io())?)
            .map_err(io())?;
        all.update(hash.finalize().as_bytes());
    }
    Ok(all.finalize().to_hex()[..32].to_owned())
}

/// What results in one file have in common.
fn head(
    ready: &Ready,
    scorer: &mut Scorer<'_>,
) -> Result<Map<String, serde_json::Value>, RunError> {
    let mut head = Map::new();
    head.insert("measures".into(), json!("task"));
    head.insert("model".into(), json!(ready.digest));
    head.insert("codec".into(), json!(scorer.codec()));
    head.insert("arithmetic".into(), json!(scorer.fingerprint()?));
    head.insert("ctx".into(), json!(ready.ctx));
    Ok(head)
}

fn run(
    scorer: &mut Scorer<'_>,
    ready: &Ready,
    questions: &[Question],
    journal: &mut Journal,
) -> Result<Answers, RunError> {
    let start = Instant::now();
    let mut said = start;
    let held = questions
        .iter()
        .filter(|q| journal.get::<Answered>(&q.key()).is_some());
    let held = held.count();
    let mut progress = |done: usize, of: usize| {
        if done < of && said.elapsed() < SAY_EVERY {
            return;
        }
        said = Instant::now();
        let each = start.elapsed().as_secs_f64() / done.saturating_sub(held).max(1) as f64;
        note(&format!(
            "question {done} of {of}, {:.0} s left",
            each * (of - done) as f64
        ));
    };
    answer(
        scorer,
        &ready.tokenizer,
        questions,
        ready.ctx,
        journal,
        &mut progress,
    )
}

/// The answers that a file of results has to `questions`.
fn other_of_file(path: &Path, questions: &[Question]) -> Result<Vec<Pick>, RunError> {
    let (head, journal) = Journal::read(path)?;
    if head.get("measures") != Some(&json!("task")) {
        return Err(RunError::Request(format!(
            "{}: these are no results of questions; --compare takes what --results wrote",
            path.display()
        )));
    }
    let mut missing = 0;
    let mut picks = Vec::new();
    for q in questions {
        let found: Option<Answered> = journal.get(&q.key());
        match found.filter(|a| a.logprobs.len() == q.choices.len()) {
            Some(a) => picks.push(a.pick(q)),
            None => missing += 1,
        }
    }
    if missing > 0 {
        return Err(RunError::Request(format!(
            "{}: it lacks {missing} of the {} questions; run the other model on the same file first",
            path.display(),
            questions.len()
        )));
    }
    Ok(picks)
}

fn print(r: &TaskReport) -> Result<(), RunError> {
    let share = |p: f64, e: Option<f64>| match e {
        Some(e) => format!("{:.2} % ± {:.2}", p * 100.0, e * 100.0),
        None => format!("{:.2} %", p * 100.0),
    };
    print_line(&format!(
        "{}: accuracy {}, per byte {}, over {} questions{}{}",
        r.task,
        share(r.accuracy, r.stderr),
        share(r.accuracy_norm, r.stderr_norm),
        r.n,
        match r.resumed {
            0 => String::new(),
            n => format!(", {n} of them from the file of results"),
        },
        match r.truncated {
            0 => String::new(),
            n => format!(", {n} without their beginning"),
        },
    ))?;
    if let (Some(codec), Some(bytes)) = (&r.codec, r.bytes_per_token) {
        print_line(&format!("codec {codec}: {bytes:.1} bytes/token"))?;
    }
    let Some(p) = &r.compare else { return Ok(()) };
    for (what, c) in [("accuracy", &p.sum), ("per byte", &p.norm)] {
        print_line(&format!(
            "{what} less that of {} ({:.2} %): {:+.2} % ({:+.2} to {:+.2} with 95 %); only here right {}, \
             only there {}; McNemar p {:.3} exact, {:.3} mid",
            p.other,
            c.accuracy_other * 100.0,
            c.difference * 100.0,
            c.difference_low * 100.0,
            c.difference_high * 100.0,
            c.only_this,
            c.only_other,
            c.mcnemar_exact_p,
            c.mcnemar_mid_p
        ))?;
    }
    print_line(&format!(
        "both take the same choice in {} of {} questions",
        p.same_answer, r.n
    ))
}
