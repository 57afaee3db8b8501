//! Are the predictions of `splitconv plan` true on this machine? Plans, converts, runs both
//! halves over a link that this program slows down, and compares: size of the files, peak of
//! resident memory, time of a token.
//!
//! `cargo run --release -p integration --example plan_check -- MODEL.gguf PROFILE.json [CONTEXT]`
//!
//! The programs are those of the same build. Exit code 1 when a size differs, a peak is off by
//! more than 5 % or a time by more than 15 %.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use formats::gguf::{Gguf, Value};
use serde_json::Value as Json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tokens that are generated, the last of a context.
const TOKENS: usize = 32;

/// Links and wishes: uplink, round trip, what else the plan is asked.
const PLANS: [(&str, f64, &str, f64, &str); 5] = [
    (
        "20Mbit/s",
        20e6,
        "10ms",
        10.0,
        "--objective speed --max-kl 0.5",
    ),
    ("2Mbit/s", 2e6, "30ms", 30.0, "--objective quality"),
    (
        "1Mbit/s",
        1e6,
        "5ms",
        5.0,
        "--objective server-load --max-kl 0.5",
    ),
    (
        "500kbit/s",
        5e5,
        "20ms",
        20.0,
        "--objective speed --max-kl 0.2",
    ),
    (
        "100Mbit/s",
        1e8,
        "1ms",
        1.0,
        "--objective quality --max-kl 0.01",
    ),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (model, profile, context) = match args.as_slice() {
        [model, profile] => (model, profile, 512),
        [model, profile, context] => (model, profile, context.parse()?),
        _ => return Err("usage: plan_check MODEL.gguf PROFILE.json [CONTEXT]".into()),
    };
    let dir = std::env::temp_dir().join(format!("plan_check-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = check_all(Path::new(model), profile, context, &dir);
    std::fs::remove_dir_all(&dir)?;
    if result? {
        return Ok(());
    }
    std::process::exit(1)
}

fn check_all(model: &Path, profile: &str, context: usize, dir: &Path) -> Result<bool> {
    let prompt = dir.join("prompt.txt");
    write_prompt(model, context.saturating_sub(TOKENS), &prompt)?;
    let mut good = true;
    println!(
        "plan                              bytes   edge MiB (off)     cloud MiB (off)    ms/token (off)    first ms (off)"
    );
    for (uplink, bits_per_s, rtt, rtt_ms, wish) in PLANS {
        let c = context.to_string();
        let mut words = vec![
            "plan",
            path(model)?,
            "--json",
            "--uplink",
            uplink,
            "--rtt",
            rtt,
            "-c",
            &c,
        ];
        let prompt_tokens = context.saturating_sub(TOKENS).to_string();
        words.extend(["--edge-profile", profile, "--cloud-profile", profile]);
        words.extend([
            "--edge-memory",
            "64GiB",
            "--cloud-memory",
            "64GiB",
            "--prompt-tokens",
            &prompt_tokens,
        ]);
        words.extend(wish.split(' '));
        let plan: Json = serde_json::from_slice(&output(&mut command("splitconv", &words))?)?;
        let best = &plan["best"];
        let argv = best["argv"].as_array().ok_or("no argv")?;
        let mut argv: Vec<&str> = argv.iter().filter_map(Json::as_str).collect();
        let folder = dir.join("pair");
        argv.extend(["--out", path(&folder)?, "--json"]);
        let pair: Json = serde_json::from_slice(&output(&mut command("splitconv", &argv))?)?;
        let measured = run(best, &pair, &prompt, (bits_per_s, rtt_ms / 2.0))?;
        std::fs::remove_dir_all(&folder)?;
        let same = ["edge", "cloud"]
            .iter()
            .all(|h| pair[format!("{h}_bytes")] == best[format!("{h}_file_bytes")]);
        let mut column = |key: &str, value: f64, unit: f64, most: f64| {
            let predicted = best[key].as_f64().unwrap_or(f64::NAN);
            let off = 100.0 * (predicted / value - 1.0);
            good &= off.abs() <= most;
            format!(
                "{:>7.1} {:>7.1} ({off:+.1} %)",
                predicted / unit,
                value / unit
            )
        };
        let mib = 1_048_576.0;
        let columns = [
            column("edge_resident_bytes", measured.edge_peak, mib, 5.0),
            column("cloud_resident_bytes", measured.cloud_peak, mib, 5.0),
            column("token_ms", measured.token_ms, 1.0, 15.0),
            column("ttft_ms", measured.first_ms, 1.0, f64::INFINITY),
        ];
        good &= same;
        println!(
            "{uplink:>9} {rtt:>4} s{}e{}c{} {:8} {:5} {}",
            best["split"],
            best["edge_bits"],
            best["cloud_bits"],
            best["codec"]
                .as_str()
                .unwrap_or("")
                .split(':')
                .next()
                .unwrap_or(""),
            if same { "equal" } else { "OTHER" },
            columns.join("  ")
        );
    }
    Ok(good)
}

/// What a run was.
struct Measured {
    edge_peak: f64,
    cloud_peak: f64,
    token_ms: f64,
    first_ms: f64,
}

/// Runs both halves; `link` is bits per second up and milliseconds each way.
fn run(best: &Json, pair: &Json, prompt: &Path, link: (f64, f64)) -> Result<Measured> {
    let file = |half: &str| pair[format!("{half}_file")].as_str().ok_or("no file name");
    let context = best["context"].to_string();
    let words = [
        "--role",
        "cloud",
        "--model",
        file("cloud")?,
        "--listen",
        "127.0.0.1:0",
        "-c",
        &context,
    ];
    let mut cloud = Ended(command("splitrun", &words).stderr(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(cloud.0.stderr.take().ok_or("no standard error")?).lines();
    let address = loop {
        let line = lines.next().ok_or("the cloud ended")??;
        if let Some(address) = line.strip_prefix("listening on ") {
            break address.to_owned();
        }
    };
    std::thread::spawn(move || lines.for_each(drop));
    let relay = relay(address, link)?;
    let codec = best["codec"].as_str().ok_or("no codec")?;
    let n = TOKENS.to_string();
    let mut words = vec![
        "--role",
        "edge",
        "--model",
        file("edge")?,
        "--cloud",
        &relay,
        "-c",
        &context,
    ];
    words.extend([
        "--codec",
        codec,
        "-f",
        path(prompt)?,
        "-n",
        &n,
        "--temp",
        "0",
        "--ignore-eos",
        "--json",
    ]);
    let mut edge = command("splitrun", &words);
    let mut edge = Ended(edge.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    let mut edge_peak = 0.0;
    while edge.0.try_wait()?.is_none() {
        edge_peak = peak(edge.0.id()).unwrap_or(edge_peak);
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut text = String::new();
    edge.0
        .stdout
        .take()
        .ok_or("no output")?
        .read_to_string(&mut text)?;
    let done: Json = serde_json::from_str(&text)?;
    let tokens_per_s = done["tokens_per_s"].as_f64().ok_or("no speed")?;
    Ok(Measured {
        edge_peak,
        cloud_peak: peak(cloud.0.id()).ok_or("no peak of the cloud")?,
        token_ms: 1e3 / tokens_per_s,
        first_ms: done["ttft_ms"]
            .as_f64()
            .ok_or("no time to the first token")?,
    })
}

/// A process that ends with this program's interest in it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The largest resident size that a process has had, in bytes.
fn peak(id: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// Words from all over the vocabulary, `tokens` tokens of them at most: so that every page of the
/// embedding is looked at.
fn write_prompt(model: &Path, tokens: usize, to: &Path) -> Result<()> {
    let file = Gguf::open(model)?;
    let list = file
        .metadata()
        .get("tokenizer.ggml.tokens")
        .and_then(Value::as_array);
    let list = list.and_then(|a| a.strings()).ok_or("no vocabulary")?;
    let words: Vec<String> = list
        .filter_map(|t| std::str::from_utf8(t).ok())
        .filter_map(|t| t.strip_prefix('Ġ').or(t.strip_prefix('▁')))
        .filter(|w| w.len() > 2 && w.chars().all(|c| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect();
    let mut count = tokens;
    loop {
        let step = (words.len() / count.max(1)).max(1);
        let text: Vec<&str> = words
            .iter()
            .step_by(step)
            .take(count)
            .map(String::as_str)
            .collect();
        let text = text.join(" ");
        let mut child = command("splitrun", &["tokenize", "--model", path(model)?, "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .ok_or("no input")?
            .write_all(text.as_bytes())?;
        let out: Json = serde_json::from_slice(&child.wait_with_output()?.stdout)?;
        let n = out["ids"].as_array().map_or(0, Vec::len);
        if n <= tokens {
            std::fs::write(to, text)?;
            return Ok(());
        }
        if count <= 1 {
            return Err("the context is too short".into());
        }
        count -= (n - tokens).min(count - 1);
    }
}

fn path(p: &Path) -> Result<&str> {
    p.to_str().ok_or_else(|| "a path that is no text".into())
}

/// A program of this build.
fn command(name: &str, args: &[&str]) -> Command {
    let mut folder = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("."));
    folder.pop();
    folder.pop();
    let mut command = Command::new(folder.join(name));
    command.args(args).env("SPLITRUN_DEVICE", "cpu");
    command
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let out = command.stderr(Stdio::piped()).output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    Ok(out.stdout)
}

/// Listens, and passes connections on to `to`: bits per second on the way there, milliseconds of
/// delay each way.
fn relay(to: String, (bits_per_s, delay_ms): (f64, f64)) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let delay = Duration::from_secs_f64(delay_ms / 1e3);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&to) else {
                return;
            };
            for s in [&client, &server] {
                let _ = s.set_nodelay(true);
            }
            let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else {
                return;
            };
            pass(client, server, bits_per_s, delay);
            pass(server2, client2, f64::INFINITY, delay);
        }
    });
    Ok(address)
}

/// Passes bytes on, each when the link would have delivered it.
fn pass(mut from: TcpStream, mut to: TcpStream, bits_per_s: f64, delay: Duration) {
    let (sender, receiver) = channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let mut free = Instant::now();
        let mut buffer = vec![0; 1 << 14];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // What TCP and IP add to a packet counts too.
            let bits = 8.0 * (n + 52 * n.div_ceil(1448)) as f64;
            free = free.max(Instant::now()) + Duration::from_secs_f64(bits / bits_per_s);
            if sender.send((free + delay, buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || deliver(&receiver, &mut to));
}

fn deliver(pieces: &Receiver<(Instant, Vec<u8>)>, to: &mut TcpStream) {
    while let Ok((at, bytes)) = pieces.recv() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
