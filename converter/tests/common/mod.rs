//! What the tests share: running the program, reading what it wrote.
#![allow(dead_code)] // every test file is a crate of its own and uses a part of this

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fixtures::LlamaShape;
use formats::blocks::dequantize_row;
use formats::gguf::Gguf;
use serde_json::Value as Json;

/// A folder that goes away, with a model `m.gguf` in it.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(shape: &LlamaShape) -> Self {
        let bench = Self::empty();
        shape.write(&bench.path("m.gguf")).unwrap();
        bench
    }

    pub(crate) fn empty() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs splitconv in the folder.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args))
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_splitconv"));
        command.current_dir(self.dir.path()).args(args);
        command
    }

    /// The names in the folder, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn open(&self, name: &str) -> Gguf {
        Gguf::open(&self.path(name)).unwrap()
    }
}

/// How a run ended.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(mut command: Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        Self {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// Ended with 1 and one line that holds all of `words`.
    #[track_caller]
    pub(crate) fn fails_with(&self, words: &[&str]) {
        assert_eq!(self.code, 1, "{}", self.stderr);
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter(|l| l.starts_with("splitconv: error: "))
            .collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert_eq!(self.stderr.lines().last(), errors.first().copied());
        for w in words {
            assert!(errors[0].contains(w), "no {w:?} in: {}", errors[0]);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Json {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

/// All weights of a tensor.
pub(crate) fn weights(file: &Gguf, name: &str) -> Vec<f32> {
    let t = file.tensor(name).unwrap();
    let mut out = vec![0.0; t.weights() as usize];
    let rows = file.data(t).chunks(t.row_bytes());
    for (row, values) in rows.zip(out.chunks_mut(t.row_len())) {
        dequantize_row(t.block_type, row, values).unwrap();
    }
    out
}

pub(crate) fn edge(split: u32, bits: &str) -> String {
    format!("m-s{split}{bits}-00001-of-00002.gguf")
}

pub(crate) fn cloud(split: u32, bits: &str) -> String {
    format!("m-s{split}{bits}-00002-of-00002.gguf")
}

/// Flips one byte of a file.
pub(crate) fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}
