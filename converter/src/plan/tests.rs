//! The search against brute force, on problems made by a random generator.

use std::collections::BTreeSet;

use clap::Parser as _;

use formats::measured::{AttentionTime, Curve};
use formats::model::{KvType, Scores};

use super::codecs::CodecChoice;
use super::flags::PlanArgs;
use super::hosts;
use super::infeasible::{Change, Limit, why};
use super::link::{Link, MESSAGE_BYTES, Radio};
use super::problem::{Choice, CodecCost, Cut, Half, Limits, Objective, Problem};
use super::search::{best, candidates, pareto};

/// The flags of a plan, as the program reads them.
#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    _plan: PlanArgs,
}

/// A generator of the kind that every textbook has.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % n
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.below(1 << 20) as f64 / f64::from(1 << 20)
    }
}

fn half(r: &mut Random, bits: u32, layers: u32, edges: u64) -> Half {
    let file = 1000 * u64::from(layers * bits) + r.below(500);
    let session = r.below(300);
    let row = f64::from(layers * bits) * r.between(0.8e5, 1.2e5);
    Half {
        bits,
        layers,
        file_bytes: [file, file + 64],
        uses_importance: r.below(3) == 0,
        fixed_bytes: 500 + session * edges,
        runtime_bytes: 200,
        session_bytes: session,
        kv_type: KvType::F16,
        kv_bytes: 4 * u64::from(layers) * edges,
        scores: Scores {
            rows: 1 + r.below(8),
            threads: 1 + r.below(2),
            n_head: 2,
            n_head_kv: 1,
            head_dim: r.below(3),
        },
        sessions: edges,
        row_ns: row,
        chunk_ns: row * r.between(1.0, 4.0),
        head_ns: row * 0.1,
        kl: f64::from(layers) * 0.5_f64.powi(2 * bits as i32) * r.between(0.5, 2.0),
    }
}

fn link(r: &mut Random) -> Link {
    let plain = Link {
        uplink_bits_per_s: r.between(1e5, 1e7),
        rtt_ms: r.between(0.0, 5.0),
        radio: None,
    };
    if r.below(3) > 0 {
        return plain;
    }
    plain.with_radio(Radio {
        bandwidth_hz: r.between(1e4, 1e6),
        snr: r.between(1.0, 300.0),
        outage: r.between(0.001, 0.2),
    })
}

fn problem(r: &mut Random) -> Problem {
    let n_layer = 3 + r.below(4) as u32;
    let edges = 1 + r.below(3);
    let cuts = (1..n_layer)
        .map(|split| {
            let halves = |r: &mut Random, layers| {
                let n = 1 + r.below(3) as u32;
                (0..n).map(|i| half(r, 2 + 2 * i, layers, edges)).collect()
            };
            let codecs = (0..=r.below(2))
                .map(|i| CodecCost {
                    choice: CodecChoice {
                        spec: format!("codec {i}"),
                        bytes_per_token: r.between(50.0, 500.0),
                        prompt_bytes_per_token: r.between(50.0, 500.0),
                        kl: r.between(0.0, 0.02),
                    },
                    encode_ns: r.between(0.0, 1e5),
                    decode_ns: r.between(0.0, 1e5),
                })
                .collect();
            Cut {
                split,
                edge: halves(r, split),
                cloud: halves(r, n_layer - split),
                codecs,
            }
        })
        .collect();
    let profile = |r: &mut Random| {
        let mut p = hosts::derived("rtx-a6000").unwrap();
        p.attention = [8, 20]
            .map(|positions| AttentionTime {
                positions,
                curve: Curve {
                    rows: vec![1],
                    ns: vec![r.between(100.0, 900.0)],
                },
            })
            .to_vec();
        p
    };
    let objectives = [
        Objective::Context,
        Objective::Speed,
        Objective::Quality,
        Objective::ServerLoad,
    ];
    Problem {
        cuts,
        q_width: 8.0,
        profiles: [profile(r), profile(r)],
        link: link(r),
        message_ms: 0.3,
        edges,
        prompt: 1 + r.below(100),
        chunk: 1 + r.below(16),
        limits: Limits {
            edge_bytes: 3000 + r.below(60_000),
            cloud_bytes: 5000 + r.below(140_000),
            deadline_ms: (r.below(3) > 0).then(|| r.between(5.0, 60.0)),
            max_kl: (r.below(3) > 0).then(|| r.between(0.001, 0.5)),
            context: 1 + r.below(20),
            longest: 20 + r.below(40),
            least: 1,
        },
        objective: objectives[r.below(4) as usize],
    }
}

/// Attention of one row over `n` positions, written down once more.
fn attention_ms(p: &Problem, host: usize, layers: u32, n: f64) -> f64 {
    let points = &p.profiles[host].attention;
    let (n0, t0) = (f64::from(points[0].positions), points[0].curve.ns[0]);
    let (n1, t1) = (f64::from(points[1].positions), points[1].curve.ns[0]);
    let whole = [n0 * t0, (n1 * t1).max(n0 * t0)];
    let ns = if n <= n0 {
        n / n0 * whole[0]
    } else if n <= n1 {
        whole[0] + (n - n0) / (n1 - n0) * (whole[1] - whole[0])
    } else {
        whole[1] + (n - n1) * t1
    };
    ns * f64::from(layers) * p.q_width / 1e6
}

/// Bytes of attention's buffers, written down once more: two heads share keys and values.
fn scores_by_hand(s: &Scores, n: u64) -> u64 {
    let rows = s.rows.min(n);
    if rows == 0 {
        return 0;
    }
    let few = rows.min(3);
    let mut pairs = few * 2 * (256 + s.head_dim + 2);
    if rows >= 4 {
        let shared = rows.div_ceil(4 * s.threads).min(32);
        pairs = pairs.max(shared * 2 * (256 + s.head_dim + 4));
    }
    // Contexts of these problems are within a span.
    4 * s.threads * (pairs + 64 * s.head_dim) + 4 * few * 2 * (s.head_dim + 2)
}

/// Everything about one choice as the documentation states it: resident bytes, token and server
/// milliseconds, nats, frame bytes, edge file.
fn by_hand(p: &Problem, c: &Choice) -> ([u64; 2], [f64; 5]) {
    let cut = &p.cuts[c.cut];
    let (e, s, codec) = (&cut.edge[c.edge], &cut.cloud[c.cloud], &cut.codecs[c.codec]);
    let with = usize::from(e.uses_importance || s.uses_importance);
    let held = |h: &Half| {
        let scores = scores_by_hand(&h.scores, c.context) * p.edges;
        h.file_bytes[with] + h.fixed_bytes + h.kv_bytes * c.context.div_ceil(16) * 16 + scores
    };
    let n = c.context as f64;
    let edge = e.row_ns / 1e6 + attention_ms(p, 0, e.layers, n);
    let cloud = s.row_ns / 1e6 + attention_ms(p, 1, s.layers, n);
    let bytes = codec.choice.bytes_per_token;
    let wire = 8.0 * (bytes + MESSAGE_BYTES) / p.link.uplink_bits_per_s * 1e3
        + p.link.rtt_ms
        + p.message_ms;
    let server = cloud + codec.decode_ns / 1e6;
    let alone = edge + codec.encode_ns / 1e6 + wire + server;
    let token = alone.max(server * p.edges as f64);
    let kl = e.kl + s.kl + codec.choice.kl;
    (
        [held(e), held(s)],
        [token, server, kl, bytes, e.file_bytes[with] as f64],
    )
}

/// The best value by looking at everything, every context included.
fn brute_force(p: &Problem) -> Option<Vec<f64>> {
    let l = &p.limits;
    let mut best: Option<Vec<f64>> = None;
    for cut in 0..p.cuts.len() {
        for edge in 0..p.cuts[cut].edge.len() {
            for cloud in 0..p.cuts[cut].cloud.len() {
                for codec in 0..p.cuts[cut].codecs.len() {
                    for context in l.context..=l.longest {
                        let c = Choice {
                            cut,
                            edge,
                            cloud,
                            codec,
                            context,
                        };
                        let (held, [token, server, kl, bytes, file]) = by_hand(p, &c);
                        let fits = held[0] <= l.edge_bytes
                            && held[1] <= l.cloud_bytes
                            && l.deadline_ms.is_none_or(|d| token <= d)
                            && l.max_kl.is_none_or(|k| kl <= k);
                        if !fits {
                            continue;
                        }
                        let value = match p.objective {
                            Objective::Context => vec![-(context as f64), token, kl, bytes, file],
                            Objective::Speed => vec![token, kl, bytes, file],
                            Objective::Quality => vec![kl, token, bytes, file],
                            Objective::ServerLoad => vec![server, token, kl, bytes, file],
                        };
                        if best.as_ref().is_none_or(|b| value < *b) {
                            best = Some(value);
                        }
                    }
                }
            }
        }
    }
    best
}

fn found(p: &Problem) -> Option<Vec<f64>> {
    let all = candidates(p);
    let c = best(p, &all)?;
    let (held, [token, server, kl, bytes, file]) = by_hand(p, &c.choice);
    assert_eq!(held, c.outcome.resident);
    Some(match p.objective {
        Objective::Context => vec![-(c.choice.context as f64), token, kl, bytes, file],
        Objective::Speed => vec![token, kl, bytes, file],
        Objective::Quality => vec![kl, token, bytes, file],
        Objective::ServerLoad => vec![server, token, kl, bytes, file],
    })
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.iter()
        .zip(b)
        .all(|(a, b)| (a - b).abs() <= 1e-9 * (1.0 + a.abs()))
}

#[test]
fn brute_force_finds_nothing_better() {
    let mut r = Random(5);
    let (mut feasible, mut none) = (0, 0);
    for i in 0..400 {
        let p = problem(&mut r);
        match (found(&p), brute_force(&p)) {
            (Some(a), Some(b)) => {
                feasible += 1;
                assert!(close(&a, &b), "{i}: {a:?} {b:?} {:?}", p.objective);
            }
            (None, None) => none += 1,
            (a, b) => panic!("{i}: {a:?} {b:?}"),
        }
    }
    // The generator must make both kinds.
    assert!(feasible >= 200 && none >= 20, "{feasible} {none}");
}

fn with(p: &Problem, change: &Change, value: f64) -> Problem {
    let mut p = p.clone();
    match change.limit {
        Limit::EdgeMemory => p.limits.edge_bytes = value as u64,
        Limit::CloudMemory => p.limits.cloud_bytes = value as u64,
        Limit::Deadline => p.limits.deadline_ms = Some(value),
        Limit::MaxKl => p.limits.max_kl = Some(value),
        Limit::Context => p.limits.context = value as u64,
        Limit::Uplink => p.link.uplink_bits_per_s = value,
        Limit::Bandwidth | Limit::Snr => {
            let mut radio = p.link.radio.unwrap();
            match change.limit {
                Limit::Bandwidth => radio.bandwidth_hz = value,
                _ => radio.snr = value,
            }
            p.link = p.link.with_radio(radio);
        }
    }
    p
}

#[test]
fn changes_that_are_named_help_and_smaller_ones_do_not() {
    let mut r = Random(77);
    let (mut single, mut several) = (0, 0);
    let mut kinds = BTreeSet::new();
    for i in 0..600 {
        let mut p = problem(&mut r);
        if i % 3 == 0 {
            // Several limits in the way.
            p.limits.edge_bytes /= 10;
            p.limits.cloud_bytes /= 10;
        }
        if brute_force(&p).is_some() {
            continue;
        }
        let found = why(&p);
        for c in &found.changes {
            single += 1;
            // A hair more than needed, for rounding.
            let more = if c.needed > c.given { 1.0 + 1e-9 } else { 1.0 };
            assert!(
                brute_force(&with(&p, c, c.needed * more)).is_some(),
                "{i}: {c:?}"
            );
            let less = if c.limit == Limit::Context {
                c.needed + 1.0
            } else {
                c.given + (c.needed - c.given) * 0.999
            };
            assert!(brute_force(&with(&p, c, less)).is_none(), "{i}: {c:?}");
        }
        assert!(found.changes.is_sorted_by_key(Change::factor));
        // What is typed is read again, and is enough to the last digit.
        let read = |c: &Change| {
            let typed = c.typed().unwrap();
            let words: Vec<&str> = typed.split(' ').collect();
            assert_eq!((words.len(), words[0]), (2, c.limit.flag()));
            let link = ["--uplink", "1Mbit/s"];
            let radio = ["--radio-bandwidth", "1MHz", "--snr", "20dB"];
            let others: Vec<&str> = if matches!(c.limit, Limit::Bandwidth | Limit::Snr) {
                let rest = radio.chunks(2).filter(|f| f[0] != words[0]);
                rest.flatten().copied().collect()
            } else if c.limit == Limit::Uplink {
                Vec::new()
            } else {
                link.to_vec()
            };
            let line = [&["plan", "m.gguf"][..], &words, &others].concat();
            assert!(Cli::try_parse_from(&line).is_ok(), "{line:?}");
            c.limit.read(words[1]).unwrap()
        };
        for c in &found.changes {
            assert!(
                brute_force(&with(&p, c, read(c))).is_some(),
                "{i}: {c:?} {:?}",
                c.typed()
            );
        }
        let mut changed = p.clone();
        for c in &found.together {
            changed = with(&changed, c, read(c));
        }
        assert!(
            found.together.is_empty() || brute_force(&changed).is_some(),
            "{i}: {found:?}"
        );
        let radio = p.link.radio.is_some();
        kinds.extend(found.changes.iter().map(|c| c.limit.flag()));
        assert!(found.changes.iter().all(|c| match c.limit {
            Limit::Uplink => !radio,
            Limit::Bandwidth | Limit::Snr => radio,
            _ => true,
        }));
        if found.changes.is_empty() {
            several += 1;
            let mut changed = p.clone();
            for c in &found.together {
                changed = with(&changed, c, c.needed * (1.0 + 1e-9));
            }
            assert!(found.together.len() > 1, "{i}: {found:?}");
            assert!(brute_force(&changed).is_some(), "{i}: {found:?}");
        }
        assert!(found.said(&p).contains("nothing fits"));
    }
    assert!(single >= 50 && several >= 5, "{single} {several}");
    assert_eq!(kinds.len(), 8, "{kinds:?}");
}

#[test]
fn nothing_in_the_front_is_beaten_and_nothing_outside_beats_it() {
    let mut r = Random(9);
    let mut seen = 0;
    for _ in 0..100 {
        let p = problem(&mut r);
        let all = candidates(&p);
        let Some(best) = best(&p, &all) else { continue };
        let front = pareto(&all, best, usize::MAX);
        let axes = |c: &super::search::Candidate| {
            let o = c.outcome;
            [o.token_ms, -(c.longest as f64), o.kl, o.bytes, o.server_ms]
        };
        let beats = |a: &[f64; 5], b: &[f64; 5]| a.iter().zip(b).all(|(a, b)| a <= b) && a != b;
        for c in &all {
            let beaten = all.iter().any(|other| beats(&axes(other), &axes(c)));
            let listed = front.iter().any(|f| axes(f) == axes(c));
            assert_eq!(beaten, !listed);
        }
        let few = pareto(&all, best, 6);
        assert!(few.len() <= 6 && few.iter().all(|c| front.contains(c)));
        seen += 1;
    }
    assert!(seen > 50);
}

#[test]
fn the_first_token_waits_for_the_slowest_of_three() {
    let mut r = Random(3);
    let mut p = problem(&mut r);
    p.chunk = 10;
    p.prompt = 100;
    p.limits.longest = 100;
    let c = Choice {
        cut: 0,
        edge: 0,
        cloud: 0,
        codec: 0,
        context: 100,
    };
    let base = p.first_token_ms(&c);
    // A link that carries nothing at once is all that counts.
    p.link.uplink_bits_per_s = 1000.0;
    let slow = p.first_token_ms(&c);
    let bytes = p.cuts[0].codecs[0].choice.prompt_bytes_per_token * 100.0 + 10.0 * MESSAGE_BYTES;
    let sending = bytes * 8.0;
    assert!(
        slow > base && slow > sending && slow < sending * 1.1 + base,
        "{slow} {sending}"
    );
    // Twice the chunks take less than twice the time: the first and the last wait once.
    p.link.uplink_bits_per_s = 1e9;
    for host in &mut p.profiles {
        for a in &mut host.attention {
            a.curve.ns[0] = 0.0;
        }
    }
    let one = p.first_token_ms(&c);
    p.prompt = 200;
    let two = p.first_token_ms(&Choice { context: 200, ..c });
    assert!(two > one && two < 2.0 * one, "{one} {two}");
}
