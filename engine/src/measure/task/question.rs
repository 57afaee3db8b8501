//! Files of questions: JSON objects, one a line.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use serde_json::{Map, Value};

use super::published;
use crate::role::RunError;

/// No line of a file of questions is longer.
const MAX_LINE: u64 = 256 << 10;
/// No file has more questions.
const MAX_QUESTIONS: usize = 1 << 18;
/// No question has more choices.
const MAX_CHOICES: usize = 64;

/// A text, some ways to go on, and which of them is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The text in front; may be empty.
    pub query: String,
    /// At least two, none empty.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

impl Question {
    /// 32 hexadecimal digits that depend on query and choices, not on which choice is right.
    pub fn key(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for text in std::iter::once(&self.query).chain(&self.choices) {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize().to_hex()[..32].to_owned()
    }

    /// Its first few words, for messages.
    pub fn start(&self) -> String {
        let text: String = self.query.chars().take(40).collect();
        format!("{text:?}")
    }

    /// Checks numbers and texts.
    fn check(self) -> Result<Self, String> {
        let n = self.choices.len();
        if !(2..=MAX_CHOICES).contains(&n) {
            return Err(format!("{n} choices, expected 2 to {MAX_CHOICES}"));
        }
        if let Some(i) = self.choices.iter().position(String::is_empty) {
            return Err(format!("choice {i} is empty"));
        }
        if self.gold >= n {
            return Err(format!("`gold` is {}, there are {n} choices", self.gold));
        }
        Ok(self)
    }
}

/// The object's string under `key`.
pub(super) fn string<'a>(o: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match o.get(key) {
        Some(Value::String(s)) => Ok(s),
        Some(_) => Err(format!("`{key}` is no string")),
        None => Err(format!("there is no `{key}`")),
    }
}

/// The object's strings under `key`.
pub(super) fn strings(o: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let list = o.get(key).and_then(Value::as_array);
    let list = list.ok_or_else(|| format!("`{key}` is no list"))?;
    list.iter()
        .map(|v| v.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("`{key}` holds something that is no string"))
}

/// The question of one line. `label` is what a file beside says of it.
fn question(line: &str, label: Option<&str>) -> Result<Question, String> {
    let o = match serde_json::from_str(line) {
        Ok(Value::Object(o)) => o,
        Ok(_) => return Err("it is no JSON object".into()),
        Err(e) => return Err(format!("it is no JSON: {e}")),
    };
    let question = if o.contains_key("query") {
        let gold = o.get("gold").and_then(Value::as_u64);
        Question {
            query: string(&o, "query")?.to_owned(),
            choices: strings(&o, "choices")?,
            gold: gold.ok_or("`gold` is no index of a choice")? as usize,
        }
    } else {
        published::question(&o, label)?
    };
    question.check()
}

/// Reads the first `limit` questions of a file: `query`, `choices`, `gold`, or one of the layouts
/// that [`published`] knows. Empty lines are passed over.
///
/// # Errors
/// When the file cannot be read, and at the first line that is no question, by its number.
pub fn read_questions(path: &Path, limit: Option<usize>) -> Result<Vec<Question>, RunError> {
    let most = limit.unwrap_or(MAX_QUESTIONS).min(MAX_QUESTIONS);
    let io = || RunError::io(path.display().to_string());
    let mut file = BufReader::new(File::open(path).map_err(io())?);
    let labels = published::labels_beside(path)?;
    let (mut out, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    while out.len() < most {
        line.clear();
        let n = (&mut file)
            .take(MAX_LINE + 1)
            .read_until(b'\n', &mut line)
            .map_err(io())?;
        if n == 0 {
            break;
        }
        number += 1;
        let bad =
            |why: String| RunError::Request(format!("{}, line {number}: {why}", path.display()));
        if n as u64 > MAX_LINE {
            return Err(bad(format!("it has more than {MAX_LINE} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|e| bad(format!("it is no UTF-8: {e}")))?;
        if text.trim().is_empty() {
            continue;
        }
        let label = labels.as_ref().map(|l| l.get(out.len()));
        let label = match label {
            Some(None) => return Err(bad("the file of labels has fewer lines".into())),
            Some(Some(l)) => Some(l.as_str()),
            None => None,
        };
        out.push(question(text, label).map_err(bad)?);
    }
    if out.is_empty() {
        return Err(RunError::Request(format!(
            "{}: there is no question in it",
            path.display()
        )));
    }
    let more = out.len() == MAX_QUESTIONS && limit.is_none_or(|l| l > MAX_QUESTIONS);
    if more && !file.fill_buf().map_err(io())?.is_empty() {
        return Err(RunError::Request(format!(
            "{}: more than {MAX_QUESTIONS} questions; --limit takes the first of them",
            path.display()
        )));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<Question>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        std::fs::write(&path, text).unwrap();
        read_questions(&path, None).map_err(|e| e.to_string())
    }

    #[test]
    fn lines_are_questions_or_errors_with_a_number() {
        let good = r#"{"query":"a","choices":["b","c"],"gold":1,"more":[]}"#;
        let two = read(format!("{good}\n\n{good}").as_bytes()).unwrap();
        assert_eq!(two.len(), 2);
        assert_eq!((two[0].query.as_str(), two[0].gold), ("a", 1));
        assert_eq!(two[0].key(), two[1].key());
        for (line, why) in [
            (
                r#"{"query":"a","choices":["b","c"],"gold":2}"#,
                "`gold` is 2",
            ),
            (r#"{"query":"a","choices":["b","c"],"gold":-1}"#, "`gold`"),
            (r#"{"query":"a","choices":["b"],"gold":0}"#, "1 choices"),
            (
                r#"{"query":"a","choices":["b",""],"gold":0}"#,
                "choice 1 is empty",
            ),
            (r#"{"query":"a","choices":["b",1],"gold":0}"#, "no string"),
            (r#"{"query":1,"choices":["b","c"],"gold":0}"#, "`query`"),
            (r#"{"text":"a"}"#, "layouts of ARC"),
            ("[1]", "no JSON object"),
            ("{", "no JSON"),
        ] {
            let said = read(format!("{good}\n{line}\n").as_bytes()).unwrap_err();
            assert!(
                said.contains("line 2") && said.contains(why),
                "{line}: {said}"
            );
        }
        assert!(read(b"").unwrap_err().contains("no question"));
        assert!(read(&[0xff, b'\n']).unwrap_err().contains("UTF-8"));
        let long = vec![b' '; MAX_LINE as usize + 10];
        assert!(read(&long).unwrap_err().contains("bytes"));
        let deep = "[".repeat(100_000);
        assert!(read(deep.as_bytes()).unwrap_err().contains("no JSON"));
    }

    #[test]
    fn the_key_knows_where_texts_end() {
        let q = |query: &str, choices: [&str; 2]| Question {
            query: query.into(),
            choices: choices.map(String::from).to_vec(),
            gold: 0,
        };
        assert_ne!(q("ab", ["c", "d"]).key(), q("a", ["bc", "d"]).key());
        let other = Question {
            gold: 1,
            ..q("a", ["b", "c"])
        };
        assert_eq!(q("a", ["b", "c"]).key(), other.key());
    }
}
