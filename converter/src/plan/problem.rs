//! A problem in numbers: what every choice needs and costs. Nothing here knows of files or flags.

use formats::measured::Profile;
use formats::model::{KvType, Scores};

use super::codecs::CodecChoice;
use super::link::Link;

/// One half at one cut in some bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Half {
    /// The bits that were asked for.
    pub bits: u32,
    /// Layers in it.
    pub layers: u32,
    /// Size of its file: where no encoder of the pair is given importances, and where one is.
    pub file_bytes: [u64; 2],
    /// Whether an encoder of this half is given importances.
    pub uses_importance: bool,
    /// Resident bytes beside file and context, of all sessions.
    pub fixed_bytes: u64,
    /// Of them, the program itself.
    pub runtime_bytes: u64,
    /// Of them, the buffers of one session.
    pub session_bytes: u64,
    /// In what form keys and values are kept; both halves of a choice keep the same.
    pub kv_type: KvType,
    /// Keys and values of all sessions, bytes per position.
    pub kv_bytes: u64,
    /// Attention scores of one session, by its context.
    pub scores: Scores,
    /// Sessions at a time.
    pub sessions: u64,
    /// Time of one row but for attention: embedding, layers, head.
    pub row_ns: f64,
    /// Time of a chunk of a prompt but for attention and head.
    pub chunk_ns: f64,
    /// Time of head and choice of the token.
    pub head_ns: f64,
    /// Nats that its types, that of keys and values among them, cost.
    pub kl: f64,
}

impl Half {
    /// Keys and values of all sessions with a context of `n` positions.
    pub fn kv(&self, n: u64) -> u64 {
        let taken = usize::try_from(n).map_or(u64::MAX, |n| KvType::positions(n) as u64);
        self.kv_bytes.saturating_mul(taken)
    }
}

/// A codec at a cut, with its time for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct CodecCost {
    /// Bytes and nats.
    pub choice: CodecChoice,
    /// Encoding one row on the edge, nanoseconds.
    pub encode_ns: f64,
    /// Decoding one row in the cloud, nanoseconds.
    pub decode_ns: f64,
}

/// All that is offered at one cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Layers on the edge.
    pub split: u32,
    /// The edge half in each number of bits.
    pub edge: Vec<Half>,
    /// The cloud half in each number of bits.
    pub cloud: Vec<Half>,
    /// The codecs.
    pub codecs: Vec<CodecCost>,
}

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Memory of the edge, bytes.
    pub edge_bytes: u64,
    /// Memory of the cloud, bytes.
    pub cloud_bytes: u64,
    /// Milliseconds a token may take, at the end of the context.
    pub deadline_ms: Option<f64>,
    /// Nats that types and codec may cost together.
    pub max_kl: Option<f64>,
    /// Positions wanted.
    pub context: u64,
    /// Positions that the model can use.
    pub longest: u64,
    /// Positions that are needed whatever else gives way: a prompt of so many tokens was asked for.
    pub least: u64,
}

/// What is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Objective {
    /// The longest context.
    Context,
    /// The fewest milliseconds per token.
    Speed,
    /// The least divergence from the source.
    Quality,
    /// The fewest milliseconds of the server per token.
    ServerLoad,
}

impl Objective {
    /// As `--objective` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Context => "context",
            Self::Speed => "speed",
            Self::Quality => "quality",
            Self::ServerLoad => "server-load",
        }
    }
}

/// A problem.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What each cut offers, from the first on.
    pub cuts: Vec<Cut>,
    /// Values of a row of queries: `n_head · head_dim`.
    pub q_width: f64,
    /// The hosts, edge first.
    pub profiles: [Profile; 2],
    /// Between them.
    pub link: Link,
    /// Milliseconds that a message and its answer cost both hosts beyond the wire.
    pub message_ms: f64,
    /// Devices that share the server.
    pub edges: u64,
    /// Tokens of a prompt.
    pub prompt: u64,
    /// Rows of a prompt that travel together.
    pub chunk: u64,
    /// What must hold.
    pub limits: Limits,
    /// What is best.
    pub objective: Objective,
}

/// One choice: places in the lists of a [`Cut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// The cut, by its place in [`Problem::cuts`].
    pub cut: usize,
    /// The edge's bits.
    pub edge: usize,
    /// The cloud's bits.
    pub cloud: usize,
    /// The codec.
    pub codec: usize,
    /// Positions.
    pub context: u64,
}

/// What a choice needs and costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Resident bytes, edge and cloud.
    pub resident: [u64; 2],
    /// Edge layers and embedding, milliseconds per token.
    pub edge_ms: f64,
    /// Both sides of the codec, milliseconds per token.
    pub codec_ms: f64,
    /// The way there and back, milliseconds per token.
    pub link_ms: f64,
    /// Cloud layers and head, milliseconds per token.
    pub cloud_ms: f64,
    /// Milliseconds of the server per token: its layers and its side of the codec.
    pub server_ms: f64,
    /// Milliseconds per token; with many edges no less than what the server needs for all.
    pub token_ms: f64,
    /// Nats of divergence.
    pub kl: f64,
    /// Bytes of a frame.
    pub bytes: f64,
}

impl Problem {
    /// The parts of a choice.
    pub fn parts(&self, c: &Choice) -> (&Cut, [&Half; 2], &CodecCost) {
        let cut = &self.cuts[c.cut];
        let halves = [&cut.edge[c.edge], &cut.cloud[c.cloud]];
        (cut, halves, &cut.codecs[c.codec])
    }

    /// Milliseconds of attention of `rows` rows over `positions` positions, on host `host`.
    fn attention_ms(&self, host: usize, layers: u32, rows: f64, positions: f64) -> f64 {
        let ns = self.profiles[host].attention_ns(rows, positions);
        ns * f64::from(layers) * self.q_width / 1e6
    }

    /// Size of both files.
    pub fn file_bytes(&self, c: &Choice) -> [u64; 2] {
        let (_, halves, _) = self.parts(c);
        let used = usize::from(halves.iter().any(|h| h.uses_importance));
        halves.map(|h| h.file_bytes[used])
    }

    /// What `c` needs and costs, a token being at the end of its context.
    pub fn outcome(&self, c: &Choice) -> Outcome {
        self.outcome_over(c, &self.link)
    }

    /// The same over another link.
    pub fn outcome_over(&self, c: &Choice, link: &Link) -> Outcome {
        let (_, halves, codec) = self.parts(c);
        let files = self.file_bytes(c);
        let resident = [0, 1].map(|i| {
            let h = halves[i];
            files[i]
                .saturating_add(h.fixed_bytes)
                .saturating_add(h.kv(c.context))
                .saturating_add(h.scores.bytes(c.context).saturating_mul(h.sessions))
        });
        let row_ms = |i: usize| {
            let h = halves[i];
            h.row_ns / 1e6 + self.attention_ms(i, h.layers, 1.0, c.context as f64)
        };
        let (edge_ms, cloud_ms) = (row_ms(0), row_ms(1));
        let codec_ms = (codec.encode_ns + codec.decode_ns) / 1e6;
        let bytes = codec.choice.bytes_per_token;
        let link_ms = link.send_ms(bytes) + link.rtt_ms + self.message_ms;
        let server_ms = cloud_ms + codec.decode_ns / 1e6;
        let alone = edge_ms + codec_ms + link_ms + cloud_ms;
        Outcome {
            resident,
            edge_ms,
            codec_ms,
            link_ms,
            cloud_ms,
            server_ms,
            // A server that works for all of them in turn has no more than that to give.
            token_ms: alone.max(server_ms * self.edges as f64),
            kl: halves[0].kl + halves[1].kl + codec.choice.kl,
            bytes,
        }
    }

    /// Whether `o` keeps within the limits.
    pub fn fits(&self, o: &Outcome) -> bool {
        let l = &self.limits;
        o.resident[0] <= l.edge_bytes
            && o.resident[1] <= l.cloud_bytes
            && l.deadline_ms.is_none_or(|d| o.token_ms <= d)
            && l.max_kl.is_none_or(|k| o.kl <= k)
    }

    /// Milliseconds from a prompt to its first token: chunks go through edge, link and cloud one
    /// behind the other, so that all three work at once. A prompt longer than the context is cut.
    pub fn first_token_ms(&self, c: &Choice) -> f64 {
        let (_, halves, codec) = self.parts(c);
        let chunk = self.chunk.max(1);
        let (mut edge_at, mut link_at, mut cloud_at) = (0.0_f64, 0.0_f64, 0.0_f64);
        let (mut first, prompt) = (0, self.prompt.min(c.context));
        while first < prompt {
            let rows = (prompt - first).min(chunk) as f64;
            // Between one row and a whole chunk: a straight line.
            let part = if chunk > 1 {
                (rows - 1.0) / (chunk - 1) as f64
            } else {
                1.0
            };
            let positions = first as f64 + f64::midpoint(rows, 1.0);
            let work_ms = |i: usize| {
                let h = halves[i];
                let one = h.row_ns - h.head_ns;
                let products = (one + (h.chunk_ns - one) * part) / 1e6;
                products + self.attention_ms(i, h.layers, rows, positions)
            };
            edge_at += work_ms(0) + rows * codec.encode_ns / 1e6;
            link_at = link_at.max(edge_at)
                + self
                    .link
                    .send_ms(rows * codec.choice.prompt_bytes_per_token);
            let arrives = link_at + self.link.rtt_ms / 2.0;
            cloud_at = cloud_at.max(arrives) + rows * codec.decode_ns / 1e6 + work_ms(1);
            first += chunk;
        }
        cloud_at + halves[1].head_ns / 1e6 + self.link.rtt_ms / 2.0 + self.message_ms
    }
}
