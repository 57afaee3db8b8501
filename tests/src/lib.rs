//! What the integration tests share: the real programs, run as a user runs them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fixtures::LlamaShape;
use formats::blocks::BlockType;
use formats::gguf::GgufSet;

/// The folder of the programs: that of the running test's own profile.
fn bin_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    // target/PROFILE/deps/test-hash
    exe.parent().and_then(Path::parent).unwrap().to_owned()
}

/// A program of this workspace, built first if it is not up to date.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = bin_dir();
        let release = dir.ends_with("release");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        // The words of `cargo xtask test`: others would build most dependencies again.
        cargo.args(["build", "--quiet", "--workspace", "--bins", "--tests"]);
        if release {
            cargo.arg("--release");
        }
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.env("CARGO_TARGET_DIR", dir.parent().unwrap());
        fixtures::forget_package(&mut cargo);
        assert!(
            cargo.status().unwrap().success(),
            "building the programs failed"
        );
    });
    bin_dir().join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// A program as the tests run it: on the processor unless it is told otherwise, because they compare
/// bits.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    command.env("SPLITRUN_DEVICE", "cpu");
    command
}

/// Runs `name` in `dir` and waits for it.
pub fn run(dir: &Path, name: &str, args: &[&str]) -> Output {
    command(name)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `name`, which must succeed, and returns its standard output.
pub fn must(dir: &Path, name: &str, args: &[&str]) -> String {
    let out = run(dir, name, args);
    assert!(
        out.status.success(),
        "{name} {args:?}: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Runs `name`, which must succeed, and parses the one JSON object it prints.
pub fn must_json(dir: &Path, name: &str, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&must(dir, name, args)).unwrap()
}

/// A `splitrun --role cloud` process; ended when dropped.
pub struct Cloud {
    child: Child,
    /// Where it listens.
    pub address: String,
}

impl Cloud {
    /// Starts it in `dir` on a free port and waits until it listens.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        let mut all = vec!["--role", "cloud", "--listen", "127.0.0.1:0"];
        all.extend(args);
        Self::start_as_typed(dir, &all)
    }

    /// Starts it with exactly these arguments.
    pub fn start_as_typed(dir: &Path, args: &[&str]) -> Self {
        let mut child = command("splitrun")
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("the cloud ended before it listened:\n{seen}");
            };
            if let Some(address) = line.strip_prefix("listening on ") {
                break address.to_owned();
            }
            seen.push_str(&line);
            seen.push('\n');
        };
        // Whatever else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&mut self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> std::process::ExitStatus {
        wait(&mut self.child, limit)
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for `child` at most `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            panic!("still running after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A folder with SmolLM2 cut at 10, its blocks copied; made once per test process.
pub fn smollm2_pair() -> &'static Path {
    static PAIR: Mutex<Option<&'static tempfile::TempDir>> = Mutex::new(None);
    let mut made = PAIR.lock().unwrap_or_else(PoisonError::into_inner);
    made.get_or_insert_with(|| {
        let dir = tempfile::tempdir().unwrap();
        let model = fixtures::smollm2_gguf();
        let model = model.to_str().unwrap();
        let args = [
            model,
            "--split",
            "10",
            "--edge-bits",
            "8",
            "--cloud-bits",
            "8",
        ];
        must(dir.path(), "splitconv", &args);
        Box::leak(Box::new(dir))
    })
    .path()
}

/// A model of one layer, all matrices of type `ty`, in `dir`. Its head has three rows more than tiles of any
/// processor, and K-quants want rows of 256.
pub fn model_of(dir: &Path, ty: BlockType) -> Arc<GgufSet> {
    let path = dir.join(format!("{ty}.gguf"));
    let shape = LlamaShape {
        n_layer: 1,
        n_embd: 256,
        n_head: 4,
        n_head_kv: 2,
        n_ff: 512,
        n_vocab: 323,
        matrix_type: ty,
        ..LlamaShape::tiny()
    };
    shape.write(&path).unwrap();
    Arc::new(GgufSet::open(&path).unwrap())
}
