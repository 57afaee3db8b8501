//! `splitrun --role edge | cloud | both`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use formats::gguf::Metadata;
use formats::pair::HalfRole;
use formats::wire::{Codec, CutStatistics};

use super::args::{LinkArgs, Role, Run};
use super::device::{Opened, Place};
use super::memory::Held;
use super::{context, note, print_json, print_line};
use crate::exec::Executor;
use crate::link::{
    EdgeLink, EdgeOptions, EdgeTls, Interrupt, LinkError, Server, ServerOptions, ServerTls, Token,
};
use crate::role::{
    Back, BackSession, Chat, CloudBackend, GenerateOptions, Generation, Generator, HalfFile,
    LocalBack, Open, OpenedModel, RemoteBack, RunError, SessionOptions, Stop, chat_loop, open_half,
    open_model,
};
use crate::text::{ChatTemplate, Message, Sampler, Tokenizer};

/// Set by Ctrl-C; generations look at it between tokens, the link while it waits.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The first Ctrl-C ends a generation in order, the second the program. Other signals keep their
/// meaning.
fn catch_interrupts() -> Result<(), RunError> {
    use signal_hook::{consts::SIGINT, flag};
    // In this order: the first press finds the flag unset, the second finds it set.
    flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&INTERRUPTED))
        .and_then(|_| flag::register(SIGINT, Arc::clone(&INTERRUPTED)))
        .map(drop)
        .map_err(RunError::io("catching Ctrl-C"))
}

pub(super) fn cloud(run: &Run) -> Result<(), RunError> {
    let half = open_half(run.model.model.as_deref(), HalfRole::Cloud)?;
    let link = &run.link;
    let tls = match (&link.tls_cert, &link.tls_key) {
        (Some(cert), Some(key)) => Some(ServerTls::from_files(cert, key)?),
        _ => None,
    };
    let mut options = ServerOptions {
        tls,
        token: token(link)?,
        insecure: link.insecure,
        max_sessions: link.max_sessions.get(),
        ..ServerOptions::default()
    };
    let contract = half.contract;
    let place = Place::open(&run.compute)?;
    let n_ctx = context(run.ctx, &half.part.hparams);
    let mut kv_budget = None;
    if let Some(limit) = run.memory_limit {
        let held = held(run, &half, &place, n_ctx, Role::Cloud);
        let most = link.max_sessions.get();
        let sessions = held.check(limit, most as u64)? as usize;
        if sessions < most {
            note(&format!(
                "--memory-limit: room for {sessions} sessions of {n_ctx} positions"
            ));
        }
        // A session has more than its cache.
        options.max_sessions = sessions;
        kv_budget = Some(held.kv_bytes().saturating_mul(sessions));
    }
    let server = Server::bind(&link.listen, options)?;
    let Opened { exec, gpu, .. } = place.opened(half.part)?;
    note(&format!(
        "{}: layers {}..{} of pair {}, on {}, {} threads",
        half.path.display(),
        exec.layers().start,
        exec.layers().end,
        contract.pair_id,
        place.kernels(gpu.as_ref()),
        place.threads()
    ));
    note(&format!("listening on {}", server.local_addr()));
    let mut backend =
        CloudBackend::new(exec, contract, n_ctx).with_boundary(half.boundary.as_ref());
    if let Some(bytes) = kv_budget {
        backend = backend.with_kv_limit(bytes);
    }
    Ok(server.run(Arc::new(backend))?)
}

/// What the process of one half holds.
fn held<'a>(run: &Run, half: &'a HalfFile, place: &Place, n_ctx: usize, role: Role) -> Held<'a> {
    Held {
        role,
        path: &half.path,
        hparams: &half.part.hparams,
        layers: half.part.layers.clone(),
        sets: vec![&half.set],
        n_ctx,
        kv_type: run.compute.kv_type,
        threads: place.threads(),
        chunk: run.prompt.chunk.get(),
    }
}

fn token(link: &LinkArgs) -> Result<Option<Token>, RunError> {
    Ok(link
        .token_file
        .as_deref()
        .map(Token::from_file)
        .transpose()?)
}

pub(super) fn edge(run: &Run) -> Result<(), RunError> {
    let half = open_half(run.model.model.as_deref(), HalfRole::Edge)?;
    let place = Place::open(&run.compute)?;
    let n_ctx = context(run.ctx, &half.part.hparams);
    if let Some(limit) = run.memory_limit {
        held(run, &half, &place, n_ctx, Role::Edge).check(limit, 1)?;
    }
    let text = TextSide::new(half.set.metadata(), run)?;
    let (contract, cut) = (half.contract, half.boundary);
    let exec = place.executor(half.part)?;
    let link = &run.link;
    note_codec(&link.codec, cut.as_ref());
    let tls = match (&link.tls_ca, link.tls || link.tls_name.is_some()) {
        (Some(ca), _) => Some(EdgeTls::from_ca_file(ca)?),
        (None, true) => Some(EdgeTls::default()),
        (None, false) => None,
    };
    let options = EdgeOptions {
        tls: tls.map(|t| EdgeTls {
            server_name: link.tls_name.clone(),
            ..t
        }),
        token: token(link)?,
        insecure: link.insecure,
        reply_timeout: Duration::from_secs(link.timeout),
        interrupt: Some(Interrupt::new(|| INTERRUPTED.load(Ordering::Relaxed))),
        ..EdgeOptions::new(link.cloud.clone())
    };
    let mut open = |prompt: &[u32]| {
        let session = session(run, prompt)?;
        let link = EdgeLink::connect(options.clone())?;
        let back = RemoteBack::open(
            link,
            contract,
            &run.link.codec,
            cut.as_ref(),
            n_ctx,
            session,
        )?;
        Ok(Generator::new(Arc::clone(&exec), back, n_ctx)?)
    };
    match text.work(run)? {
        Work::Chat(template) => chat(run, &text.tokenizer, template, &mut open),
        Work::Once(ids) => {
            let generator = once(run, &text.tokenizer, &ids, &mut open)?;
            match generator.into_back().close() {
                // The user has asked to leave at once; the cloud sees the stream end either way.
                Err(RunError::Link(LinkError::Interrupted { .. })) => Ok(()),
                closed => closed,
            }
        }
    }
}

pub(super) fn both(run: &Run) -> Result<(), RunError> {
    if run.prompt.link_trace.is_some() {
        return Err(RunError::Usage(
            "--link-trace: one process has no link; it is for --role edge".into(),
        ));
    }
    let model = open_model(run.model.model.as_deref())?;
    let place = Place::open(&run.compute)?;
    let (path, hparams, sets) = match &model {
        OpenedModel::Whole { path, part, set } => (path, &part.hparams, vec![&**set]),
        OpenedModel::Pair { edge, cloud } => {
            let sets = vec![&*edge.set, &*cloud.set];
            (&edge.path, &edge.part.hparams, sets)
        }
    };
    let n_ctx = context(run.ctx, hparams);
    if let Some(limit) = run.memory_limit {
        let held = Held {
            role: Role::Both,
            path,
            hparams,
            layers: 0..hparams.n_layer,
            sets,
            n_ctx,
            kv_type: run.compute.kv_type,
            threads: place.threads(),
            chunk: run.prompt.chunk.get(),
        };
        held.check(limit, 1)?;
    }
    let text = TextSide::new(model.metadata(), run)?;
    let mut cut = None;
    let (front, back): (Arc<dyn Executor>, Option<Arc<dyn Executor>>) = match model {
        OpenedModel::Whole { part, .. } => (place.executor(*part)?, None),
        OpenedModel::Pair { edge, cloud } => {
            cut = edge.boundary;
            note_codec(&run.link.codec, cut.as_ref());
            let back = place.executor(cloud.part)?;
            (place.executor(edge.part)?, Some(back))
        }
    };
    let width = front.hparams().n_embd;
    let mut open = |prompt: &[u32]| {
        let session = session(run, prompt)?;
        let (session, codec) = match &back {
            Some(back) => {
                let codec = Some(run.link.codec);
                (BackSession::new(Arc::clone(back), n_ctx, session)?, codec)
            }
            None => (BackSession::head_only(Arc::clone(&front), session), None),
        };
        let back = LocalBack::new(session, codec, cut.as_ref(), width, n_ctx);
        Ok(Generator::new(Arc::clone(&front), back, n_ctx)?)
    };
    match text.work(run)? {
        Work::Chat(template) => chat(run, &text.tokenizer, template, &mut open),
        Work::Once(ids) => once(run, &text.tokenizer, &ids, &mut open).map(drop),
    }
}

/// Says what `auto` takes, and whether its bound is more than a wish.
pub(super) fn note_codec(codec: &Codec, cut: Option<&CutStatistics>) {
    let Codec::Auto { max_kl } = codec else {
        return;
    };
    let taken = codec.resolve(cut);
    note(&match taken {
        Codec::Tcq(_) => {
            format!(
                "auto: {taken} or finer, which calibration predicts to keep the mean KL below {max_kl}"
            )
        }
        _ => format!(
            "auto: {taken}; whether that keeps the mean KL below {max_kl} is unproved, because the pair \
             does not say what a step costs at this cut: run `splitrun calibrate` on the model and give \
             its file to `splitconv --imatrix`"
        ),
    });
}

/// How a session samples, with the ids that a repeat penalty on `prompt` needs.
fn session(run: &Run, prompt: &[u32]) -> Result<SessionOptions, RunError> {
    let sampling = run.sampling.params().map_err(RunError::Usage)?;
    let tail_ids = Sampler::new(sampling).penalised(prompt).to_vec();
    Ok(SessionOptions {
        sampling,
        top_logprobs: usize::from(run.prompt.top_logprobs),
        tail_ids,
    })
}

/// The tokenizer of a model, and its chat template where one is needed: a template that cannot be
/// read is no reason to refuse a raw prompt.
struct TextSide {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

/// What is to be done with the model.
enum Work<'a> {
    /// These ids go in, text comes out.
    Once(Vec<u32>),
    /// A conversation at the terminal.
    Chat(&'a ChatTemplate),
}

impl TextSide {
    fn new(metadata: &Metadata, run: &Run) -> Result<Self, RunError> {
        let template = if run.prompt.chat || wants_chat(run) {
            let template = ChatTemplate::from_metadata(metadata)?;
            if template.is_fallback() {
                note("the model has no chat template; using ChatML");
            }
            Some(template)
        } else {
            None
        };
        Ok(Self {
            tokenizer: Tokenizer::from_metadata(metadata)?,
            template,
        })
    }

    fn work(&self, run: &Run) -> Result<Work<'_>, RunError> {
        let p = &run.prompt;
        if let (true, Some(template)) = (wants_chat(run), &self.template) {
            if p.json || p.stats_json.is_some() || p.link_trace.is_some() {
                return Err(RunError::Usage(
                    "--json and --stats-json need a prompt (--prompt or --file)".into(),
                ));
            }
            return Ok(Work::Chat(template));
        }
        let text = match (&p.prompt, &p.file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => {
                // As llama.cpp: an editor's last line end is not part of the prompt.
                let text = read_text(file)?;
                text.strip_suffix('\n').map_or(text.clone(), str::to_owned)
            }
            (None, None) => {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .map_err(RunError::io("reading the prompt from standard input"))?;
                text
            }
        };
        let ids = match &self.template {
            Some(template) => {
                let mut messages: Vec<Message> = Vec::new();
                messages.extend(p.system.as_deref().map(|s| Message::new("system", s)));
                messages.push(Message::new("user", &text));
                template.render(&self.tokenizer, &messages, true)?
            }
            None => self.tokenizer.encode_prompt(&text),
        };
        Ok(Work::Once(ids))
    }
}

fn wants_chat(run: &Run) -> bool {
    run.prompt.prompt.is_none() && run.prompt.file.is_none() && std::io::stdin().is_terminal()
}

fn read_text(path: &Path) -> Result<String, RunError> {
    std::fs::read_to_string(path).map_err(RunError::io(path.display().to_string()))
}

fn generate_options(run: &Run) -> GenerateOptions {
    let p = &run.prompt;
    GenerateOptions {
        max_tokens: usize::try_from(p.predict).ok(),
        chunk: p.chunk.get(),
        ignore_eos: p.ignore_eos,
    }
}

fn chat<B: Back>(
    run: &Run,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    open: Open<'_, B>,
) -> Result<(), RunError> {
    catch_interrupts()?;
    let chat = Chat {
        tokenizer,
        template,
        system: run.prompt.system.as_deref(),
        options: &generate_options(run),
        stop: &INTERRUPTED,
    };
    chat_loop(&chat, open)
}

/// One generation, printed as it is made or as JSON.
fn once<B: Back>(
    run: &Run,
    tokenizer: &Tokenizer,
    ids: &[u32],
    open: Open<'_, B>,
) -> Result<Generator<B>, RunError> {
    let p = &run.prompt;
    catch_interrupts()?;
    let mut generator = open(ids)?;
    let mut unwritten = None;
    let mut print = |piece: &str| {
        if !p.json && unwritten.is_none() {
            let mut out = std::io::stdout().lock();
            let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            if let Err(e) = written {
                // Nobody can read any more: stop at the next token.
                unwritten = Some(e);
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        }
    };
    let options = generate_options(run);
    let done = generator.generate(tokenizer, ids, &options, &INTERRUPTED, &mut print)?;
    match unwritten {
        // `| head` has read enough.
        Some(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        Some(e) => return Err(RunError::io("standard output")(e)),
        None if p.json => print_json(&done)?,
        None => print_line("")?,
    }
    if done.stop == Stop::Context {
        let n = generator.n_ctx();
        note(&format!(
            "stopped: the context of {n} positions is full; raise it with -c"
        ));
    }
    if let Some(path) = &p.stats_json {
        write_stats(path, &done)?;
    }
    if let (Some(path), Some(controller)) = (&p.link_trace, generator.back().controller()) {
        std::fs::write(path, controller.trace())
            .map_err(RunError::io(path.display().to_string()))?;
    }
    Ok(generator)
}

fn write_stats(path: &Path, done: &Generation) -> Result<(), RunError> {
    let text = serde_json::to_string(done)
        .map_err(|e| RunError::Request(format!("cannot write JSON: {e}")))?;
    std::fs::write(path, text + "\n").map_err(RunError::io(path.display().to_string()))
}
