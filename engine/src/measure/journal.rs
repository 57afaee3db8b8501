//! What a long measurement has finished, kept so that it can go on after a stop.
//!
//! A journal is a text file of JSON objects, one a line. The first says what is measured (model,
//! codec, text, …); each other holds one result under its key. The last member of every line,
//! `check`, is a hash of all in front of it, so a line that was cut short or changed is never
//! taken for a result: what it was about is measured again. A journal of something else is
//! refused, and nothing that is not a journal is written to.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::role::RunError;

/// The value of `format` in the first line.
const FORMAT: &str = "splitrun.journal";
/// The version of the lines' layout.
const VERSION: u64 = 1;
/// No journal is longer: a hundred thousand results of a kilobyte.
const MAX_BYTES: u64 = 128 << 20;
/// What stands in front of a line's check.
const CHECK: &str = ",\"check\":\"";

/// An open journal, or one that keeps nothing beyond this process.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
    records: HashMap<String, Value>,
    damaged: usize,
}

fn refuse(path: &Path, why: impl std::fmt::Display) -> RunError {
    RunError::Request(format!("{}: {why}", path.display()))
}

/// The first 16 hexadecimal digits of the BLAKE3 hash.
fn check_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

/// The line of an object, which must not be empty: its members and the check.
fn line_of(object: &Value) -> String {
    let text = object.to_string();
    let members = text.strip_suffix('}').unwrap_or(&text);
    format!("{members}{CHECK}{}\"}}\n", check_of(members.as_bytes()))
}

/// The object of a whole line. `None` when its check is not that of its text.
fn object_of(line: &str) -> Option<Map<String, Value>> {
    let (members, rest) = line.rsplit_once(CHECK)?;
    if rest.strip_suffix("\"}")? != check_of(members.as_bytes()) {
        return None;
    }
    match serde_json::from_str(line).ok()? {
        Value::Object(o) => Some(o),
        _ => None,
    }
}

/// The object of the first line, if the text is a journal's.
fn head_of(path: &Path, text: &str) -> Result<Map<String, Value>, RunError> {
    let first = text.lines().next().unwrap_or_default();
    let object = object_of(first).filter(|o| o.get("format") == Some(&json!(FORMAT)));
    let mut head = object.ok_or_else(|| {
        refuse(
            path,
            "it holds no results of splitrun, or its first line is damaged; choose another file",
        )
    })?;
    if head.remove("version") != Some(json!(VERSION)) {
        return Err(refuse(
            path,
            "it was written by another version of splitrun; choose another file",
        ));
    }
    head.retain(|k, _| k != "format" && k != "check");
    Ok(head)
}

/// The results of a text whose first line was read: by key, and how many lines are damaged.
fn records_of(text: &str) -> (HashMap<String, Value>, usize) {
    let (mut records, mut damaged) = (HashMap::new(), 0);
    for line in text.lines().skip(1) {
        match object_of(line) {
            Some(mut o) => match (o.remove("key"), o.remove("value")) {
                (Some(Value::String(key)), Some(value)) => {
                    records.insert(key, value);
                }
                _ => damaged += 1,
            },
            None => damaged += 1,
        }
    }
    (records, damaged)
}

/// All of a file, which must be short enough for a journal.
fn read_all(path: &Path, file: &mut File) -> Result<String, RunError> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(RunError::io(path.display().to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse(
            path,
            format!("it has more than {MAX_BYTES} bytes, no file of results has"),
        ));
    }
    // Damaged text fails its line's check, whatever stands in its place.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Journal {
    /// Opens the journal `path` of what `head` describes (an object), or begins it.
    ///
    /// # Errors
    /// When the file is no journal, is of something else than `head`, is in use by another
    /// process, or cannot be read or written.
    pub fn open(path: &Path, head: &Map<String, Value>) -> Result<Self, RunError> {
        let io = |e| RunError::io(path.display().to_string())(e);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse(path, "another splitrun is writing to it"));
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        let text = read_all(path, &mut file)?;
        if text.is_empty() {
            let mut object = Map::new();
            object.insert("format".into(), json!(FORMAT));
            object.insert("version".into(), json!(VERSION));
            object.extend(head.clone());
            let line = line_of(&Value::Object(object));
            file.write_all(line.as_bytes()).map_err(io)?;
            return Ok(Self {
                file: Some((path.to_owned(), file)),
                ..Self::default()
            });
        }
        let found = head_of(path, &text)?;
        let keys = head.keys().chain(found.keys());
        if let Some(key) = keys.into_iter().find(|k| head.get(*k) != found.get(*k)) {
            let show = |v: Option<&Value>| v.map_or("nothing".to_owned(), Value::to_string);
            return Err(refuse(
                path,
                format!(
                    "its results are of another measurement: `{key}` is {} there and {} here; choose another file",
                    show(found.get(key)),
                    show(head.get(key))
                ),
            ));
        }
        let (records, damaged) = records_of(&text);
        // A line that was cut short would spoil the next one.
        if !text.ends_with('\n') {
            file.seek(SeekFrom::End(0)).map_err(io)?;
            file.write_all(b"\n").map_err(io)?;
        }
        Ok(Self {
            file: Some((path.to_owned(), file)),
            records,
            damaged,
        })
    }

    /// What a journal holds, to be read only: its head and its results.
    ///
    /// # Errors
    /// When the file is no journal or cannot be read.
    pub fn read(path: &Path) -> Result<(Map<String, Value>, Self), RunError> {
        let mut file = File::open(path).map_err(RunError::io(path.display().to_string()))?;
        let text = read_all(path, &mut file)?;
        let head = head_of(path, &text)?;
        let (records, damaged) = records_of(&text);
        let journal = Self {
            file: None,
            records,
            damaged,
        };
        Ok((head, journal))
    }

    /// Whether the file looks like a journal; nothing in it is checked.
    pub fn looks_like_one(path: &Path) -> bool {
        let mut start = [0; 64];
        let n = File::open(path).and_then(|mut f| f.read(&mut start));
        let start = &start[..n.unwrap_or(0)];
        start.starts_with(format!("{{\"format\":\"{FORMAT}\"").as_bytes())
    }

    /// The result under `key`. What is there but is no `T` is as good as nothing.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        T::deserialize(self.records.get(key)?).ok()
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&mut self, key: &str, value: &impl Serialize) -> Result<(), RunError> {
        let value = serde_json::to_value(value)
            .map_err(|e| RunError::Request(format!("a result cannot be written: {e}")))?;
        if let Some((path, file)) = &mut self.file {
            let line = line_of(&json!({ "key": key, "value": value }));
            file.write_all(line.as_bytes())
                .map_err(RunError::io(path.display().to_string()))?;
        }
        self.records.insert(key.to_owned(), value);
        Ok(())
    }

    /// Results held.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Lines that were damaged and count for nothing.
    pub fn damaged(&self) -> usize {
        self.damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(model: &str) -> Map<String, Value> {
        let mut m = Map::new();
        m.insert("model".into(), json!(model));
        m
    }

    #[test]
    fn results_outlive_the_process_and_damage_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        let mut j = Journal::open(&path, &head("a")).unwrap();
        assert!(Journal::looks_like_one(&path));
        for (key, v) in [("one", 1.5), ("two", -0.1), ("three", 3.0)] {
            j.put(key, &v).unwrap();
        }
        let said = Journal::open(&path, &head("a")).unwrap_err().to_string();
        assert!(said.contains("another splitrun"), "{said}");
        drop(j);
        let j = Journal::open(&path, &head("a")).unwrap();
        assert_eq!((j.len(), j.damaged()), (3, 0));
        assert_eq!(j.get::<f64>("two"), Some(-0.1));
        assert_eq!(j.get::<String>("two"), None);
        drop(j);
        let said = Journal::open(&path, &head("b")).unwrap_err().to_string();
        assert!(said.contains("`model` is \"a\" there and \"b\""), "{said}");
        // One byte of a line changed, and the last line cut short.
        let whole = std::fs::read_to_string(&path).unwrap();
        let changed = whole.replace("\"value\":1.5", "\"value\":1.6");
        assert_ne!(whole, changed);
        std::fs::write(&path, &changed[..changed.len() - 5]).unwrap();
        let mut j = Journal::open(&path, &head("a")).unwrap();
        assert_eq!((j.len(), j.damaged()), (1, 2));
        j.put("three", &4.0).unwrap();
        drop(j);
        let (found, j) = Journal::read(&path).unwrap();
        assert_eq!(found, head("a"));
        assert_eq!(j.get::<f64>("three"), Some(4.0));
        assert_eq!(j.get::<f64>("one"), None);
    }

    #[test]
    fn nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.jsonl");
        for text in ["precious", "{\"format\":\"splitrun.journal\"}\n", "\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(Journal::open(&path, &head("a")).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        // Without a file results are kept as long as the process.
        let mut j = Journal::default();
        j.put("k", &1).unwrap();
        assert_eq!(j.get::<u8>("k"), Some(1));
    }
}
