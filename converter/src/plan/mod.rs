//! `splitconv plan`: the cut, the bits, the codec and the context that are best within the memory
//! of both hosts, a deadline and a bound on harm.
//!
//! | module | what it does |
//! |---|---|
//! | [`flags`] | what a user asks for |
//! | [`hosts`], [`link`], [`codecs`], [`harm`] | what hosts, link, codecs and types cost |
//! | [`tables`] | all of it for this model, at every cut |
//! | [`problem`] | the equations: memory, time, harm of one choice |
//! | [`search`], [`infeasible`] | the best choice; why there is none |
//! | [`answer`], [`text`], [`svg`] | what is said |
//!
//! `docs/planning.md` has the equations and how well they hold.

pub mod answer;
pub mod codecs;
mod error;
pub mod flags;
pub mod harm;
pub mod hosts;
pub mod infeasible;
pub mod link;
pub mod problem;
pub mod search;
mod svg;
pub mod tables;
#[cfg(test)]
mod tests;
mod text;

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use formats::measured::{LayerSensitivity, Profile};
use formats::model::{CHUNK_ROWS, KvType};
use formats::units::Size;

pub use error::PlanError;
pub use text::text;

use answer::{Answer, Rows};
use flags::{KvChoice, PlanArgs, PlanFlags};
use harm::Harm;
use link::{Link, Radio};
use problem::{Limits, Objective, Problem};
use search::Candidate;
use tables::Tables;

use crate::importance::Importance;
use crate::report::{print_json, print_text};
use crate::source::Source;

/// Nats that types and codec may cost where nothing is said.
const MAX_KL: f64 = 0.05;
/// Round trip where nothing is said, milliseconds.
const RTT_MS: f64 = 30.0;
/// The most positions where nothing is said; `splitrun` does not take more unasked either.
const CONTEXT: u64 = 8192;
/// Tokens of a prompt where nothing is said.
const PROMPT: u64 = 512;
/// Rows of the table and of `pareto`.
const PARETO: usize = 24;
/// What a message costs beyond the wire where no profile says it, milliseconds.
const MESSAGE_MS: f64 = 0.3;

/// Plans, and prints the answer.
///
/// # Errors
/// [`PlanError`]; [`PlanError::Infeasible`] after the answer has been printed.
pub fn run(args: &PlanArgs) -> Result<(), Box<dyn Error>> {
    let source = Source::open(&args.model)?;
    let importance = args.imatrix.as_deref().map(Importance::open).transpose()?;
    let names = Names::new(&args.model, args.imatrix.as_deref());
    let planned = plan(&source, importance.as_ref(), &args.flags, &names)?;
    if args.json {
        print_json(&planned.answer)?;
    } else if planned.answer.best.is_some() {
        print_text(&text(&planned))?;
    } else {
        // The error that follows says the rest.
        for line in &planned.answer.assumptions {
            let _ = writeln!(std::io::stderr(), "splitconv: {}", crate::printable(line));
        }
    }
    match &planned.answer.infeasible {
        None => Ok(()),
        Some(why) => Err(PlanError::Infeasible(why.said.clone()).into()),
    }
}

/// The files as they were named.
#[derive(Clone, Debug)]
pub struct Names {
    model: String,
    imatrix: Option<String>,
}

impl Names {
    /// As a command would name them.
    pub fn new(model: &Path, imatrix: Option<&Path>) -> Self {
        let name = |p: &Path| p.display().to_string();
        Self {
            model: name(model),
            imatrix: imatrix.map(name),
        }
    }
}

/// A plan: the numbers, and what they come to.
#[derive(Debug)]
pub struct Planned {
    /// The numbers.
    pub problem: Problem,
    /// What there is to say.
    pub answer: Answer,
    /// The best choice.
    pub best: Option<Candidate>,
}

/// Plans for `source`.
///
/// # Errors
/// [`PlanError`] for flags, files or models that do not go together. When nothing fits that is no
/// error here: [`Answer::infeasible`] says why.
pub fn plan(
    source: &Source,
    importance: Option<&Importance>,
    flags: &PlanFlags,
    names: &Names,
) -> Result<Planned, PlanError> {
    source.check_split(1)?;
    if let Some(importance) = importance {
        importance.check(source)?;
    }
    let mut assumptions = Vec::new();
    let profiles = [
        profile(
            "--edge-profile",
            flags.edge_profile.as_deref(),
            "jetson-xavier-nx",
            &mut assumptions,
        )?,
        profile(
            "--cloud-profile",
            flags.cloud_profile.as_deref(),
            "rtx-a6000",
            &mut assumptions,
        )?,
    ];
    let link = link_of(flags, &mut assumptions)?;
    let (limits, objective) = limits(source, flags, &profiles, &mut assumptions)?;
    let measured = sensitivities(flags, &mut assumptions)?;
    let harm =
        Harm::new(source, measured.as_ref(), importance).map_err(|why| PlanError::OtherModel {
            file: flags
                .sensitivity
                .as_deref()
                .map_or_else(String::new, |p| p.display().to_string()),
            why,
        })?;
    if measured.as_ref().is_none_or(|m| m.codecs.is_empty()) {
        assumptions.push(
            "what codecs cost was not measured on this model: figures of SmolLM2-135M-Instruct stand in (of tcq what calibration found, if it did)"
                .into(),
        );
    }
    let edges = flags.edges.map_or(1, u64::from);
    let kv_types = kv_types(source, flags, &profiles, &mut assumptions)?;
    let tables = Tables::new(
        source,
        importance,
        measured.as_ref(),
        &profiles,
        &harm,
        (edges, CHUNK_ROWS),
        &kv_types,
    )?;
    let cuts = tables.cuts()?;
    let message_ns = profiles
        .iter()
        .filter_map(|p| p.message_ns)
        .fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))));
    let hp = source.hparams();
    let problem = Problem {
        cuts,
        q_width: hp.q_width() as f64,
        link,
        message_ms: message_ns.map_or(MESSAGE_MS, |ns| ns / 1e6),
        edges,
        prompt: prompt(flags, &limits),
        chunk: CHUNK_ROWS,
        limits,
        objective,
        profiles: profiles.clone(),
    };
    let candidates = search::candidates(&problem);
    let best = search::best(&problem, &candidates).copied();
    let chosen = best.map(|b| {
        let (cut, [edge, cloud], _) = problem.parts(&b.choice);
        (cut.split, edge.bits, cloud.bits)
    });
    assumptions.extend(tables.guessed(chosen)?);
    let answer = answer(
        &problem,
        &candidates,
        best,
        &tables,
        &harm,
        names,
        assumptions,
    )?;
    let planned = Planned {
        problem,
        answer,
        best,
    };
    if let (Some(path), true) = (&flags.svg, planned.answer.best.is_some()) {
        std::fs::write(path, svg::draw(&planned)).map_err(|source| PlanError::Write {
            file: path.display().to_string(),
            source,
        })?;
    }
    Ok(planned)
}

/// What types and codecs cost the model, on the text that the plan is for.
fn sensitivities(
    flags: &PlanFlags,
    assumptions: &mut Vec<String>,
) -> Result<Option<LayerSensitivity>, PlanError> {
    let Some(path) = flags.sensitivity.as_deref() else {
        return Ok(None);
    };
    let mut measured = LayerSensitivity::open(path)?;
    match (flags.perplexity, measured.perplexity) {
        (Some(asked), _) => {
            if !measured.read_at(asked) {
                return Err(PlanError::Usage(format!(
                    "--perplexity: {} does not say at what perplexity it was measured; measure anew with `splitrun calibrate --sensitivity`",
                    path.display()
                )));
            }
        }
        (None, Some(own)) => assumptions.push(format!(
            "divergences are those of a text on which the model has a perplexity of {own:.1}, as that of --sensitivity; they go with its logarithm (--perplexity)"
        )),
        (None, None) => {}
    }
    Ok(Some(measured))
}

/// Everything that follows from the numbers.
fn answer(
    problem: &Problem,
    candidates: &[Candidate],
    best: Option<Candidate>,
    tables: &Tables<'_>,
    harm: &Harm,
    names: &Names,
    assumptions: Vec<String>,
) -> Result<Answer, PlanError> {
    let rows = Rows {
        problem,
        model: &names.model,
        imatrix: names.imatrix.as_deref(),
    };
    let mut combinations = 0;
    search::each(problem, |_| combinations += 1);
    let mut answer = Answer {
        best: None,
        pareto: Vec::new(),
        objective: problem.objective.name(),
        assumptions,
        harm: harm.said.clone(),
        harm_measured: harm.is_measured(),
        infeasible: None,
        token_parts: None,
        run: None,
        state: Vec::new(),
        server: None,
        edge_alone: None,
        by_cut: Vec::new(),
        combinations,
    };
    let Some(best) = best else {
        let found = infeasible::why(problem);
        answer.infeasible = Some(answer::why(problem, &found));
        return Ok(answer);
    };
    let (_, [_, cloud], _) = problem.parts(&best.choice);
    let kv_type = cloud.kv_type;
    let whole = tables.alone(cloud.bits, 1, kv_type)?;
    let mut everything = Vec::new();
    for bits in tables::EDGE_BITS {
        everything.push(tables.alone(bits, 0, kv_type)?);
    }
    let row = rows.of(&best);
    answer.run = Some(run_with(&row));
    answer.best = Some(row);
    let front = search::pareto(candidates, &best, PARETO);
    answer.pareto = front.iter().map(|c| rows.of(c)).collect();
    answer.token_parts = Some(answer::parts(&best.outcome));
    answer.state = answer::state(problem, &best.choice);
    answer.server = Some(answer::server(problem, &best, Some(&whole)));
    answer.edge_alone = answer::edge_alone(problem, &everything, best.choice.context);
    answer.by_cut = answer::by_cut(problem, &best.choice);
    Ok(answer)
}

/// Tokens of a prompt, for the time to the first token.
fn prompt(flags: &PlanFlags, limits: &Limits) -> u64 {
    let context = flags.context.map_or(limits.longest, u64::from);
    let default = (context / 2).clamp(1, PROMPT);
    flags.prompt_tokens.map_or(default, u64::from)
}

/// The arguments of `splitrun` for both halves.
fn run_with(row: &answer::Row) -> [Vec<String>; 2] {
    let context = row.context.to_string();
    let words = |all: &[&str]| {
        let mut all: Vec<String> = all.iter().map(|w| (*w).to_owned()).collect();
        if row.kv_type != KvType::F16.name() {
            // Graphics cards keep f16.
            let flags = ["--device", "cpu", "--kv-type", row.kv_type];
            all.extend(flags.map(str::to_owned));
        }
        all
    };
    [
        words(&["--role", "cloud", "-c", &context]),
        words(&["--role", "edge", "-c", &context, "--codec", &row.codec]),
    ]
}

/// The forms of keys and values to choose from.
fn kv_types(
    source: &Source,
    flags: &PlanFlags,
    profiles: &[Profile; 2],
    assumptions: &mut Vec<String>,
) -> Result<Vec<KvType>, PlanError> {
    let head_dim = source.hparams().head_dim;
    let choice = flags.kv_type.unwrap_or(KvChoice::Fixed(KvType::F16));
    let mut types = choice.types();
    if choice == KvChoice::Auto {
        types.retain(|t| t.fits(head_dim));
    } else if let Some(t) = types.iter().find(|t| !t.fits(head_dim)) {
        return Err(PlanError::Usage(format!(
            "--kv-type {t}: heads of {head_dim} values are no whole blocks of 32; use f16"
        )));
    }
    // Of a card, which keeps f16, no profile has threads.
    if profiles.iter().any(|p| p.threads == 0) {
        if choice == KvChoice::Auto {
            types.retain(|t| *t == KvType::F16);
        } else if types.iter().any(|t| *t != KvType::F16) {
            assumptions.push(
                "--kv-type needs processors on both hosts, and a profile here is that of a graphics card: times are the card's; give --edge-profile and --cloud-profile of `splitrun bench --device cpu --profile`"
                    .into(),
            );
        }
    }
    if types.iter().any(|t| *t != KvType::F16) {
        assumptions.push(
            "keys and values in q8_0 and q4_0 cost what they cost SmolLM2-135M-Instruct, and take the time of f16; they need hosts that compute on the processor"
                .into(),
        );
    }
    Ok(types)
}

/// The profile that a flag names, or the derived one that stands for none.
fn profile(
    flag: &'static str,
    given: Option<&Path>,
    default: &str,
    assumptions: &mut Vec<String>,
) -> Result<Profile, PlanError> {
    let name = given.and_then(Path::to_str).unwrap_or(default);
    let found = match (given, hosts::derived(name)) {
        // A file of that name is what was meant.
        (Some(path), _) if path.exists() => Profile::open(path)?,
        (_, Some(profile)) => profile,
        (given, None) => {
            return Err(PlanError::NoProfile {
                flag,
                name: given.map_or(default.to_owned(), |p| p.display().to_string()),
                known: hosts::names(),
            });
        }
    };
    if found.derived {
        let note = found.notes.first().map_or("", String::as_str);
        let by = if given.is_none() { " (by default)" } else { "" };
        assumptions.push(format!("{flag} {name}{by}: {} is {note}", found.machine));
    }
    if found.loaded {
        assumptions.push(format!(
            "{flag} {name}: other work disturbed that measurement; measure again on a quiet machine"
        ));
    }
    Ok(found)
}

/// The link that the flags describe.
fn link_of(flags: &PlanFlags, assumptions: &mut Vec<String>) -> Result<Link, PlanError> {
    let (uplink_bits_per_s, radio) = match (flags.uplink, flags.radio_bandwidth, flags.snr) {
        (Some(rate), _, _) => (rate, None),
        (None, Some(bandwidth_hz), Some(snr)) => {
            let outage = flags.outage.unwrap_or(0.01);
            let radio = Radio {
                bandwidth_hz,
                snr,
                outage,
            };
            let rate = radio.outage_bits_per_s();
            assumptions.push(format!(
                "radio: with probability {} the uplink carries {:.3} Mbit/s or more (Rayleigh fading); times hold as often",
                1.0 - outage,
                rate / 1e6
            ));
            if rate < 1.0 {
                return Err(PlanError::Usage(format!(
                    "a radio of {bandwidth_hz} Hz at a ratio of {snr} with an outage of {outage} carries less than a bit a second; raise --radio-bandwidth, --snr or --outage"
                )));
            }
            (rate, Some(radio))
        }
        _ => {
            return Err(PlanError::Usage(
                "what lies between the halves? Give --uplink 20Mbit/s (and --rtt 30ms), or a radio with --radio-bandwidth and --snr".into(),
            ));
        }
    };
    if flags.rtt.is_none() {
        assumptions.push(format!("--rtt {RTT_MS}ms (by default)"));
    }
    Ok(Link {
        uplink_bits_per_s,
        rtt_ms: flags.rtt.unwrap_or(RTT_MS),
        radio,
    })
}

/// What must hold, and what is best.
fn limits(
    source: &Source,
    flags: &PlanFlags,
    profiles: &[Profile; 2],
    assumptions: &mut Vec<String>,
) -> Result<(Limits, Objective), PlanError> {
    let mut memory =
        |flag: &str, given: Option<u64>, profile: &Profile| match (given, profile.memory_bytes) {
            (Some(bytes), _) => Ok(bytes),
            (None, Some(bytes)) => {
                assumptions.push(format!(
                    "{flag} {} (all that {} has)",
                    Size(bytes),
                    profile.machine
                ));
                Ok(bytes)
            }
            (None, None) => Err(PlanError::Usage(format!(
                "how much memory is there? The profile does not say; give {flag} 4GiB"
            ))),
        };
    let edge_bytes = memory("--edge-memory", flags.edge_memory, &profiles[0])?;
    let cloud_bytes = memory("--cloud-memory", flags.cloud_memory, &profiles[1])?;
    let trained = source.hparams().n_ctx_train as u64;
    let objective = flags.objective.unwrap_or(match flags.context {
        Some(_) => Objective::Speed,
        None => Objective::Context,
    });
    // A prompt that is asked for must fit.
    let least = flags.prompt_tokens.map_or(1, u64::from);
    let context = match (flags.context.map(u64::from), objective) {
        (Some(n), _) if n > trained => {
            return Err(PlanError::Usage(format!(
                "--context {n}: the model was trained for {trained} positions"
            )));
        }
        (Some(n), _) => n,
        (None, Objective::Context) => least.min(trained),
        (None, _) => {
            let n = trained.min(CONTEXT.max(least));
            assumptions.push(format!("--context {n} (by default)"));
            n
        }
    };
    if let Some(prompt) = flags.prompt_tokens.map(u64::from)
        && (prompt > trained || (flags.context.is_some() && prompt > context))
    {
        return Err(PlanError::Usage(format!(
            "--prompt-tokens {prompt} do not fit a context of {}",
            if flags.context.is_some() {
                context
            } else {
                trained
            }
        )));
    }
    if flags.max_kl.is_none() {
        assumptions.push(format!("--max-kl {MAX_KL} (by default)"));
    }
    Ok((
        Limits {
            edge_bytes,
            cloud_bytes,
            deadline_ms: flags.deadline,
            max_kl: Some(flags.max_kl.unwrap_or(MAX_KL)),
            context,
            longest: trained,
            least,
        },
        objective,
    ))
}
