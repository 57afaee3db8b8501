//! The ids with a role, whether they are added to a text, and the chat template.
//!
//! Which file has the last word follows llama.cpp's conversion (`gguf-py`, `SpecialVocab`), its
//! reading of post-processors included.

use std::path::Path;

use formats::gguf::{Metadata, Value};
use formats::model::END_TEXTS;
use serde_json::{Map, Value as Json};

use super::HfError;
use super::config::Config;
use super::folder::{Folder, GENERATION_CONFIG, TOKENIZER_CONFIG};
use super::tokenizer_json::{PostProcessor, TokenizerJson};

/// Roles in the order in which they are written; `eot` and `eom` join when an end is replaced.
const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// What the files say about special tokens.
pub(super) struct Special {
    ids: Vec<(&'static str, u32)>,
    adds: Vec<(&'static str, bool)>,
    template: Option<Json>,
    /// What could not be expressed.
    pub(super) notes: Vec<String>,
}

/// The GGUF key of a role's id.
fn id_key(role: &str) -> String {
    let name = match role {
        "unk" => "unknown",
        // GGUF spells it so.
        "sep" => "seperator",
        "pad" => "padding",
        other => other,
    };
    format!("tokenizer.ggml.{name}_token_id")
}

impl Special {
    /// Gathers them. `n_vocab` tokens were written; `bounded` says whether ids beyond them are
    /// dropped (as llama.cpp does for SentencePiece) or an error.
    pub(super) fn read(
        folder: &Folder,
        config: &Config,
        json: Option<&TokenizerJson>,
        tokenizer_config: Option<&Map<String, Json>>,
        tokens: &[Vec<u8>],
    ) -> Result<Self, HfError> {
        let mut this = Self {
            ids: Vec::new(),
            adds: Vec::new(),
            template: None,
            notes: Vec::new(),
        };
        let mut roles: Vec<&'static str> = ROLES.to_vec();
        let mut texts = Texts(tokenizer_config.cloned());
        if let Some(json) = json {
            let processors = json.post_processor.as_ref().map(PostProcessor::flat);
            texts.complete();
            for p in processors.unwrap_or_default() {
                this.post_processor(p, &mut texts, &mut roles);
            }
        }
        if let Some(found) = &texts.0 {
            this.template = template(folder, found)?;
            for role in &roles {
                let on = found.get(&format!("add_{role}_token"));
                if let Some(on) = on.and_then(Json::as_bool) {
                    // What the post-processor does counts more than what is said about it.
                    if !this.adds.iter().any(|(r, _)| r == role) {
                        this.adds.push((role, on));
                    }
                }
                let added = json.map_or(&[][..], TokenizerJson::added);
                let text = texts.get(role);
                let id = text.and_then(|t| added.iter().find(|a| a.content == t));
                this.set(role, id.map(|a| a.id), tokens.len());
            }
        }
        for role in &roles {
            let id = config.json.get(&format!("{role}_token_id"));
            this.set(role, id.and_then(whole), tokens.len());
        }
        this.ends(folder, tokens)?;
        Ok(this)
    }

    /// The first that says so wins; ids without a token are dropped.
    fn set(&mut self, role: &'static str, id: Option<u32>, n_vocab: usize) {
        let known = self.ids.iter().any(|(r, _)| *r == role);
        if let Some(id) = id.filter(|id| (*id as usize) < n_vocab && !known) {
            self.ids.push((role, id));
        }
    }

    fn add(&mut self, role: &'static str, on: bool) {
        match self.adds.iter_mut().find(|(r, _)| *r == role) {
            Some((_, was)) => *was = on,
            None => self.adds.push((role, on)),
        }
    }

    fn post_processor(
        &mut self,
        p: &PostProcessor,
        texts: &mut Texts,
        roles: &mut Vec<&'static str>,
    ) {
        match p.kind.as_str() {
            "ByteLevel" => {
                for role in ["bos", "eos"] {
                    if !self.adds.iter().any(|(r, _)| *r == role) {
                        self.adds.push((role, false));
                    }
                }
            }
            "RobertaProcessing" => {
                for role in ["bos", "eos", "sep"] {
                    self.add(role, true);
                }
                let text =
                    |t: &Option<(String, u32)>| t.as_ref().map(|(t, _)| Json::from(t.as_str()));
                let (bos, eos) = (texts.raw("bos").cloned(), texts.raw("eos").cloned());
                texts.fill("cls", text(&p.cls).or(bos));
                texts.fill("sep", text(&p.sep).or(eos));
            }
            "TemplateProcessing" => self.template_processing(p, texts, roles),
            _ => {}
        }
    }

    fn template_processing(
        &mut self,
        p: &PostProcessor,
        texts: &mut Texts,
        roles: &mut Vec<&'static str>,
    ) {
        let single = &p.single.0;
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = single
                .first()
                .and_then(|x| x.token())
                .filter(|t| !t.is_empty());
            last = single
                .last()
                .and_then(|x| x.token())
                .filter(|t| !t.is_empty());
        }
        if let Some(first) = first {
            if !texts.is("bos", first) && !texts.is("cls", first) {
                texts.fill("bos", Some(Json::from(first)));
                texts.fill("cls", Some(Json::from(first)));
            }
            let begins = texts.is("bos", first) || texts.is("cls", first) || texts.0.is_none();
            self.add("bos", begins);
        }
        if let Some(last) = last {
            let eos = texts.raw("eos").cloned();
            if texts.0.is_some() && !texts.is("eos", last) {
                // The old end stays known by another role.
                let free = ["eot", "eom"].into_iter().find(|r| !roles.contains(r));
                if let Some(role) = free {
                    roles.push(role);
                    texts.put(role, eos);
                }
                texts.put("eos", Some(Json::from(last)));
            }
            self.add("eos", true);
        }
        self.separator(p, texts, first, last);
    }

    /// Whether two texts have a separator between them.
    fn separator(
        &mut self,
        p: &PostProcessor,
        texts: &mut Texts,
        first: Option<&str>,
        last: Option<&str>,
    ) {
        let mut pair: &[_] = &p.pair.0;
        let ends_with = |piece: Option<&super::tokenizer_json::Piece>, token: Option<&str>| {
            token.is_some() && piece.and_then(|x| x.token()) == token
        };
        if ends_with(pair.first(), first) {
            pair = &pair[1..];
        }
        if ends_with(pair.last(), last) {
            pair = &pair[..pair.len() - 1];
        }
        let [a, middle @ .., b] = pair else { return };
        if a.sequence() != Some("A") || b.sequence() != Some("B") || middle.is_empty() {
            return;
        }
        let parts = |token: &str| texts.is("sep", token) || texts.is("eos", token);
        let at = |i: usize| middle.get(i).and_then(|x| x.token()).is_some_and(parts);
        let add = (at(0) && last.is_none()) || (middle.len() == 2 && at(1));
        self.add("sep", add);
        if add {
            let eos = texts.raw("eos").cloned();
            texts.fill("sep", eos);
        }
    }

    /// generation_config.json may name ends that nothing else does.
    fn ends(&mut self, folder: &Folder, tokens: &[Vec<u8>]) -> Result<(), HfError> {
        let Some(Json::Object(generation)) = folder.json(GENERATION_CONFIG)? else {
            return Ok(());
        };
        let ids: Vec<u32> = match generation.get("eos_token_id") {
            Some(Json::Array(all)) => all.iter().filter_map(whole).collect(),
            Some(one) => whole(one).into_iter().collect(),
            None => return Ok(()),
        };
        for id in ids {
            let Some(text) = tokens.get(id as usize) else {
                continue;
            };
            self.set("eos", Some(id), tokens.len());
            let role = |role: &str| self.ids.iter().find(|(r, _)| *r == role);
            let ends = ["eos", "eot", "eom"]
                .iter()
                .any(|r| role(r).is_some_and(|(_, i)| *i == id));
            if ends || END_TEXTS.iter().any(|e| e.as_bytes() == text.as_slice()) {
                continue;
            }
            // GGUF has no list of ends; these roles end a generation as well.
            match ["eot", "eom"].into_iter().find(|r| role(r).is_none()) {
                Some(role) => self.ids.push((role, id)),
                None => self.notes.push(format!(
                    "{GENERATION_CONFIG} ends a generation at token {id} as well, which a GGUF cannot say"
                )),
            }
        }
        Ok(())
    }

    /// Writes the keys.
    pub(super) fn write(self, meta: &mut Metadata) {
        // GGUF has no key for the class token.
        for (role, id) in self.ids.into_iter().filter(|(r, _)| *r != "cls") {
            meta.set(&id_key(role), Value::u32(id));
        }
        for (role, on) in self.adds {
            // GGUF has no key for the others.
            if matches!(role, "bos" | "eos" | "sep") {
                let key = format!("tokenizer.ggml.add_{role}_token");
                meta.set(&key, Value::bool(on));
            }
        }
        match self.template {
            Some(Json::String(one)) => {
                meta.set("tokenizer.chat_template", Value::string(&one));
            }
            Some(Json::Array(all)) => templates(&all, meta),
            _ => {}
        }
    }
}

/// A number that may be an id.
fn whole(value: &Json) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// The texts of the roles in tokenizer_config.json, as the post-processor completes them.
struct Texts(Option<Map<String, Json>>);

impl Texts {
    /// What stands there, unless it is nothing.
    fn raw(&self, role: &str) -> Option<&Json> {
        let found = self.0.as_ref()?.get(&format!("{role}_token"))?;
        let something = match found {
            Json::String(text) => !text.is_empty(),
            Json::Object(token) => !token.is_empty(),
            _ => false,
        };
        something.then_some(found)
    }

    fn get(&self, role: &str) -> Option<&str> {
        match self.raw(role)? {
            Json::String(text) => Some(text),
            token => token.get("content")?.as_str(),
        }
    }

    /// Whether it is said to be this token, as a plain text: llama.cpp's conversion finds no
    /// token equal that is described by an object.
    fn is(&self, role: &str, token: &str) -> bool {
        self.raw(role).and_then(Json::as_str) == Some(token)
    }

    fn put(&mut self, role: &str, token: Option<Json>) {
        if let (Some(map), Some(token)) = (&mut self.0, token) {
            map.insert(format!("{role}_token"), token);
        }
    }

    fn fill(&mut self, role: &str, token: Option<Json>) {
        if self.raw(role).is_none() {
            self.put(role, token);
        }
    }

    /// A beginning without a name is the class token, an end the separator.
    fn complete(&mut self) {
        let (cls, sep) = (self.raw("cls").cloned(), self.raw("sep").cloned());
        self.fill("bos", cls);
        self.fill("eos", sep);
    }
}

/// The chat template: in the configuration, or in a file of its own.
fn template(folder: &Folder, config: &Map<String, Json>) -> Result<Option<Json>, HfError> {
    let text_or_list = |value: &Json| matches!(value, Json::String(_) | Json::Array(_));
    if let Some(found) = config.get("chat_template") {
        return Ok(Some(found.clone()).filter(text_or_list));
    }
    if let Some(text) = folder.text("chat_template.jinja")? {
        let more = additional(folder)?;
        if more.is_empty() {
            return Ok(Some(Json::String(text)));
        }
        let named = |(name, text)| serde_json::json!({"name": name, "template": text});
        let all = std::iter::once(("default".to_owned(), text)).chain(more);
        return Ok(Some(Json::Array(all.map(named).collect())));
    }
    let found = folder.json("chat_template.json")?;
    let found = found.as_ref().and_then(|f| f.get("chat_template")).cloned();
    Ok(found.filter(text_or_list))
}

/// Templates beside the default one: name and text.
fn additional(folder: &Folder) -> Result<Vec<(String, String)>, HfError> {
    const MOST: usize = 64;
    let path = folder.join("additional_chat_templates");
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let inside = Folder::new(&path);
    let mut all = Vec::new();
    for name in inside.names("", ".jinja")?.into_iter().take(MOST) {
        if let Some(text) = inside.text(&name)? {
            let stem = Path::new(&name).file_stem().unwrap_or_default();
            all.push((stem.to_string_lossy().into_owned(), text));
        }
    }
    Ok(all)
}

/// Writes a list of named templates.
fn templates(all: &[Json], meta: &mut Metadata) {
    let mut names: Vec<String> = Vec::new();
    let mut default = None;
    for one in all {
        let text = |key: &str| one.get(key).and_then(Json::as_str);
        let (Some(name), Some(template)) = (text("name"), text("template")) else {
            continue;
        };
        let safe = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = name.chars().map(safe).take(64).collect();
        if name == "default" {
            default = Some(template);
        } else if !name.is_empty() {
            let key = format!("tokenizer.chat_template.{name}");
            meta.set(&key, Value::string(template));
            names.push(name);
        }
    }
    names.sort();
    names.dedup();
    if !names.is_empty() {
        meta.set("tokenizer.chat_templates", Value::string_array(&names));
    }
    if let Some(template) = default {
        meta.set("tokenizer.chat_template", Value::string(template));
    }
}

/// What tokenizer_config.json says; `None` when there is none.
pub(super) fn tokenizer_config(folder: &Folder) -> Result<Option<Map<String, Json>>, HfError> {
    match folder.json(TOKENIZER_CONFIG)? {
        None => Ok(None),
        Some(Json::Object(map)) => Ok(Some(map)),
        Some(_) => {
            let path = folder.join(TOKENIZER_CONFIG);
            Err(HfError::field(&path, "", "is not an object"))
        }
    }
}
