//! The answer for a person.

use formats::units::Size;

use super::Planned;
use super::answer::{Answer, Row};
use crate::printable;

/// A time with three digits.
pub(super) fn ms(v: f64) -> String {
    match v {
        v if v >= 99_950.0 => format!("{:.0} s", v / 1e3),
        v if v >= 9_995.0 => format!("{:.1} s", v / 1e3),
        v if v >= 999.5 => format!("{:.2} s", v / 1e3),
        v if v >= 99.95 => format!("{v:.0} ms"),
        v if v >= 9.995 => format!("{v:.1} ms"),
        v => format!("{v:.2} ms"),
    }
}

/// Words as a shell takes them.
pub(super) fn shell(words: &[String]) -> String {
    let plain = |w: &str| {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+%@".contains(c);
        !w.is_empty() && w.chars().all(harmless)
    };
    let quoted = words.iter().map(|w| {
        if plain(w) {
            w.clone()
        } else {
            format!("'{}'", w.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// The answer for a person: commands, memory, times, harm, and the table; empty when nothing fits.
pub fn text(planned: &Planned) -> String {
    let a = &planned.answer;
    let Some(best) = &a.best else {
        return String::new();
    };
    let mut out: Vec<String> = Vec::new();
    out.push(format!("splitconv {}", shell(&best.argv)));
    for words in a.run.iter().flatten() {
        out.push(format!("splitrun {}", shell(words)));
    }
    out.push(String::new());
    out.extend(memory(planned));
    out.push(String::new());
    out.extend(times(planned, best));
    out.push(format!("harm   {:.4} nats per token, {}", best.kl, a.harm));
    out.extend(alone(a, best));
    out.push(String::new());
    out.extend(state(a));
    out.extend(server(a, best));
    out.push(String::new());
    out.extend(table(a, best));
    if !a.assumptions.is_empty() {
        out.push(String::new());
    }
    out.extend(
        a.assumptions
            .iter()
            .map(|l| format!("taken for given: {l}")),
    );
    let lines: Vec<String> = out
        .iter()
        .map(|l| format!("{}\n", printable(l).trim_end()))
        .collect();
    lines.concat()
}

fn memory(planned: &Planned) -> Vec<String> {
    let Some(best) = &planned.best else {
        return Vec::new();
    };
    let p = &planned.problem;
    let (_, halves, _) = p.parts(&best.choice);
    let files = p.file_bytes(&best.choice);
    let limits = [p.limits.edge_bytes, p.limits.cloud_bytes];
    let mut out = vec![format!(
        "{:6} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
        "", "layers", "file", "KV cache", "other", "resident", "of"
    )];
    for (i, name) in ["edge", "cloud"].into_iter().enumerate() {
        let kv = halves[i].kv(best.choice.context);
        let resident = best.outcome.resident[i];
        let other = resident.saturating_sub(files[i]).saturating_sub(kv);
        out.push(format!(
            "{name:6} {:>10} {:>10} {:>10} {:>10} {:>10}  {}",
            halves[i].layers,
            Size(files[i]).to_string(),
            Size(kv).to_string(),
            Size(other).to_string(),
            Size(resident).to_string(),
            Size(limits[i]),
        ));
    }
    out.push(format!(
        "context {} positions{}, keys and values in {}",
        best.choice.context,
        if best.longest > best.choice.context {
            format!(" ({} would fit)", best.longest)
        } else {
            String::new()
        },
        halves[0].kv_type
    ));
    out
}

fn times(planned: &Planned, best: &Row) -> Vec<String> {
    let Some(t) = planned.answer.token_parts else {
        return Vec::new();
    };
    let p = &planned.problem;
    let sum = t.edge_ms + t.codec_ms + t.link_ms + t.cloud_ms;
    let mut out = vec![format!(
        "token  {} at the end of the context: edge {}, codec {}, link {}, cloud {}; {:.2} tokens/s",
        ms(best.token_ms),
        ms(t.edge_ms),
        ms(t.codec_ms),
        ms(t.link_ms),
        ms(t.cloud_ms),
        1e3 / best.token_ms
    )];
    if best.token_ms > sum * 1.000_001 {
        out.push(format!(
            "       of these {} wait for a server that works for {} devices",
            ms(best.token_ms - sum),
            p.edges
        ));
    }
    out.push(format!(
        "first  {} after a prompt of {} tokens, {} bytes a token up, codec {}",
        ms(best.ttft_ms),
        p.prompt.min(best.context),
        best.uplink_bytes_per_token.round(),
        best.codec
    ));
    out
}

fn alone(a: &Answer, best: &Row) -> Vec<String> {
    let Some(alone) = a.edge_alone else {
        return vec!["alone  the whole model does not fit the edge within these limits".into()];
    };
    let verdict = if alone.token_ms <= best.token_ms {
        format!(
            "splitting costs {} a token",
            ms(best.token_ms - alone.token_ms)
        )
    } else {
        format!(
            "splitting saves {} a token",
            ms(alone.token_ms - best.token_ms)
        )
    };
    vec![format!(
        "alone  the whole model fits the edge in {} bits: {} resident, {} a token, {:.4} nats; {verdict}",
        alone.bits,
        Size(alone.resident_bytes),
        ms(alone.token_ms),
        alone.kl
    )]
}

fn state(a: &Answer) -> Vec<String> {
    let mut out = vec![format!(
        "{:44} {:>14} {:>12}",
        "where keys and values of the cloud's layers are", "bytes a token", "link"
    )];
    for s in &a.state {
        let way = match s.way {
            "kv_with_layers" => "with the layers (what splitrun does)",
            "kv_shipped" => "sent to a server that keeps nothing",
            _ => "nowhere: all rows sent again (recovery)",
        };
        out.push(format!(
            "{way:47} {:>14} {:>12}",
            s.bytes_per_token.round(),
            ms(s.link_ms)
        ));
    }
    out
}

fn server(a: &Answer, best: &Row) -> Vec<String> {
    let Some(s) = &a.server else {
        return Vec::new();
    };
    let mut out = vec![format!(
        "server {} a token, {} devices: {} of keys and values; memory for {}, time for {}",
        ms(best.server_ms_per_token),
        s.edges,
        Size(s.kv_bytes),
        s.most_by_memory,
        s.most_by_time
    )];
    if let Some(c) = &s.cloud_only {
        out.push(format!(
            "       with the whole model there: {} a token ({:.0} % more), {} of keys and values; memory for {}, time for {}",
            ms(c.server_ms_per_token),
            100.0 * (c.server_ms_per_token / best.server_ms_per_token - 1.0),
            Size(c.kv_bytes),
            c.most_by_memory,
            c.most_by_time
        ));
    }
    out
}

fn table(a: &Answer, best: &Row) -> Vec<String> {
    let mut out = vec![format!(
        "  {:>5} {:>4} {:>5} {:>8} {:>8} {:>7} {:>7} {:>9} {:>9} {:>10}  {}",
        "split",
        "edge",
        "cloud",
        "context",
        "tok/s",
        "KL",
        "bytes",
        "server",
        "first",
        "edge mem",
        "codec"
    )];
    for r in &a.pareto {
        out.push(format!(
            "{} {:>5} {:>4} {:>5} {:>8} {:>8.2} {:>7.4} {:>7} {:>9} {:>9} {:>10}  {}",
            if r == best { "*" } else { " " },
            r.split,
            r.edge_bits,
            r.cloud_bits,
            r.context,
            1e3 / r.token_ms,
            r.kl,
            r.uplink_bytes_per_token.round(),
            ms(r.server_ms_per_token),
            ms(r.ttft_ms),
            Size(r.edge_resident_bytes).to_string(),
            r.codec
        ));
    }
    out
}
