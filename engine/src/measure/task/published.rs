//! The well-known sets as their authors publish them, turned into queries and choices.
//!
//! | set | keys | query | choices |
//! |---|---|---|---|
//! | ARC | `question.stem`, `question.choices`, `answerKey` | `Question: STEM⏎Answer:` | the choices |
//! | OpenBookQA | the same, `id` as `7-980`; or `question_stem` | the stem | the choices |
//! | HellaSwag | `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label` | `LABEL: CTX_A CTX_B`, cleaned | the endings, cleaned |
//! | PIQA | `goal`, `sol1`, `sol2`; `label`, or a file `…-labels.lst` beside | `Question: GOAL⏎Answer:` | the solutions |
//! | WinoGrande | `sentence`, `option1`, `option2`, `answer` | what stands before `_` | option and the rest |
//! | BoolQ | `passage`, `question`, `answer` | `PASSAGE⏎Question: QUESTION?⏎Answer:` | `no`, `yes` |
//!
//! ARC and OpenBookQA are also read as Hugging Face converts them: `question` (`question_stem`) a
//! text, `choices` an object of the lists `text` and `label`.
//!
//! The wordings are those of common evaluation programs, except that WinoGrande's two sentences
//! are scored from the option on: a choice here is what follows the query.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Map, Value};

use super::question::{Question, string, strings};
use crate::role::RunError;

/// No file of labels is larger.
const MAX_LABELS: u64 = 4 << 20;

/// The lines of `NAME-labels.lst` beside `NAME.jsonl`, if there is such a file.
pub(super) fn labels_beside(path: &Path) -> Result<Option<Vec<String>>, RunError> {
    let Some(stem) = path.file_stem() else {
        return Ok(None);
    };
    let mut name = stem.to_owned();
    name.push("-labels.lst");
    let beside = path.with_file_name(name);
    let io = || RunError::io(beside.display().to_string());
    let file = match File::open(&beside) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io()(e)),
    };
    let mut text = String::new();
    file.take(MAX_LABELS + 1)
        .read_to_string(&mut text)
        .map_err(io())?;
    if text.len() as u64 > MAX_LABELS {
        return Err(RunError::Request(format!(
            "{}: more than {MAX_LABELS} bytes are no list of labels",
            beside.display()
        )));
    }
    Ok(Some(text.lines().map(|l| l.trim().to_owned()).collect()))
}

/// The question of an object in one of the layouts.
pub(super) fn question(o: &Map<String, Value>, label: Option<&str>) -> Result<Question, String> {
    let has = |keys: &[&str]| keys.iter().all(|k| o.contains_key(*k));
    if has(&["question", "answerKey"]) || has(&["question_stem", "answerKey"]) {
        stem_and_choices(o)
    } else if has(&["endings", "ctx_a"]) {
        hellaswag(o)
    } else if has(&["goal", "sol1", "sol2"]) {
        piqa(o, label)
    } else if has(&["sentence", "option1", "option2"]) {
        winogrande(o, label)
    } else if has(&["passage", "question"]) {
        boolq(o)
    } else {
        Err(
            "it has neither `query`, `choices` and `gold`, nor is it in one of the layouts of \
             ARC, OpenBookQA, HellaSwag, PIQA, WinoGrande or BoolQ"
                .into(),
        )
    }
}

/// A right answer that is a number, as a number or in a string.
fn number(o: &Map<String, Value>, key: &str, label: Option<&str>) -> Result<usize, String> {
    let text = match (o.get(key), label) {
        (Some(Value::String(s)), _) if !s.is_empty() => s.clone(),
        (Some(Value::Number(n)), _) => n.to_string(),
        (_, Some(label)) => label.to_owned(),
        _ => {
            return Err(format!(
                "there is no `{key}`, nor a file of labels beside: the right answers are not published with this file"
            ));
        }
    };
    text.trim()
        .parse()
        .map_err(|_| format!("the answer {text:?} is no number"))
}

/// ARC and OpenBookQA.
fn stem_and_choices(o: &Map<String, Value>) -> Result<Question, String> {
    let (mut labels, mut choices) = (Vec::new(), Vec::new());
    let stem = if let Some(Value::Object(inner)) = o.get("question") {
        let listed = inner.get("choices").and_then(Value::as_array);
        for c in listed.ok_or("`question.choices` is no list")? {
            let c = c.as_object().ok_or("a choice is no object")?;
            labels.push(string(c, "label")?.to_owned());
            choices.push(string(c, "text")?.to_owned());
        }
        string(inner, "stem")?
    } else {
        let listed = o.get("choices").and_then(Value::as_object);
        let listed = listed
            .ok_or("neither `question` nor `choices` is an object: no object has the choices")?;
        (labels, choices) = (strings(listed, "label")?, strings(listed, "text")?);
        if labels.len() != choices.len() {
            return Err("`choices` has not as many labels as texts".into());
        }
        string(
            o,
            if o.contains_key("question_stem") {
                "question_stem"
            } else {
                "question"
            },
        )?
    };
    let answer = string(o, "answerKey")?;
    let gold = labels.iter().position(|l| *l == answer);
    let gold = gold.ok_or_else(|| format!("no choice is labelled {answer:?}"))?;
    // OpenBookQA's stems are often half a sentence that a choice ends, ARC's are questions.
    let id = o.get("id").and_then(Value::as_str).unwrap_or_default();
    let open_book = o.contains_key("question_stem")
        || id.split_once('-').is_some_and(|(a, b)| {
            let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            digits(a) && digits(b)
        });
    Ok(Question {
        query: if open_book {
            stem.to_owned()
        } else {
            format!("Question: {stem}\nAnswer:")
        },
        choices,
        gold,
    })
}

/// HellaSwag: marks of its source (`[title]`, `[step]`) are taken out.
fn hellaswag(o: &Map<String, Value>) -> Result<Question, String> {
    let mut second = string(o, "ctx_b")?.chars();
    let second: String = second
        .next()
        .map(|c| c.to_uppercase().chain(second).collect())
        .unwrap_or_default();
    let query = format!(
        "{}: {} {second}",
        string(o, "activity_label")?,
        string(o, "ctx_a")?
    );
    Ok(Question {
        query: cleaned(&query),
        choices: strings(o, "endings")?.iter().map(|e| cleaned(e)).collect(),
        gold: number(o, "label", None)?,
    })
}

/// Without marks in brackets, with single spaces, no space at the ends.
fn cleaned(text: &str) -> String {
    let text = text.replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let Some(len) = rest[open..].find(']') else {
            break;
        };
        out.push_str(&rest[..open]);
        rest = &rest[open + len + 1..];
    }
    out.push_str(rest);
    out.replace("  ", " ").trim().to_owned()
}

fn piqa(o: &Map<String, Value>, label: Option<&str>) -> Result<Question, String> {
    Ok(Question {
        query: format!("Question: {}\nAnswer:", string(o, "goal")?),
        choices: vec![string(o, "sol1")?.to_owned(), string(o, "sol2")?.to_owned()],
        gold: number(o, "label", label)?,
    })
}

fn winogrande(o: &Map<String, Value>, label: Option<&str>) -> Result<Question, String> {
    let sentence = string(o, "sentence")?;
    let (before, after) = (sentence.split_once('_')).ok_or("there is no `_` in the sentence")?;
    let choice = |key: &str| Ok::<_, String>(format!("{}{after}", string(o, key)?));
    Ok(Question {
        query: before.trim_end().to_owned(),
        choices: vec![choice("option1")?, choice("option2")?],
        gold: number(o, "answer", label)?
            .checked_sub(1)
            .ok_or("the answer is 0, expected 1 or 2")?,
    })
}

fn boolq(o: &Map<String, Value>) -> Result<Question, String> {
    let gold = match o.get("answer").or_else(|| o.get("label")) {
        Some(Value::Bool(yes)) => usize::from(*yes),
        Some(Value::Number(n)) if n.as_u64().is_some_and(|n| n < 2) => {
            usize::from(n.as_u64() == Some(1))
        }
        _ => {
            return Err("`answer` is neither true nor false".into());
        }
    };
    Ok(Question {
        query: format!(
            "{}\nQuestion: {}?\nAnswer:",
            string(o, "passage")?,
            string(o, "question")?.trim_end_matches('?')
        ),
        choices: vec!["no".into(), "yes".into()],
        gold,
    })
}

#[cfg(test)]
mod tests {
    use super::super::read_questions;
    use super::*;

    fn one(text: &str) -> Result<Question, String> {
        let o: Map<String, Value> = serde_json::from_str(text).unwrap();
        question(&o, None)
    }

    /// Hand-made lines in the layouts of the sets.
    #[test]
    fn each_layout_becomes_a_question() {
        let q = one(
            r#"{"id":"Mercury_1","question":{"stem":"What is up?","choices":[
            {"text":"sky","label":"1"},{"text":"floor","label":"2"}]},"answerKey":"2"}"#,
        )
        .unwrap();
        assert_eq!(q.query, "Question: What is up?\nAnswer:");
        assert_eq!((q.choices[1].as_str(), q.gold), ("floor", 1));
        let q = one(r#"{"id":"7-980","question":{"stem":"Above is","choices":[
            {"text":"sky","label":"A"},{"text":"floor","label":"B"}]},"answerKey":"A"}"#)
        .unwrap();
        assert_eq!((q.query.as_str(), q.gold), ("Above is", 0));
        for (key, query) in [
            ("question", "Question: Above is\nAnswer:"),
            ("question_stem", "Above is"),
        ] {
            let q = one(&format!(
                r#"{{"id":"x","{key}":"Above is","choices":{{"text":["floor","sky"],"label":["A","B"]}},"answerKey":"B"}}"#
            ));
            let q = q.unwrap();
            assert_eq!(
                (q.query.as_str(), q.choices[q.gold].as_str()),
                (query, "sky")
            );
        }
        let q = one(
            r#"{"ind":1,"activity_label":"Baking","ctx_a":"A cook [header] stands.",
            "ctx_b":"he","endings":["eats [step] it.","runs [title] Off"],"label":1}"#,
        )
        .unwrap();
        assert_eq!(q.query, "Baking: A cook stands. He");
        assert_eq!(q.choices, ["eats it.", "runs. Off"]);
        assert_eq!(q.gold, 1);
        let q = one(
            r#"{"sentence":"The cup fits the box as the _ is small.","option1":"cup",
            "option2":"box","answer":"1"}"#,
        )
        .unwrap();
        assert_eq!(q.query, "The cup fits the box as the");
        assert_eq!(q.choices, ["cup is small.", "box is small."]);
        assert_eq!(q.gold, 0);
        let q = one(r#"{"question":"is it so","title":"t","answer":true,"passage":"It is."}"#);
        let q = q.unwrap();
        assert_eq!(q.query, "It is.\nQuestion: is it so?\nAnswer:");
        assert_eq!((q.choices[q.gold].as_str(), q.gold), ("yes", 1));
        for (line, why) in [
            (
                r#"{"sentence":"no gap","option1":"a","option2":"b","answer":"1"}"#,
                "no `_`",
            ),
            (
                r#"{"sentence":"a _","option1":"a","option2":"b","answer":"0"}"#,
                "1 or 2",
            ),
            (
                r#"{"sentence":"a _","option1":"a","option2":"b","answer":""}"#,
                "not published",
            ),
            (r#"{"question":"q","passage":"p","answer":"x"}"#, "neither"),
            (
                r#"{"question":{"stem":"s","choices":[]},"answerKey":"A"}"#,
                "labelled",
            ),
            (r#"{"question":"s","answerKey":"A"}"#, "no object"),
            (
                r#"{"question":"s","choices":{"text":["a"],"label":["A","B"]},"answerKey":"B"}"#,
                "labels",
            ),
        ] {
            let said = one(line).unwrap_err();
            assert!(said.contains(why), "{line}: {said}");
        }
    }

    #[test]
    fn brackets_that_do_not_close_stay() {
        assert_eq!(cleaned("a ]b[ c [d] e"), "a ]b e");
        assert_eq!(cleaned("a [b"), "a [b");
    }

    #[test]
    fn labels_stand_in_a_file_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("valid.jsonl");
        let line = r#"{"goal":"Go.","sol1":"walk","sol2":"sit"}"#;
        std::fs::write(&path, format!("{line}\n{line}\n")).unwrap();
        let said = read_questions(&path, None).unwrap_err().to_string();
        assert!(said.contains("not published"), "{said}");
        let labels = dir.path().join("valid-labels.lst");
        std::fs::write(&labels, "1\n0\n").unwrap();
        let both = read_questions(&path, None).unwrap();
        assert_eq!(both[0].query, "Question: Go.\nAnswer:");
        assert_eq!((both[0].gold, both[1].gold), (1, 0));
        std::fs::write(&labels, "1\n").unwrap();
        let said = read_questions(&path, None).unwrap_err().to_string();
        assert!(said.contains("fewer lines"), "{said}");
        assert_eq!(read_questions(&path, Some(1)).unwrap().len(), 1);
    }
}
