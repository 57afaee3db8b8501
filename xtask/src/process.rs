//! Other programs: started, waited for with a deadline, and ended when we end.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Failure;

/// Builds everything that tests run, programs included. Always with the same words: which packages
/// and targets are built together decides the features of what they depend on, and another choice
/// would build most dependencies a second time. The test support uses it as well.
pub(crate) const BUILD_FOR_TESTS: [&str; 4] = ["build", "--workspace", "--bins", "--tests"];

/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Lines kept of what a server says.
const KEPT_LINES: usize = 20;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM end what we started before they end us.
pub(crate) fn watch_signals() -> Result<(), Failure> {
    Ok(ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
    })?)
}

fn interrupted() -> Result<(), Failure> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(Failure::Interrupted);
    }
    Ok(())
}

/// A program that is killed when this is dropped.
struct Running {
    child: Child,
    line: String,
}

impl Running {
    fn start(mut command: Command) -> Result<Self, Failure> {
        let line = line_of(&command);
        match command.spawn() {
            Ok(child) => Ok(Self { child, line }),
            Err(source) => Err(Failure::Start { line, source }),
        }
    }

    /// The exit status, if it has ended.
    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.child.try_wait().map_err(|source| Failure::Start {
            line: self.line.clone(),
            source,
        })
    }

    fn wait(&mut self, deadline: Duration) -> Result<ExitStatus, Failure> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                // What the terminal's Ctrl-C has ended failed for no other reason.
                interrupted()?;
                return Ok(status);
            }
            interrupted()?;
            if start.elapsed() > deadline {
                return Err(Failure::Late {
                    line: self.line.clone(),
                    what: "end",
                    after: deadline,
                });
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // It ended meanwhile, or it ends now.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A command as one would type it.
fn line_of(command: &Command) -> String {
    let short = |path: &OsStr| {
        let name = Path::new(path).file_stem().unwrap_or(path);
        name.to_string_lossy().into_owned()
    };
    let quoted = |arg: &OsStr| {
        let arg = arg.to_string_lossy();
        let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg.into_owned()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    std::iter::once(short(command.get_program()))
        .chain(command.get_args().map(quoted))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a program whose output is for the reader.
pub(crate) fn run(command: Command, deadline: Duration) -> Result<(), Failure> {
    let mut running = Running::start(command)?;
    let status = running.wait(deadline)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::Command {
        line: running.line.clone(),
        status: status.to_string(),
    })
}

/// Runs a program and returns its standard output.
pub(crate) fn output(mut command: Command, deadline: Duration) -> Result<String, Failure> {
    command.stdout(Stdio::piped());
    let mut running = Running::start(command)?;
    let line = running.line.clone();
    let mut pipe = running.child.stdout.take();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.as_mut()
            .map(|p| p.read_to_end(&mut bytes))
            .transpose()?;
        Ok::<_, std::io::Error>(bytes)
    });
    let status = running.wait(deadline)?;
    if !status.success() {
        let status = status.to_string();
        return Err(Failure::Command { line, status });
    }
    let bad = |why: &str| Failure::Output {
        line: line.clone(),
        why: why.to_owned(),
    };
    let bytes = reader.join().map_err(|_| bad("its output was lost"))?;
    let bytes = bytes.map_err(|e| bad(&e.to_string()))?;
    String::from_utf8(bytes).map_err(|_| bad("its output is not UTF-8"))
}

/// Runs a program that prints one JSON object.
pub(crate) fn json(command: Command, deadline: Duration) -> Result<Value, Failure> {
    let line = line_of(&command);
    let text = output(command, deadline)?;
    serde_json::from_str(&text).map_err(|e| Failure::Output {
        line,
        why: format!("its output is not JSON: {e}"),
    })
}

/// A number in a program's JSON object.
pub(crate) fn number(object: &Value, key: &str, from: &str) -> Result<f64, Failure> {
    let found = key.split('.').fold(object, |at, key| &at[key]);
    found.as_f64().ok_or_else(|| Failure::Output {
        line: from.to_owned(),
        why: format!("no number `{key}` in {object}"),
    })
}

/// A server that says `listening on ADDRESS` when it is ready; killed when dropped.
pub(crate) struct Server {
    running: Running,
    /// Where it listens.
    pub(crate) address: String,
    said: Arc<Mutex<VecDeque<String>>>,
}

impl Server {
    /// Starts it and waits until it listens.
    pub(crate) fn start(mut command: Command, deadline: Duration) -> Result<Self, Failure> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut running = Running::start(command)?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (ready, address) = mpsc::channel();
        if let Some(pipe) = running.child.stderr.take() {
            let said = Arc::clone(&said);
            // Ends with the pipe, that is with the server.
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if let Some(address) = listening_on(&line) {
                        // Nobody waits for a second one.
                        let _ = ready.send(address);
                    }
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.push_back(line);
                    if said.len() > KEPT_LINES {
                        said.pop_front();
                    }
                }
            });
        }
        let mut server = Self {
            running,
            address: String::new(),
            said,
        };
        let start = Instant::now();
        loop {
            interrupted()?;
            match address.recv_timeout(LOOK) {
                Ok(address) => {
                    server.address = address;
                    return Ok(server);
                }
                // It has closed the pipe, so it is about to end.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
                Err(RecvTimeoutError::Timeout) => {}
            }
            server.check()?;
            if start.elapsed() > deadline {
                return Err(Failure::Late {
                    line: server.running.line.clone(),
                    what: "start to listen",
                    after: deadline,
                });
            }
        }
    }

    /// Whether it still runs.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        let Some(status) = self.running.ended()? else {
            return Ok(());
        };
        // Ctrl-C in a terminal reaches the server as well.
        interrupted()?;
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        Err(Failure::Ended {
            line: self.running.line.clone(),
            status: status.to_string(),
            said: said.iter().cloned().collect::<Vec<_>>().join("\n"),
        })
    }
}

/// The address in a line such as `listening on 127.0.0.1:7433`.
fn listening_on(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("listening on ")?;
    let address = rest.split_whitespace().next()?;
    let address = address.trim_end_matches([',', ';', '.']);
    let port = address.rsplit_once(':')?.1;
    port.parse::<u16>().ok().map(|_| address.to_owned())
}

/// Tests compare bits, and figures name the processor, also where there is a card.
pub(crate) fn on_the_processor(command: &mut Command) {
    command.env("SPLITRUN_DEVICE", "cpu");
}

/// The workspace, and the programs built from it.
pub(crate) struct Workspace {
    /// Its folder.
    pub(crate) root: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// The one this program was built from.
    pub(crate) fn find() -> Self {
        let here = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        Self {
            root: here.parent().unwrap_or(&here).to_owned(),
            cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        }
    }

    /// `cargo ARGS…`
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(args).current_dir(&self.root);
        fixtures::forget_package(&mut command);
        command
    }

    /// Builds the programs.
    pub(crate) fn build(&self, profile: Profile) -> Result<Programs, Failure> {
        let args = match profile {
            Profile::Release => &[
                "build",
                "--bins",
                "-p",
                "converter",
                "-p",
                "engine",
                "--release",
            ][..],
            Profile::Tests => &BUILD_FOR_TESTS,
        };
        let mut command = self.cargo(args);
        say(&command);
        command.arg("--message-format=json-render-diagnostics");
        let messages = output(command, Duration::from_mins(30))?;
        Ok(Programs {
            root: self.root.clone(),
            paths: executables(&messages),
        })
    }
}

/// Name and path of each program in cargo's messages.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|m| {
            // A program's own unit tests have its name too.
            if m["profile"]["test"] == true {
                return None;
            }
            let path = m["executable"].as_str()?;
            Some((m["target"]["name"].as_str()?.to_owned(), path.into()))
        })
        .collect()
}

/// How the programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For use and for measuring.
    Release,
    /// As the tests have built them already.
    Tests,
}

/// The built programs.
pub(crate) struct Programs {
    root: PathBuf,
    paths: BTreeMap<String, PathBuf>,
}

impl Programs {
    /// `NAME ARGS…`, run in the workspace's folder.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, name: &str, args: &[A]) -> Command {
        let mut command = match self.paths.get(name) {
            Some(path) => Command::new(path),
            None => Command::new(name),
        };
        command.args(args).current_dir(&self.root);
        on_the_processor(&mut command);
        command
    }

    /// A folder for what a task writes, beside the programs, made if need be.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let beside = self
            .paths
            .values()
            .next()
            .and_then(|p| p.parent()?.parent());
        let path = beside.unwrap_or(&self.root.join("target")).join(name);
        match std::fs::create_dir_all(&path) {
            // Short in what is printed, where it is inside the workspace.
            Ok(()) => Ok(path
                .strip_prefix(&self.root)
                .map_or(path.clone(), Path::to_owned)),
            Err(source) => Err(Failure::File { path, source }),
        }
    }

    /// The path of something a program was given, which is relative to the workspace.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }
}

/// Prints a command before it runs, and returns it as one would type it.
pub(crate) fn say(command: &Command) -> String {
    let line = line_of(command);
    eprintln!("$ {line}");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let mut c = Command::new("/a/b/splitrun");
        c.args(["--prompt", "it's hot", "-n", "", "a.gguf"]);
        assert_eq!(line_of(&c), r"splitrun --prompt 'it'\''s hot' -n '' a.gguf");
    }

    #[test]
    fn addresses_in_what_a_server_says() {
        let at = |line| listening_on(line);
        assert_eq!(
            at("listening on 127.0.0.1:7433"),
            Some("127.0.0.1:7433".into())
        );
        assert_eq!(
            at("cloud: listening on [::1]:80, no TLS"),
            Some("[::1]:80".into())
        );
        assert_eq!(at("listening on port"), None);
        assert_eq!(at("listening on 127.0.0.1:99999"), None);
        assert_eq!(at("loading"), None);
    }

    #[test]
    fn programs_in_cargos_messages() {
        let text = "{\"reason\":\"x\",\"target\":{\"name\":\"lib\"},\"executable\":null}\nnoise\n\
            {\"target\":{\"name\":\"splitrun\"},\"executable\":\"/t/release/splitrun\"}";
        let found = executables(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found["splitrun"], Path::new("/t/release/splitrun"));
    }

    #[cfg(unix)]
    mod unix {
        use super::*;

        fn sh(script: &str) -> Command {
            let mut c = Command::new("sh");
            c.args(["-c", script]);
            c
        }

        #[test]
        fn a_server_is_ready_when_it_says_so_and_ends_with_its_handle() {
            let second = Duration::from_secs(20);
            let server = sh("echo listening on 127.0.0.1:5 >&2; exec sleep 1000");
            let mut server = Server::start(server, second).unwrap();
            assert_eq!(server.address, "127.0.0.1:5");
            server.check().unwrap();
            let pid = server.running.child.id();
            drop(server);
            assert!(!run_ok(sh(&format!("kill -0 {pid} 2>/dev/null"))));
            let gone = Server::start(sh("echo no such file >&2; exit 3"), second);
            let text = gone.err().unwrap().to_string();
            assert!(text.contains("no such file"), "{text}");
            let silent = Server::start(sh("exec sleep 1000"), Duration::from_millis(100));
            assert!(matches!(silent.err(), Some(Failure::Late { .. })));
        }

        fn run_ok(c: Command) -> bool {
            run(c, Duration::from_secs(20)).is_ok()
        }

        #[test]
        fn failures_and_deadlines_are_told() {
            assert!(run_ok(sh("exit 0")));
            let failed = run(sh("exit 7"), Duration::from_secs(20)).unwrap_err();
            assert!(failed.to_string().contains("exit 7"), "{failed}");
            let late = run(sh("exec sleep 1000"), Duration::from_millis(100));
            assert!(matches!(late, Err(Failure::Late { .. })));
            let missing = run(Command::new("./no-such-program"), Duration::from_secs(1));
            assert!(matches!(missing, Err(Failure::Start { .. })));
            let object = json(sh("echo '{\"a\": 2}'"), Duration::from_secs(20)).unwrap();
            assert_eq!(number(&object, "a", "x").unwrap(), 2.0);
            assert!(number(&object, "b", "x").is_err());
            assert!(json(sh("echo hello"), Duration::from_secs(20)).is_err());
        }
    }
}
