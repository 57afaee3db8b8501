//! What there is to say: the best choice, those around it, and what else follows from the numbers.

use serde::Serialize;

use super::infeasible::{Infeasible, typed};
use super::problem::{Choice, Half, Outcome, Problem};
use super::search::Candidate;

/// The whole answer; units are in the names.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The best choice; `null` when nothing fits.
    pub best: Option<Row>,
    /// Choices that nothing beats in every respect, the fastest first.
    pub pareto: Vec<Row>,
    /// What is best.
    pub objective: &'static str,
    /// What was taken for given, one line each.
    pub assumptions: Vec<String>,
    /// Where the figures of harm come from.
    pub harm: String,
    /// Whether they were measured on this model.
    pub harm_measured: bool,
    /// Why nothing fits, and what would help.
    pub infeasible: Option<Why>,
    /// Where the time of a token goes, of the best choice.
    pub token_parts: Option<Parts>,
    /// How the best pair is run: arguments of `splitrun`, cloud and edge.
    pub run: Option<[Vec<String>; 2]>,
    /// The ways to keep the state between tokens.
    pub state: Vec<State>,
    /// Many devices on one server.
    pub server: Option<Server>,
    /// The whole model on the edge.
    pub edge_alone: Option<Alone>,
    /// Memory and time at every cut, with the bits and the codec of the best choice.
    pub by_cut: Vec<ByCut>,
    /// Combinations that were looked at.
    pub combinations: u64,
}

/// One choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The splitconv command that makes it, without the program's name.
    pub argv: Vec<String>,
    /// Layers on the edge.
    pub split: u32,
    /// `--edge-bits`
    pub edge_bits: u32,
    /// `--cloud-bits`
    pub cloud_bits: u32,
    /// Type of keys and values.
    pub kv_type: &'static str,
    /// Positions.
    pub context: u64,
    /// `--codec` of splitrun.
    pub codec: String,
    /// Size of the edge file.
    pub edge_file_bytes: u64,
    /// Size of the cloud file.
    pub cloud_file_bytes: u64,
    /// Memory of the edge process.
    pub edge_resident_bytes: u64,
    /// Memory of the cloud process.
    pub cloud_resident_bytes: u64,
    /// From a prompt to its first token.
    pub ttft_ms: f64,
    /// Per token, at the end of the context.
    pub token_ms: f64,
    /// Frame bytes per token.
    pub uplink_bytes_per_token: f64,
    /// Divergence from the source, nats per token.
    pub kl: f64,
    /// Work of the server per token.
    pub server_ms_per_token: f64,
}

/// Where the time of a token goes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Parts {
    /// Embedding and layers on the edge.
    pub edge_ms: f64,
    /// Encoding and decoding.
    pub codec_ms: f64,
    /// The way there and back.
    pub link_ms: f64,
    /// Layers and head in the cloud.
    pub cloud_ms: f64,
}

/// Why nothing fits.
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// In words.
    pub said: String,
    /// The limit that is nearest to letting something fit; `null` when several must change.
    pub binding: Option<&'static str>,
    /// Changes that help, nearest first, as they would be typed; all of them together where none
    /// helps alone.
    pub changes: Vec<String>,
}

/// A way to keep the state between tokens.
#[derive(Clone, Debug, Serialize)]
pub struct State {
    /// Which: `kv_with_layers`, `kv_shipped`, `rows_resent`.
    pub way: &'static str,
    /// Bytes up for each token at the end of the context.
    pub bytes_per_token: f64,
    /// Time on the link for them.
    pub link_ms: f64,
}

/// Many devices on one server.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    /// Devices planned with.
    pub edges: u64,
    /// Their keys and values.
    pub kv_bytes: u64,
    /// Work for one token of each of them.
    pub ms_per_round: f64,
    /// Devices for whose contexts there is memory.
    pub most_by_memory: u64,
    /// Devices that can be served within the deadline, else within the time of a token.
    pub most_by_time: u64,
    /// The same of a server that runs the whole model, in the cloud's bits.
    pub cloud_only: Option<CloudOnly>,
}

/// A server that runs the whole model.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CloudOnly {
    /// Work per token.
    pub server_ms_per_token: f64,
    /// Memory with as many devices.
    pub resident_bytes: u64,
    /// Keys and values of as many devices.
    pub kv_bytes: u64,
    /// Devices for whose contexts there is memory.
    pub most_by_memory: u64,
    /// Devices that can be served in the same time.
    pub most_by_time: u64,
}

/// The whole model on the edge.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Alone {
    /// Bits of all layers.
    pub bits: u32,
    /// Memory.
    pub resident_bytes: u64,
    /// Per token.
    pub token_ms: f64,
    /// Divergence from the source.
    pub kl: f64,
}

/// Memory and time at one cut.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ByCut {
    /// Layers on the edge.
    pub split: u32,
    /// File, keys and values, the rest: edge.
    pub edge_bytes: [u64; 3],
    /// File, keys and values, the rest: cloud.
    pub cloud_bytes: [u64; 3],
    /// Edge, codec, link, cloud.
    pub token_ms: [f64; 4],
    /// Whether it is within the limits.
    pub fits: bool,
}

/// Makes rows of choices.
pub struct Rows<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// The model as it was named.
    pub model: &'a str,
    /// The importance matrix as it was named.
    pub imatrix: Option<&'a str>,
}

impl Rows<'_> {
    /// The row of `c`.
    pub fn of(&self, c: &Candidate) -> Row {
        let p = self.problem;
        let (cut, [edge, cloud], codec) = p.parts(&c.choice);
        let [edge_file_bytes, cloud_file_bytes] = p.file_bytes(&c.choice);
        let mut argv: Vec<String> = vec![self.model.to_owned()];
        for (flag, value) in [
            ("--split", cut.split),
            ("--edge-bits", edge.bits),
            ("--cloud-bits", cloud.bits),
        ] {
            argv.extend([flag.to_owned(), value.to_string()]);
        }
        if let Some(file) = self.imatrix {
            argv.extend(["--imatrix".to_owned(), file.to_owned()]);
        }
        let o = &c.outcome;
        Row {
            argv,
            split: cut.split,
            edge_bits: edge.bits,
            cloud_bits: cloud.bits,
            kv_type: edge.kv_type.name(),
            context: c.choice.context,
            codec: codec.choice.spec.clone(),
            edge_file_bytes,
            cloud_file_bytes,
            edge_resident_bytes: o.resident[0],
            cloud_resident_bytes: o.resident[1],
            ttft_ms: p.first_token_ms(&c.choice),
            token_ms: o.token_ms,
            uplink_bytes_per_token: o.bytes,
            kl: o.kl,
            server_ms_per_token: o.server_ms,
        }
    }
}

/// Where the time goes.
pub fn parts(o: &Outcome) -> Parts {
    Parts {
        edge_ms: o.edge_ms,
        codec_ms: o.codec_ms,
        link_ms: o.link_ms,
        cloud_ms: o.cloud_ms,
    }
}

/// Why nothing fits.
pub fn why(p: &Problem, found: &Infeasible) -> Why {
    Why {
        said: found.said(p),
        binding: found.changes.first().map(|c| c.limit.flag()),
        changes: typed(if found.changes.is_empty() {
            &found.together
        } else {
            &found.changes
        }),
    }
}

/// The three ways to keep the state: keys and values where their layers run (what splitrun
/// does); a server that keeps nothing and is sent the keys and values of its layers for each
/// token; one that is sent all rows again (splitrun's way to bring a new server to the same
/// state). Bytes up for a token at the end of the context.
pub fn state(p: &Problem, c: &Choice) -> Vec<State> {
    let (_, [_, cloud], codec) = p.parts(c);
    let frame = codec.choice.bytes_per_token;
    let kv = (cloud.kv(c.context) / p.edges.max(1)) as f64;
    let rows = codec.choice.prompt_bytes_per_token * c.context as f64;
    let way = |way, bytes_per_token| State {
        way,
        bytes_per_token,
        link_ms: p.link.send_ms(bytes_per_token) + p.link.rtt_ms,
    };
    vec![
        way("kv_with_layers", frame),
        way("kv_shipped", kv + frame),
        way("rows_resent", rows),
    ]
}

/// How many sessions of `session` bytes fit `limit` beside `shared` bytes.
fn sessions(limit: u64, shared: u64, session: u64) -> u64 {
    limit.saturating_sub(shared) / session.max(1)
}

/// Bytes of one session, and of what all share.
fn shares(halves: &[&Half], files: u64, context: u64, edges: u64) -> [u64; 2] {
    let edges = edges.max(1);
    let each = |h: &&Half| h.session_bytes + h.kv(context) / edges + h.scores.bytes(context);
    let session: u64 = halves.iter().map(each).sum();
    let fixed: u64 = halves
        .iter()
        .map(|h| h.fixed_bytes.saturating_sub(h.session_bytes * edges))
        .sum();
    [session, files + fixed]
}

/// Many devices on one server, `whole` being both halves of the model on it.
pub fn server(p: &Problem, c: &Candidate, whole: Option<&[Half; 2]>) -> Server {
    let (_, [_, cloud], _) = p.parts(&c.choice);
    let context = c.choice.context;
    let limit = p.limits.cloud_bytes;
    let [_, file] = p.file_bytes(&c.choice);
    let o = &c.outcome;
    let round = p.limits.deadline_ms.unwrap_or(o.token_ms);
    let by_time = |ms: f64| {
        if ms > 0.0 {
            (round / ms) as u64
        } else {
            u64::MAX
        }
    };
    let [session, shared] = shares(&[cloud], file, context, p.edges);
    let cloud_only = whole.map(|[front, back]| {
        let used = usize::from(front.uses_importance || back.uses_importance);
        let files = front.file_bytes[used] + back.file_bytes[used];
        let [session, shared] = shares(&[front, back], files, context, p.edges);
        let ms = alone_ms(p, [front, back], 1, context);
        CloudOnly {
            server_ms_per_token: ms,
            resident_bytes: shared + session * p.edges,
            kv_bytes: front.kv(context) + back.kv(context),
            most_by_memory: sessions(limit, shared, session),
            most_by_time: by_time(ms),
        }
    });
    Server {
        edges: p.edges,
        kv_bytes: cloud.kv(context),
        ms_per_round: o.server_ms * p.edges as f64,
        most_by_memory: sessions(limit, shared, session),
        most_by_time: by_time(o.server_ms),
        cloud_only,
    }
}

/// Milliseconds per token of both halves on one host.
fn alone_ms(p: &Problem, halves: [&Half; 2], host: usize, context: u64) -> f64 {
    let layers: u32 = halves.iter().map(|h| h.layers).sum();
    let attention = p.profiles[host].attention_ns(1.0, context as f64) * f64::from(layers);
    let rest: f64 = halves.iter().map(|h| h.row_ns).sum();
    // One pass, not two.
    (rest + attention * p.q_width - p.profiles[host].pass_fixed_ns) / 1e6
}

/// The fastest way to run the whole model on the edge within the limits, of `all` (both halves in
/// each number of bits).
pub fn edge_alone(p: &Problem, all: &[[Half; 2]], context: u64) -> Option<Alone> {
    let of = |[front, back]: &[Half; 2]| {
        let used = usize::from(front.uses_importance || back.uses_importance);
        let files = front.file_bytes[used] + back.file_bytes[used];
        let [session, shared] = shares(&[front, back], files, context, 1);
        Alone {
            bits: front.bits,
            resident_bytes: session + shared,
            token_ms: alone_ms(p, [front, back], 0, context),
            kl: front.kl + back.kl,
        }
    };
    let fits = |a: &Alone| {
        a.resident_bytes <= p.limits.edge_bytes && p.limits.max_kl.is_none_or(|k| a.kl <= k)
    };
    let found = all.iter().map(of).filter(fits);
    found.min_by(|a, b| a.token_ms.total_cmp(&b.token_ms))
}

/// Memory and time at every cut, otherwise as in `c`.
pub fn by_cut(p: &Problem, c: &Choice) -> Vec<ByCut> {
    let (_, [edge, cloud], codec) = p.parts(c);
    let (edge_bits, cloud_bits, spec) = (edge.bits, cloud.bits, &codec.choice.spec);
    // Bits that change nothing at a cut are not offered there: fewer do the same.
    let place = |list: &[Half], bits| {
        let like = |h: &Half| h.bits <= bits && h.kv_type == edge.kv_type;
        list.iter().rposition(like).unwrap_or(0)
    };
    let all = p.cuts.iter().enumerate().map(|(i, cut)| {
        let codec = cut.codecs.iter().position(|c| c.choice.spec == *spec);
        let choice = Choice {
            cut: i,
            edge: place(&cut.edge, edge_bits),
            cloud: place(&cut.cloud, cloud_bits),
            codec: codec.unwrap_or(0),
            context: c.context,
        };
        let o = p.outcome(&choice);
        let files = p.file_bytes(&choice);
        let (_, halves, _) = p.parts(&choice);
        let bytes = |i: usize| {
            let kv = halves[i].kv(c.context);
            [
                files[i],
                kv,
                o.resident[i].saturating_sub(files[i]).saturating_sub(kv),
            ]
        };
        ByCut {
            split: cut.split,
            edge_bytes: bytes(0),
            cloud_bytes: bytes(1),
            token_ms: [o.edge_ms, o.codec_ms, o.link_ms, o.cloud_ms],
            fits: p.fits(&o),
        }
    });
    all.collect()
}
