//! Codecs over emulated links: time to the first token of a long prompt, and speed after it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use fixtures::fetch::WIKI_64K;
use fixtures::relay::{Link, relay};

use super::{Measured, Report, Section, table};
use crate::error::Failure;
use crate::process::Server;

const CUT: usize = 10;
/// Round trips, milliseconds.
const RTT: [u64; 3] = [5, 20, 80];
/// Bandwidths, kilobits a second.
const KBIT: [u32; 3] = [250, 2_000, 20_000];
const CODECS: [&str; 4] = ["f16", "int8", "ts-tabq:tau=5s,delta=0,bits=5", "auto"];
/// Bytes of the text that make the prompt: about a thousand tokens.
const PROMPT: usize = 4400;
/// From this bandwidth on a run takes seconds, and its time is the median of so many.
const FAST: u32 = 2_000;
const ROUNDS: usize = 5;
/// How long the cloud may take until it listens.
const READY: Duration = Duration::from_mins(1);

/// Measures.
pub(super) fn make(report: &Report) -> Result<Section, Failure> {
    let quick = report.options.quick;
    let (folder, made) = report.calibrated_pair(CUT)?;
    let text = WIKI_64K.get()?;
    let prompt = report.folder("report")?.join("prompt.txt");
    let path = report.programs.path(&prompt);
    let words = std::fs::read(&text).map_err(file(&text))?;
    let words = &words[..PROMPT.min(words.len())];
    std::fs::write(&path, String::from_utf8_lossy(words).as_bytes()).map_err(file(&path))?;

    let mut cloud = report
        .programs
        .command("splitrun", &["--role", "cloud", "--model"]);
    cloud.arg(&folder);
    cloud.args(["-t", "1", "--listen", "127.0.0.1:0"]);
    let cloud = Server::start(cloud, READY)?;
    let bad = |why: String| Failure::Output {
        line: "splitrun --role cloud".into(),
        why,
    };
    let target = cloud
        .address
        .parse::<SocketAddr>()
        .map_err(|e| bad(format!("`{}` is no address: {e}", cloud.address)))?;

    let mut rows = Vec::new();
    let mut command = String::new();
    for (rtt, kbit) in RTT.iter().flat_map(|r| KBIT.iter().map(move |k| (*r, *k))) {
        if quick && (rtt, kbit) != (5, 20_000) {
            continue;
        }
        let link = Link {
            rtt: Duration::from_millis(rtt),
            bits_per_s: 1e3 * f64::from(kbit),
        };
        let through = relay(target, link).map_err(|e| bad(format!("no relay: {e}")))?;
        // In turn, so that what the machine does meanwhile falls on all of them.
        let rounds = if kbit < FAST { 1 } else { ROUNDS };
        let mut runs = CODECS.map(|_| Vec::new());
        for _ in 0..rounds {
            for (runs, codec) in runs.iter_mut().zip(CODECS) {
                let mut args: Vec<OsString> = ["--role", "edge", "--model"].map(Into::into).into();
                args.push(folder.clone().into());
                let through = through.to_string();
                args.extend(["--cloud", &through, "--codec", codec].map(Into::into));
                args.extend(["-t", "1", "-n", "64", "--temp", "0", "--ignore-eos"].map(Into::into));
                args.extend(["--timeout", "300", "--file"].map(Into::into));
                args.push(prompt.clone().into());
                let m = report.measure("splitrun", &args, &[&folder, &prompt])?;
                command = m.command.replace(&through, "RELAY");
                runs.push(m);
            }
        }
        for (runs, codec) in runs.iter().zip(CODECS) {
            let last = &runs[runs.len() - 1];
            let chosen = last.object["link"]["choices"].as_array();
            let finest = chosen.and_then(|c| c.last());
            rows.push(vec![
                format!("{rtt} ms"),
                format!("{kbit} kbit/s"),
                format!("`{codec}`"),
                format!("{:.0}", median(runs, "ttft_ms")?),
                format!("{:.2}", median(runs, "tokens_per_s")?),
                format!("{:.0}", last.number("prompt_uplink_bytes_per_token")?),
                format!("{:.0}", last.number("uplink_bytes_per_token")?),
                finest.map_or_else(String::new, |c| {
                    format!("{} in {}", c["rows"], c["codec"].as_str().unwrap_or("?"))
                }),
            ]);
        }
    }
    let head = [
        "round trip",
        "bandwidth",
        "codec",
        "first token, ms",
        "tokens/s",
        "prompt, bytes/token",
        "after it",
        "rows in the finest codec used",
    ];
    Ok(Section {
        title: "Links".into(),
        markdown: format!(
            "A prompt of about 1000 tokens and 64 tokens after it, SmolLM2 cut at {CUT}, both halves on this machine with \
             one thread each, a relay with delay and bandwidth between them (`fixtures/src/relay.rs`); from {FAST} kbit/s on \
             medians of {ROUNDS} runs, the codecs in turn.\n\n{}\n    {}\n    {command}\n",
            table(&head, &rows),
            made.join("\n    ")
        ),
        plots: Vec::new(),
    })
}

/// The middle one of what runs said of `key`.
fn median(runs: &[Measured], key: &str) -> Result<f64, Failure> {
    let mut values = runs
        .iter()
        .map(|m| m.number(key))
        .collect::<Result<Vec<f64>, _>>()?;
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::File { path, source }
}
