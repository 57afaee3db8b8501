//! `general.*`: what a model is called, guessed from the names it was given.
//!
//! The rules are those of llama.cpp's conversion (`gguf-py`, `Metadata`), so that a file has the
//! same name whoever converts it.

use std::sync::LazyLock;

use formats::gguf::{Metadata, Value};
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::card::Card;

/// What a model's name says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    full: Option<String>,
    organization: Option<String>,
    basename: Option<String>,
    finetune: Option<String>,
    version: Option<String>,
    size_label: Option<String>,
}

/// What a part of a name may be, more than one thing.
#[derive(Clone, Copy, Default)]
struct Marks(u8);

const BASENAME: u8 = 1;
const SIZE_LABEL: u8 = 2;
const TUNED: u8 = 4;
const A_VERSION: u8 = 8;
const QUANTISED: u8 = 16;

impl Marks {
    fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }

    fn set(&mut self, mark: u8) {
        self.0 |= mark;
    }

    fn unset(&mut self, mark: u8) {
        self.0 &= !mark;
    }
}

/// A pattern for a whole word, whatever its case.
fn whole(pattern: &str) -> Option<Regex> {
    Regex::new(&format!("(?i)^(?:{pattern})$")).ok()
}

/// Whether `pattern` (one of the constants here) is all of `part`.
fn is(pattern: &LazyLock<Option<Regex>>, part: &str) -> bool {
    pattern.as_ref().is_some_and(|p| p.is_match(part))
}

static VERSION: LazyLock<Option<Regex>> = LazyLock::new(|| whole(r"(v|iter)?\d+([.]\d+)*"));
static QUANT: LazyLock<Option<Regex>> = LazyLock::new(|| whole(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Option<Regex>> =
    LazyLock::new(|| whole(r"([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl"));
static FINETUNE: LazyLock<Option<Regex>> = LazyLock::new(|| whole("chat|instruct|vision|lora"));
static NO_TITLE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^(?:v\d+(?:\.\d+)*$|\d)").ok());

/// Longest name that is taken apart.
const LONGEST: usize = 256;

/// Takes a name as `org/Name-1B-Instruct` apart; `total` is the number of weights.
fn parts(id: &str, total: u64) -> Parts {
    let whole = |full: &str| Parts {
        full: Some(full.to_owned()),
        ..Parts::default()
    };
    if id.contains(' ') || id.len() > LONGEST {
        return whole(id);
    }
    let (organization, name) = match id.split_once('/') {
        Some((org, name)) => (Some(org).filter(|o| !o.starts_with('.')), name),
        None => (None, id),
    };
    let mut words: Vec<String> = (name.split('-').filter(|w| !w.is_empty()))
        .map(str::to_owned)
        .collect();
    let mut marks = vec![Marks::default(); words.len()];
    for (i, (word, mark)) in words.iter_mut().zip(&mut marks).enumerate() {
        if is(&VERSION, word) {
            mark.set(A_VERSION);
        } else if is(&QUANT, word) {
            mark.set(QUANTISED);
            *word = word.to_uppercase();
        } else if i > 0 && is(&SIZE, word) {
            size(word, mark, total);
        } else if i > 0 && is(&FINETUNE, word) {
            mark.set(TUNED);
        }
    }
    let numbered = |w: &String| w.chars().any(char::is_numeric);
    if words
        .iter()
        .zip(&marks)
        .any(|(w, m)| m.has(SIZE_LABEL) && numbered(w))
    {
        for (word, mark) in words.iter().zip(&mut marks) {
            if word.chars().all(char::is_alphabetic) {
                mark.unset(SIZE_LABEL);
            }
        }
    }
    let mut at_start = true;
    for (word, mark) in words.iter().zip(&mut marks) {
        let nothing = mark.0 == 0;
        let letter = word.chars().next().is_some_and(char::is_alphabetic);
        if at_start && ((nothing && letter) || mark.has(A_VERSION)) {
            mark.set(BASENAME);
        } else {
            at_start = false;
            if nothing {
                mark.set(TUNED);
            }
        }
    }
    // A version at the end is none of the base's name.
    for mark in marks.iter_mut().rev() {
        if !mark.has(BASENAME) || mark.0 == BASENAME {
            break;
        }
        mark.unset(BASENAME);
    }
    let join = |keep: &dyn Fn(Marks) -> bool, once: bool| {
        let mut all: Vec<&str> = Vec::new();
        for (word, mark) in words.iter().zip(&marks) {
            if keep(*mark) && !(once && all.contains(&word.as_str())) {
                all.push(word);
            }
        }
        Some(all.join("-")).filter(|t| !t.is_empty())
    };
    let mut parts = Parts {
        full: Some(name.to_owned()),
        organization: organization.map(str::to_owned),
        basename: join(&|m| m.has(BASENAME), false),
        finetune: join(&|m| m.has(TUNED), false),
        version: join(&|m| m.has(A_VERSION) && !m.has(BASENAME), false),
        size_label: join(&|m| m.has(SIZE_LABEL), true),
    };
    if parts.size_label.is_none() && parts.finetune.is_none() && parts.version.is_none() {
        // The whole name says no more than itself.
        parts.basename = None;
    }
    parts
}

/// Writes a size as others do, and marks it as one, unless it is far from the model's.
fn size(word: &mut String, mark: &mut Marks, total: u64) {
    let mut chars: Vec<char> = word.replace('_', ".").chars().collect();
    // `7b1` is 7.1 B.
    if let [head @ .., unit, tenth] = chars.as_slice()
        && tenth.is_ascii_digit()
    {
        chars = [head, &['.', *tenth, *unit]].concat();
    }
    if let [.., before, unit] = chars.as_mut_slice()
        && before.is_numeric()
        && "kmbt".contains(*unit)
    {
        *unit = unit.to_ascii_uppercase();
    }
    if let Some((unit, number)) = chars.split_last()
        && total > 0
    {
        let number: String = number.iter().collect();
        let power = " KMBT".find(*unit).map_or(-1, |p| p as i32);
        if let Ok(number) = number.parse::<f64>() {
            let label = number * 1_000_f64.powi(power);
            let far = (u128::from(total) * 7 / 8) as f64;
            if (label - total as f64).abs() > far {
                // A length of context, most likely.
                mark.set(TUNED);
                if let Some(unit) = chars.last_mut() {
                    *unit = unit.to_ascii_lowercase();
                }
            }
        }
    }
    if mark.0 == 0 {
        mark.set(SIZE_LABEL);
    }
    *word = chars.into_iter().collect();
}

/// `llama-3-8b` as `Llama 3 8B`: words in lower case begin with a capital, also after digits.
fn title(text: &str) -> String {
    let one = |word: &str| {
        let lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if !lower || is(&NO_TITLE, word) {
            return word.to_owned();
        }
        let mut out = String::new();
        let mut inside = false;
        for c in word.chars() {
            if inside {
                out.push(c);
            } else {
                out.extend(c.to_uppercase());
            }
            inside = c.is_alphabetic();
        }
        out
    };
    let words: Vec<String> = text.replace('-', " ").split_whitespace().map(one).collect();
    words.join(" ")
}

/// 134515008 as `135M`.
fn size_label(total: u64) -> String {
    let total = total as f64;
    let (scaled, unit) = if total > 1e12 {
        (total * 1e-12, "T")
    } else if total > 1e9 {
        (total * 1e-9, "B")
    } else if total > 1e6 {
        (total * 1e-6, "M")
    } else {
        (total * 1e-3, "K")
    };
    let whole = format!("{}", scaled.round_ties_even());
    let digits = 2_usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.digits$}{unit}")
}

/// Keys of generation_config.json that GGUF has a place for.
const SAMPLING: [(&str, &[&str], bool); 11] = [
    ("top_k", &["top_k"], true),
    ("top_p", &["top_p"], false),
    ("min_p", &["min_p"], false),
    ("xtc_probability", &["xtc_probability"], false),
    ("xtc_threshold", &["xtc_threshold"], false),
    ("temp", &["temperature"], false),
    ("penalty_last_n", &["penalty_last_n"], true),
    (
        "penalty_repeat",
        &["penalty_repeat", "repetition_penalty"],
        false,
    ),
    ("mirostat", &["mirostat"], true),
    ("mirostat_tau", &["mirostat_tau"], false),
    ("mirostat_eta", &["mirostat_eta"], false),
];

/// Writes how a model's makers sample from it.
pub(super) fn sampling(generation: &Map<String, Json>, meta: &mut Metadata) {
    if let Some(sequence) = generation.get("sequence").and_then(Json::as_str) {
        meta.set("general.sampling.sequence", Value::string(sequence));
    }
    for (key, names, whole) in SAMPLING {
        let found = names.iter().find_map(|n| generation.get(*n));
        let Some(found) = found else { continue };
        let value = if whole {
            let n = found.as_i64().and_then(|n| i32::try_from(n).ok());
            n.map(Value::i32)
        } else {
            found.as_f64().map(|f| Value::f32(f as f32))
        };
        if let Some(value) = value {
            meta.set(&format!("general.sampling.{key}"), value);
        }
    }
}

/// Writes the name and what it says: first what the card says, then the name in config.json,
/// then the folder's.
pub(super) fn names(
    card: &Card,
    given: Option<&str>,
    folder: &str,
    total: u64,
    meta: &mut Metadata,
) {
    // More than one slash is somebody's path.
    let given = given.filter(|g| g.matches('/').count() <= 1);
    let given = given.map(|g| parts(g, total)).unwrap_or_default();
    let folder = parts(folder, total);
    let said = |names: &[&str]| card.one(names).map(str::to_owned);
    let named = |name: Option<String>| name.map(|n| title(&n));
    for (key, value) in [
        (
            "name",
            said(&["name", "model_name"]).or(named(given.full.or(folder.full))),
        ),
        ("author", said(&["author", "model_author", "model_creator"])),
        (
            "version",
            said(&["version", "model_version"])
                .or(given.version)
                .or(folder.version),
        ),
        (
            "organization",
            said(&["organization", "model_organization"])
                .or(named(given.organization.or(folder.organization))),
        ),
        (
            "finetune",
            said(&["finetune", "model_finetune"])
                .or(given.finetune)
                .or(folder.finetune),
        ),
        (
            "basename",
            said(&["basename", "model_basename", "model_type"])
                .or(given.basename)
                .or(folder.basename),
        ),
        ("description", said(&["description", "model_description"])),
        (
            "size_label",
            said(&["size_label", "model_size_label"])
                .or(given.size_label)
                .or(folder.size_label)
                .or_else(|| Some(size_label(total))),
        ),
    ] {
        if let Some(value) = value {
            meta.set(&format!("general.{key}"), Value::string(&value));
        }
    }
}

/// What the name of another model, or of a data set, says about it: fields and texts.
pub(super) fn origin(id: &str, total: u64) -> Vec<(&'static str, String)> {
    let url = ["http://", "https://", "ssh://"]
        .iter()
        .any(|s| id.starts_with(s));
    let at_home = id
        .strip_prefix("https://huggingface.co/")
        .or_else(|| id.strip_prefix("http://huggingface.co/"))
        .filter(|rest| rest.split('/').filter(|p| !p.is_empty()).count() == 2)
        .filter(|rest| rest.matches('/').count() == 1);
    let mut all = Vec::new();
    if url {
        all.push(("repo_url", id.to_owned()));
    }
    let Some(name) = at_home.or(Some(id).filter(|_| !url)) else {
        return all;
    };
    let found = parts(name, total);
    if let (false, Some(org), Some(full)) = (url, &found.organization, &found.full) {
        all.push(("repo_url", format!("https://huggingface.co/{org}/{full}")));
    }
    all.extend(found.full.map(|n| ("name", title(&n))));
    all.extend(found.version.map(|v| ("version", v)));
    all.extend(found.organization.map(|o| ("organization", title(&o))));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_by_gguf_py() {
        let check = |id: &str, total, wanted: [&str; 6]| {
            let p = parts(id, total);
            let all = [
                p.full,
                p.organization,
                p.basename,
                p.finetune,
                p.version,
                p.size_label,
            ];
            let all = all.map(Option::unwrap_or_default);
            assert_eq!(all, wanted, "{id}");
        };
        let (small, seven, eight) = (134_515_008, 6_738_415_616, 8_030_261_248);
        check(
            "HuggingFaceTB/smollm2-135M-8k-lc100k-mix1-ep2",
            small,
            [
                "smollm2-135M-8k-lc100k-mix1-ep2",
                "HuggingFaceTB",
                "smollm2",
                "8k-lc100k-mix1-ep2",
                "",
                "135M",
            ],
        );
        check(
            "meta-llama/Llama-2-7b-chat-hf",
            seven,
            [
                "Llama-2-7b-chat-hf",
                "meta-llama",
                "Llama-2",
                "chat-hf",
                "",
                "7B",
            ],
        );
        check(
            "Meta-Llama-3.1-8B-Instruct",
            eight,
            [
                "Meta-Llama-3.1-8B-Instruct",
                "",
                "Meta-Llama-3.1",
                "Instruct",
                "",
                "8B",
            ],
        );
        check(
            "mistralai/Mistral-7B-Instruct-v0.3",
            7_248_023_552,
            [
                "Mistral-7B-Instruct-v0.3",
                "mistralai",
                "Mistral",
                "Instruct",
                "v0.3",
                "7B",
            ],
        );
        check("m", 1_000, ["m", "", "", "", "", ""]);
    }

    #[test]
    fn titles_and_sizes() {
        assert_eq!(
            title("smollm2-135M-8k-lc100k-mix1-ep2"),
            "Smollm2 135M 8k Lc100K Mix1 Ep2"
        );
        assert_eq!(title("HuggingFaceTB"), "HuggingFaceTB");
        assert_eq!(title("mistral-v0.3"), "Mistral v0.3");
        for (n, label) in [
            (134_515_008, "135M"),
            (655_616, "656K"),
            (1_235_814_400, "1.2B"),
            (6_738_415_616, "6.7B"),
            (13_015_864_320, "13B"),
            (950, "1.0K"),
        ] {
            assert_eq!(size_label(n), label);
        }
    }
}
