//! The model card: what stands between two lines of `---` at the head of README.md.
//!
//! Cards are YAML, and use little of it: names with a text, or with a list of texts. That much is
//! read; what is nested deeper or written otherwise is left out, as a card is no part of a model.

use formats::gguf::{Metadata, Value};

use super::HfError;
use super::folder::Folder;
use super::general;

/// Texts under one name at most.
const MOST: usize = 256;

/// What a card says, in its order.
#[derive(Debug, Default)]
pub(super) struct Card {
    fields: Vec<(String, Vec<String>)>,
}

impl Card {
    /// The folder's card; an empty one where there is none.
    pub(super) fn read(folder: &Folder) -> Result<Self, HfError> {
        Ok(match folder.text("README.md") {
            Ok(text) => text.map_or_else(Self::default, |t| Self::parse(&t)),
            // A README of any other kind is nobody's concern.
            Err(HfError::Field { .. } | HfError::TooLarge { .. }) => Self::default(),
            Err(e) => return Err(e),
        })
    }

    fn parse(text: &str) -> Self {
        let mut card = Self::default();
        let mut lines = text.lines();
        if lines.next() != Some("---") {
            return card;
        }
        // Whether items may follow: a name without a text came before.
        let mut open = false;
        for line in lines.take_while(|l| *l != "---") {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            if let Some(item) = trimmed.strip_prefix("- ") {
                let last = card.fields.last_mut().filter(|_| open);
                if let (Some((_, items)), Some(text)) = (last, scalar(item))
                    && items.len() < MOST
                {
                    items.push(text);
                }
                continue;
            }
            open = false;
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(plain) || card.fields.len() == MOST {
                continue;
            }
            let value = value.trim();
            let list = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
            let items = match list {
                Some(list) => list.split(',').filter_map(scalar).take(MOST).collect(),
                None => scalar(value).into_iter().collect(),
            };
            open = value.is_empty();
            card.fields.push((name.to_owned(), items));
        }
        card
    }

    /// All texts under the names, in the order of the names.
    fn all(&self, names: &[&str]) -> Vec<&str> {
        let under = |name: &&str| self.fields.iter().find(|(n, _)| n == name);
        let found = names.iter().filter_map(under);
        found
            .flat_map(|(_, v)| v.iter().map(String::as_str))
            .collect()
    }

    /// The first text under the first of the names that has one.
    pub(super) fn one(&self, names: &[&str]) -> Option<&str> {
        self.all(names).first().copied()
    }

    /// The texts under the first of the names that is there.
    fn first(&self, names: &[&str]) -> Option<&[String]> {
        let under = |name: &&str| self.fields.iter().find(|(n, _)| n == name);
        names.iter().find_map(under).map(|(_, v)| v.as_slice())
    }

    /// Writes what has no other source: licence, origin, tags, languages.
    pub(super) fn write(&self, total: u64, meta: &mut Metadata) {
        let license = self.all(&["license"]);
        if !license.is_empty() {
            meta.set("general.license", Value::string(&license.join(",")));
        }
        for (key, names) in [
            ("license.name", &["license_name"][..]),
            ("license.link", &["license_link"]),
            ("source.url", &["url", "model_url"]),
            ("source.doi", &["doi", "model_doi"]),
            ("source.uuid", &["uuid", "model_uuid"]),
            ("source.repo_url", &["repo_url", "model_repo_url"]),
        ] {
            if let Some(text) = self.one(names) {
                meta.set(&format!("general.{key}"), Value::string(text));
            }
        }
        for (key, names) in [
            (
                "base_model",
                &["base_model", "base_models", "base_model_sources"][..],
            ),
            ("dataset", &["datasets", "dataset", "dataset_sources"]),
        ] {
            let Some(all) = self.first(names) else {
                continue;
            };
            let count = Value::u32(all.len() as u32);
            meta.set(&format!("general.{key}.count"), count);
            for (i, id) in all.iter().enumerate() {
                for (field, text) in general::origin(id, total) {
                    let key = format!("general.{key}.{i}.{field}");
                    meta.set(&key, Value::string(&text));
                }
            }
        }
        for (key, names) in [
            ("tags", ["tags", "pipeline_tag"]),
            ("languages", ["languages", "language"]),
        ] {
            let all = self.all(&names);
            if !all.is_empty() {
                meta.set(&format!("general.{key}"), Value::string_array(&all));
            }
        }
    }
}

/// A text, with or without quotes; `None` for nothing, or for what is no plain text.
fn scalar(text: &str) -> Option<String> {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let (inside, _) = rest.split_once(quote)?;
            return Some(inside.to_owned()).filter(|t| !t.contains('\\'));
        }
    }
    let text = text.split(" #").next()?.trim();
    // `a: b` opens a map, and these something else.
    let other = text.starts_with(['[', '{', '&', '*', '!', '|', '>', '%', '@', '`']);
    (!text.is_empty() && !other && !text.contains(": ") && !text.ends_with(':') && text != "null")
        .then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_as_people_write_them() {
        let card = Card::parse(
            "---\nlicense: apache-2.0  # ours\nlanguage:\n- en\n- \"no\"\ntags: [chat, 'code']\n\
             base_model:\n  - org/Some-Model-1B\nmodel-index:\n- name: x\n  results:\n  - task: y\n\
             pipeline_tag: text-generation\nempty:\n---\nlicense: mit\n",
        );
        assert_eq!(card.one(&["license"]), Some("apache-2.0"));
        assert_eq!(card.all(&["language"]), ["en", "no"]);
        assert_eq!(
            card.all(&["tags", "pipeline_tag"]),
            ["chat", "code", "text-generation"]
        );
        let mut meta = Metadata::new();
        card.write(1_000_000_000, &mut meta);
        let text = |key: &str| meta.get(key).and_then(Value::as_str);
        assert_eq!(text("general.base_model.0.name"), Some("Some Model 1B"));
        assert_eq!(text("general.base_model.0.organization"), Some("Org"));
        let url = Some("https://huggingface.co/org/Some-Model-1B");
        assert_eq!(text("general.base_model.0.repo_url"), url);
        assert!(
            Card::parse("# Title\n---\nlicense: mit\n")
                .fields
                .is_empty()
        );
    }
}
