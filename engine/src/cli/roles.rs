//! `splitrun --role edge | cloud | both`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use formats::gguf::Metadata;
use formats::pair::HalfRole;

use super::args::{LinkArgs, Run};
use super::{context, executor, print_json};
use crate::exec::Executor;
use crate::link::{EdgeLink, EdgeOptions, EdgeTls, Server, ServerOptions, ServerTls, Token};
use crate::role::{
    Back, BackSession, CloudBackend, GenerateOptions, Generation, Generator, LocalBack,
    OpenedModel, RemoteBack, RunError, SessionOptions, Stop, chat_loop, open_half, open_model,
};
use crate::text::{ChatTemplate, Message, Tokenizer};

/// Set by Ctrl-C; generations look at it between tokens.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C ends a generation in order, the second the program.
fn catch_interrupts() -> Result<(), RunError> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .map_err(|e| RunError::Request(format!("cannot catch Ctrl-C: {e}")))
}

pub(super) fn cloud(run: &Run) -> Result<(), RunError> {
    let half = open_half(run.model.model.as_deref(), HalfRole::Cloud)?;
    let link = &run.link;
    let tls = match (&link.tls_cert, &link.tls_key) {
        (Some(cert), Some(key)) => Some(ServerTls::from_files(cert, key)?),
        _ => None,
    };
    let options = ServerOptions {
        tls,
        token: token(link)?,
        insecure: link.insecure,
        max_sessions: link.max_sessions.get(),
        ..ServerOptions::default()
    };
    let server = Server::bind(&link.listen, options)?;
    let contract = half.contract;
    let exec = executor(half.part, &run.compute)?;
    let n_ctx = context(run.ctx.map(usize::from), &*exec);
    eprintln!(
        "{}: layers {}..{} of pair {}, {} threads",
        half.path.display(),
        exec.layers().start,
        exec.layers().end,
        contract.pair_id,
        exec.threads()
    );
    eprintln!("listening on {}", server.local_addr());
    Ok(server.run(Arc::new(CloudBackend::new(exec, contract, n_ctx)))?)
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
    let text = TextSide::new(half.set.metadata(), run)?;
    let contract = half.contract;
    let exec = executor(half.part, &run.compute)?;
    let n_ctx = context(run.ctx.map(usize::from), &*exec);
    let link = &run.link;
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
        ..EdgeOptions::new(link.cloud.clone())
    };
    let work = text.work(run)?;
    let edge_link = EdgeLink::connect(options)?;
    let back = RemoteBack::open(&edge_link, contract, &link.codec, n_ctx, work.session(run)?)?;
    let mut generator = Generator::new(exec, back, n_ctx)?;
    catch_interrupts()?;
    let outcome = work.run(run, &text, &mut generator);
    // After a failure the stream is gone; closing it would only hide the cause.
    outcome.and_then(|()| generator.into_back().close())
}

pub(super) fn both(run: &Run) -> Result<(), RunError> {
    let model = open_model(run.model.model.as_deref())?;
    let text = TextSide::new(model.metadata(), run)?;
    let work = text.work(run)?;
    let session = work.session(run)?;
    let (front, back): (Arc<dyn Executor>, LocalBack) = match model {
        OpenedModel::Whole { part, .. } => {
            let exec = executor(*part, &run.compute)?;
            let n_ctx = context(run.ctx.map(usize::from), &*exec);
            let width = exec.hparams().n_embd;
            let head: Arc<dyn Executor> = Arc::clone(&exec) as _;
            (
                exec,
                LocalBack::new(BackSession::head_only(head, session), None, width, n_ctx),
            )
        }
        OpenedModel::Pair { edge, cloud } => {
            let front = executor(edge.part, &run.compute)?;
            let exec = executor(cloud.part, &run.compute)?;
            let n_ctx = context(run.ctx.map(usize::from), &*front);
            let width = exec.hparams().n_embd;
            let session = BackSession::new(exec, n_ctx, session)?;
            let codec = Some(run.link.codec);
            (front, LocalBack::new(session, codec, width, n_ctx))
        }
    };
    let n_ctx = back.n_ctx();
    let mut generator = Generator::new(front, back, n_ctx)?;
    catch_interrupts()?;
    work.run(run, &text, &mut generator)
}

/// Tokenizer and chat template of a model.
struct TextSide {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

/// What is to be done with the model.
enum Work {
    /// These ids go in, text comes out.
    Once(Vec<u32>),
    /// A conversation at the terminal.
    Chat,
}

impl TextSide {
    fn new(metadata: &Metadata, run: &Run) -> Result<Self, RunError> {
        let template = ChatTemplate::from_metadata(metadata)?;
        if template.is_fallback() && (run.prompt.chat || wants_chat(run)) {
            eprintln!("the model has no chat template; using ChatML");
        }
        Ok(Self {
            tokenizer: Tokenizer::from_metadata(metadata)?,
            template,
        })
    }

    fn work(&self, run: &Run) -> Result<Work, RunError> {
        let p = &run.prompt;
        if wants_chat(run) {
            if p.json {
                return Err(RunError::Request(
                    "--json needs a prompt (--prompt or --file)".into(),
                ));
            }
            return Ok(Work::Chat);
        }
        let text = match (&p.prompt, &p.file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) => read_text(file)?,
            (None, None) => {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .map_err(RunError::io("reading the prompt from standard input"))?;
                text
            }
        };
        let ids = if p.chat {
            let mut messages: Vec<Message> = Vec::new();
            messages.extend(p.system.as_deref().map(|s| Message::new("system", s)));
            messages.push(Message::new("user", &text));
            self.template.render(&self.tokenizer, &messages, true)?
        } else {
            self.tokenizer.encode_prompt(&text)
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

impl Work {
    fn session(&self, run: &Run) -> Result<SessionOptions, RunError> {
        let sampling = run.sampling.params().map_err(RunError::Request)?;
        let tail_ids = match self {
            // Only a repeat penalty sends prompt ids.
            Self::Once(ids) => crate::text::Sampler::new(sampling).penalised(ids).to_vec(),
            Self::Chat => Vec::new(),
        };
        Ok(SessionOptions {
            sampling,
            top_logprobs: usize::from(run.prompt.top_logprobs),
            tail_ids,
        })
    }

    fn run<B: Back>(
        &self,
        run: &Run,
        text: &TextSide,
        generator: &mut Generator<B>,
    ) -> Result<(), RunError> {
        let p = &run.prompt;
        let options = GenerateOptions {
            max_tokens: usize::try_from(p.predict).ok(),
            chunk: p.chunk.get(),
            ignore_eos: p.ignore_eos,
        };
        let ids = match self {
            Self::Once(ids) => ids,
            Self::Chat => {
                return chat_loop(
                    generator,
                    &text.tokenizer,
                    &text.template,
                    p.system.as_deref(),
                    &options,
                    &INTERRUPTED,
                );
            }
        };
        let mut closed = false;
        let mut print = |piece: &str| {
            if !p.json && !closed {
                let mut out = std::io::stdout().lock();
                let written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
                if written.is_err() {
                    // Nobody reads any more (`| head`): stop at the next token.
                    closed = true;
                    INTERRUPTED.store(true, Ordering::Relaxed);
                }
            }
        };
        let done = generator.generate(&text.tokenizer, ids, &options, &INTERRUPTED, &mut print)?;
        if p.json {
            print_json(&done)?;
        } else if !closed {
            println!();
        }
        if done.stop == Stop::Context {
            eprintln!(
                "stopped: the context of {} positions is full; raise it with -c",
                generator.n_ctx()
            );
        }
        if let Some(path) = &p.stats_json {
            write_stats(path, &done)?;
        }
        Ok(())
    }
}

fn write_stats(path: &Path, done: &Generation) -> Result<(), RunError> {
    let text = serde_json::to_string(done)
        .map_err(|e| RunError::Request(format!("cannot write JSON: {e}")))?;
    std::fs::write(path, text + "\n").map_err(RunError::io(path.display().to_string()))
}
