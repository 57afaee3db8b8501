//! What can be typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use formats::blocks::BlockType;
use formats::model::KvType;
use formats::wire::Codec;

use crate::exec::gpu::Variants;
use crate::link::Address;
use crate::text::SamplingParams;

/// Tokens for `--sensitivity` without a number.
const SENSITIVITY_TOKENS: &str = "256";

/// Run either half of a model that splitconv cut in two, or both.
#[derive(Debug, Parser)]
#[command(
    name = "splitrun",
    version,
    about,
    args_conflicts_with_subcommands = true
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) run: Run,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Perplexity of a text, or right answers to questions; with a codec also its bytes, divergence
    /// and agreement.
    Eval(Eval),
    /// Speed of prefill and decode.
    Bench(Bench),
    /// What a text does inside the model: the importance matrix for splitconv (and
    /// llama-quantize), and statistics of the rows at every cut.
    Calibrate(Calibrate),
    /// Text on standard input to token ids.
    Tokenize(Tokenize),
    /// What this machine can compute with.
    Devices(Devices),
}

/// Which part of the model runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// The front half: reads the prompt, prints the answer.
    Edge,
    /// The back half: serves edges.
    Cloud,
    /// Both halves, or an unsplit model, in this process.
    Both,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Device {
    /// The best there is.
    Auto,
    /// The processor.
    Cpu,
    /// A graphics card.
    Gpu,
}

#[derive(Clone, Debug, Args)]
pub(super) struct Compute {
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Device::Auto, env = "SPLITRUN_DEVICE")]
    pub(super) device: Device,
    /// Threads that compute [default: one per core]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// Form of keys and values: f16, or in blocks of 32 q8_0 or q4_0, half and a quarter of the
    /// memory (processor only). Each side of a link chooses for itself.
    #[arg(
        long,
        visible_alias = "cache-type",
        value_name = "TYPE",
        default_value_t,
        env = "SPLITRUN_KV_TYPE"
    )]
    pub(super) kv_type: KvType,
    /// Variants of a graphics card's kernels: auto (all that it has and that pay), exact (no 8-bit
    /// activations), plain (none), or some of subgroups, int8, f16, cooperative.
    #[arg(
        long,
        value_name = "LIST",
        default_value = "auto",
        env = "SPLITRUN_GPU_VARIANTS"
    )]
    pub(super) gpu_variants: Variants,
    /// Instruction set of the kernels: auto, scalar, avx2, avx512, neon,
    /// neon-dotprod or neon-i8mm (all give the same bits).
    #[arg(long, value_name = "ISA", default_value = "auto")]
    pub(super) isa: String,
    /// Multiply with activations that are not rounded to 8 bits; otherwise generating and bench may
    /// round them, and eval and calibrate do not. (A card named int8 in --gpu-variants still does.)
    #[arg(long)]
    pub(super) exact: bool,
    /// Read weights where the file is mapped, instead of copying them at the start into the order in which
    /// the processor computes: starts sooner, holds no memory that the system cannot take back, decodes slower.
    #[arg(long, env = "SPLITRUN_NO_REPACK", value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) no_repack: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ModelArg {
    /// Either file of a pair, a folder, the prefix of both names, or (not for edge and cloud) an
    /// unsplit GGUF [default: the one pair in this folder]
    #[arg(short = 'm', long, value_name = "PATH")]
    pub(super) model: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Which part of the model runs here.
    #[arg(long, value_enum)]
    pub(super) role: Option<Role>,
    #[command(flatten)]
    pub(super) model: ModelArg,
    #[command(flatten)]
    pub(super) compute: Compute,
    /// Positions of the context [default: the model's, 8192 at most]
    #[arg(short = 'c', long = "ctx-size", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(super) ctx: Option<u32>,
    /// Bytes that this process may hold, as 4GiB: refuses beforehand what would take more, file,
    /// keys and values, activations and program together. A server takes in as many sessions as
    /// fit.
    #[arg(long, value_name = "SIZE", value_parser = super::memory::size)]
    pub(super) memory_limit: Option<u64>,
    #[command(flatten)]
    pub(super) link: LinkArgs,
    #[command(flatten)]
    pub(super) prompt: PromptArgs,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Link")]
pub(super) struct LinkArgs {
    /// Edge: where the cloud half listens.
    #[arg(long, value_name = "HOST:PORT", default_value_t)]
    pub(super) cloud: Address,
    /// Cloud: where to listen.
    #[arg(long, value_name = "HOST:PORT", default_value_t)]
    pub(super) listen: Address,
    /// How boundary rows travel: f32, f16, int8, ts-tabq[:tau=…,delta=…,bits=…],
    /// tcq[:step=…] (calibrated pairs only) or auto[:max-kl=…].
    #[arg(long, value_name = "SPEC", default_value = "auto")]
    pub(super) codec: Codec,
    /// Cloud: certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Cloud: private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// Edge: use TLS and trust what the system trusts.
    #[arg(long)]
    pub(super) tls: bool,
    /// Edge: use TLS and trust this authority (PEM; a self-signed certificate is its own).
    #[arg(long, value_name = "FILE")]
    pub(super) tls_ca: Option<PathBuf>,
    /// Edge: name in the cloud's certificate, where it is not the host dialled.
    #[arg(long, value_name = "NAME")]
    pub(super) tls_name: Option<String>,
    /// File with the secret that edge and cloud share.
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Talk to other machines without TLS or token.
    #[arg(long)]
    pub(super) insecure: bool,
    /// Cloud: sessions at a time.
    #[arg(long, value_name = "N", default_value = "8")]
    pub(super) max_sessions: NonZeroUsize,
    /// Seconds to wait for an answer of the other half.
    #[arg(long, value_name = "S", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub(super) struct PromptArgs {
    /// The prompt. Without it (and --file) a terminal gets a chat, else standard input is read.
    #[arg(short = 'p', long, value_name = "TEXT", conflicts_with = "file")]
    pub(super) prompt: Option<String>,
    /// Read the prompt from a file.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Put the prompt into the model's chat template as the user's message.
    #[arg(long)]
    pub(super) chat: bool,
    /// System message of a chat.
    #[arg(long, value_name = "TEXT")]
    pub(super) system: Option<String>,
    /// Tokens to generate at most; -1 until the model ends or the context is full.
    #[arg(
        short = 'n',
        long = "predict",
        alias = "n-predict",
        value_name = "N",
        default_value = "-1",
        allow_negative_numbers = true
    )]
    pub(super) predict: i64,
    /// Go on after the model's end token.
    #[arg(long)]
    pub(super) ignore_eos: bool,
    /// Rows of the prompt that travel together.
    #[arg(long, value_name = "ROWS", default_value = "64")]
    pub(super) chunk: NonZeroUsize,
    /// One JSON object on standard output instead of text.
    #[arg(long)]
    pub(super) json: bool,
    /// Write the JSON object to a file as well.
    #[arg(long, value_name = "FILE")]
    pub(super) stats_json: Option<PathBuf>,
    /// Edge: write what the link did and which step each frame got, one JSON object a line (empty
    /// where nothing is chosen: with a fixed codec, or without calibration).
    #[arg(long, value_name = "FILE")]
    pub(super) link_trace: Option<PathBuf>,
    /// With JSON: the log-probabilities of the K likeliest tokens at each place.
    #[arg(long, value_name = "K", default_value = "0", value_parser = clap::value_parser!(u16).range(0..=128))]
    pub(super) top_logprobs: u16,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (names and defaults of llama.cpp)")]
pub(super) struct SamplingArgs {
    /// Temperature; 0 always takes the likeliest token.
    #[arg(long, alias = "temperature", default_value = "0.8")]
    temp: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    #[arg(long, default_value = "40", allow_negative_numbers = true)]
    top_k: i32,
    /// Keep the likeliest tokens that reach this probability together; 1 keeps all.
    #[arg(long, default_value = "0.95")]
    top_p: f32,
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all.
    #[arg(long, default_value = "0.05")]
    min_p: f32,
    /// Penalty on tokens seen lately; 1 is none.
    #[arg(long, default_value = "1.0")]
    repeat_penalty: f32,
    /// How many tokens back the penalty reaches; 0 none, -1 all.
    #[arg(long, default_value = "64", allow_negative_numbers = true)]
    repeat_last_n: i32,
    /// Seed; -1 takes one from the clock.
    #[arg(short = 's', long, default_value = "-1", allow_negative_numbers = true)]
    seed: i64,
}

impl SamplingArgs {
    /// The parameters; fails with the name of one that makes no sense.
    pub(super) fn params(&self) -> Result<SamplingParams, String> {
        let within = |name: &str, v: f32, max: f32| {
            if (0.0..=max).contains(&v) {
                Ok(v)
            } else {
                Err(format!("{name} is {v}; it must be between 0 and {max}"))
            }
        };
        let seed = u64::try_from(self.seed).unwrap_or_else(|_| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |d| d.as_nanos() as u64)
        });
        Ok(SamplingParams {
            temperature: within("--temp", self.temp, 1000.0)?,
            top_k: self.top_k.max(0),
            top_p: within("--top-p", self.top_p, 1.0)?,
            min_p: within("--min-p", self.min_p, 1.0)?,
            repeat_penalty: within("--repeat-penalty", self.repeat_penalty, 1000.0)?,
            repeat_last_n: self.repeat_last_n,
            seed,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Eval {
    #[command(flatten)]
    pub(super) model: ModelArg,
    #[command(flatten)]
    pub(super) compute: Compute,
    /// Text to score.
    #[arg(long, value_name = "FILE", required_unless_present = "task")]
    pub(super) text: Option<PathBuf>,
    /// Multiple-choice questions to answer in place of a text: JSON objects, one a line, with
    /// `query`, `choices` and `gold`, or a file of ARC, HellaSwag, PIQA, WinoGrande, BoolQ or
    /// OpenBookQA as it is published.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "chunks", "against", "frame_rows", "codecs"])]
    pub(super) task: Option<PathBuf>,
    /// With --task: the first N questions only.
    #[arg(long, value_name = "N", requires = "task")]
    pub(super) limit: Option<NonZeroUsize>,
    /// With --task: keep the results of each question in a file, and go on where it ends.
    #[arg(long, value_name = "FILE", requires = "task")]
    pub(super) results: Option<PathBuf>,
    /// With --task: the paired difference to another model, or to a file of --results of the same
    /// questions.
    #[arg(long, value_name = "OTHER", requires = "task")]
    pub(super) compare: Option<PathBuf>,
    /// Tokens of a window, whose second half is scored [default: 512]; with --task: of a question
    /// at most, whose beginning is left out where it is longer [default: the model's context, 8192 at most]
    #[arg(short = 'c', long)]
    pub(super) ctx: Option<NonZeroUsize>,
    /// Windows [default: all the text has]
    #[arg(long, value_name = "N")]
    pub(super) chunks: Option<NonZeroUsize>,
    /// Codec at the boundary [default: none]
    #[arg(long, value_name = "SPEC")]
    pub(super) codec: Option<Codec>,
    /// Rows of a frame.
    #[arg(long, value_name = "K", default_value = "1")]
    pub(super) frame_rows: NonZeroUsize,
    /// Codecs side by side over the same rows: `all`, or SPECs between spaces; also what others do
    /// (zstd-f16, int4, smoothquant:bits=B, atom, omniquant:bits=B).
    #[arg(long, value_name = "LIST", conflicts_with_all = ["codec", "frame_rows", "against"])]
    pub(super) codecs: Option<String>,
    /// With --codecs: text that the codecs of others learn from.
    #[arg(long, value_name = "FILE", requires = "codecs")]
    pub(super) calibration: Option<PathBuf>,
    /// With --calibration: windows of it.
    #[arg(long, value_name = "N", default_value = "6", requires = "calibration")]
    pub(super) calibration_chunks: NonZeroUsize,
    /// The model that --model was made from: how far its answers have moved.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["codec", "frame_rows"])]
    pub(super) against: Option<PathBuf>,
    /// On the processor, activations rounded to 8 bits, as when generating (never in the model of
    /// --against).
    #[arg(long, conflicts_with = "exact")]
    pub(super) int8: bool,
    /// One JSON object on standard output.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(flatten)]
    pub(super) model: ModelArg,
    #[command(flatten)]
    pub(super) compute: Compute,
    /// Prompt tokens of the prefill measurement.
    #[arg(short = 'p', long, default_value = "512")]
    pub(super) prompt: usize,
    /// Tokens of the decode measurement.
    #[arg(short = 'n', long, default_value = "64")]
    pub(super) predict: usize,
    /// Positions that the context holds before either begins.
    #[arg(short = 'd', long, value_name = "N", default_value = "0", conflicts_with_all = ["profile", "kernels"])]
    pub(super) depth: usize,
    /// Runs, of which medians are reported.
    #[arg(short = 'r', long, default_value = "3")]
    pub(super) runs: NonZeroUsize,
    /// Also decode so many sequences at once, a token of each in one pass.
    #[arg(long, value_name = "N", default_value = "1", conflicts_with_all = ["profile", "kernels"], value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) sequences: u16,
    /// Also measure beside N busy threads (1 if not said), in turn with measurements without them.
    #[arg(long, value_name = "N", num_args = 0..=1, default_value = "0", default_missing_value = "1", conflicts_with_all = ["profile", "kernels"], value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(super) busy: u16,
    /// Measure in the model's shapes what `splitconv plan` needs to know of this host, in about a
    /// minute, and write it to a file; -p, -n and -r do not count.
    #[arg(long, value_name = "OUT.json", conflicts_with = "kernels")]
    pub(super) profile: Option<PathBuf>,
    /// No model: the products of a graphics card's kernels alone, at the shapes of Llama-2, with
    /// random weights.
    #[arg(long, conflicts_with = "model")]
    pub(super) kernels: bool,
    /// With --kernels: types of the weights.
    #[arg(
        long,
        value_name = "T",
        value_delimiter = ',',
        default_value = "Q3_K,Q4_K,Q8_0"
    )]
    pub(super) types: Vec<BlockType>,
    /// With --kernels: rows at a time.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,64,512", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) rows: Vec<u16>,
    /// With --kernels: sizes of Llama-2.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "7B,13B,70B", value_parser = ["7B", "13B", "70B"], ignore_case = true)]
    pub(super) shapes: Vec<String>,
    /// One JSON object on standard output.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Calibrate {
    #[command(flatten)]
    pub(super) model: ModelArg,
    #[command(flatten)]
    pub(super) compute: Compute,
    /// Text to run; the more like the text of later use, the better.
    #[arg(long, value_name = "FILE")]
    pub(super) text: PathBuf,
    /// Where to write: a GGUF that llama-quantize reads as well; with --sensitivity a name that
    /// ends in .json gets what types and codecs cost, for `splitconv plan`, and nothing else.
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// Tokens of a window.
    #[arg(short = 'c', long, default_value = "512")]
    pub(super) ctx: NonZeroUsize,
    /// Windows [default: all the text has]
    #[arg(long, value_name = "N")]
    pub(super) chunks: Option<NonZeroUsize>,
    /// Where the model will be cut (more than once for more cuts), to measure what codec `auto` may
    /// leave out there [default: five from the first to the last; those between follow from them]
    #[arg(long = "cut", value_name = "N")]
    pub(super) cuts: Vec<usize>,
    /// Windows of the text for that; 0 leaves it out, and the bound of `auto` unproved.
    #[arg(long, value_name = "N", default_value = "2")]
    pub(super) cut_chunks: usize,
    /// Also measure on TOKENS tokens of the text (256 if not said) what an error in each matrix
    /// costs, for `splitconv --recipe auto`. Takes 3.5 passes over
    /// them for each layer. With --out F.json: what each type costs in each matrix, and each codec at each cut,
    /// scored over so many tokens.
    #[arg(long, value_name = "TOKENS", num_args = 0..=1, default_missing_value = SENSITIVITY_TOKENS)]
    pub(super) sensitivity: Option<NonZeroUsize>,
    /// With --out F.json: seconds to measure for; what is missing then is fitted to the rest. An
    /// interrupted run goes on where it was [default: 600]
    #[arg(long, value_name = "S", requires = "sensitivity", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(super) seconds: Option<u64>,
    /// With --out F.json: measure for 60 seconds.
    #[arg(long, requires = "sensitivity", conflicts_with = "seconds")]
    pub(super) quick: bool,
    /// One JSON object on standard output.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Tokenize {
    #[command(flatten)]
    pub(super) model: ModelArg,
    /// Leave BOS and EOS out even where the model adds them.
    #[arg(long)]
    pub(super) no_bos: bool,
    /// One JSON object on standard output.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Devices {
    /// Variants of the kernels that are wanted, as elsewhere.
    #[arg(
        long,
        value_name = "LIST",
        default_value = "auto",
        env = "SPLITRUN_GPU_VARIANTS"
    )]
    pub(super) gpu_variants: Variants,
    /// One JSON object on standard output.
    #[arg(long)]
    pub(super) json: bool,
}
