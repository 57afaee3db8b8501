//! The names of the two files, and how to find them.
//!
//! `llama2-13b.gguf` cut at 10 with 3 and 8 bits becomes
//! `llama2-13b-s10e3c8-00001-of-00002.gguf` (edge) and `llama2-13b-s10e3c8-00002-of-00002.gguf`
//! (cloud): what comes before `-00001` is the *prefix* of the pair, what comes before `-s10` its
//! *stem*. The ending is the one llama.cpp gives to shards.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::HalfRole;

/// The name of one file of a pair, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairName {
    /// The source's name without `.gguf`.
    pub stem: String,
    /// Layers on the edge.
    pub split: u32,
    /// Bits asked for on the edge.
    pub edge_bits: u32,
    /// Bits asked for in the cloud.
    pub cloud_bits: u32,
}

impl PairName {
    /// What both file names begin with, as `llama2-13b-s10e3c8`.
    pub fn prefix(&self) -> String {
        format!(
            "{}-s{}e{}c{}",
            self.stem, self.split, self.edge_bits, self.cloud_bits
        )
    }

    /// The file name of one half.
    pub fn file_name(&self, role: HalfRole) -> String {
        format!("{}-{:05}-of-00002.gguf", self.prefix(), role.shard() + 1)
    }

    /// Takes a file name apart; `None` when it is not the name of one half of a pair.
    pub fn parse(file_name: &str) -> Option<(Self, HalfRole)> {
        let (prefix, role) = [HalfRole::Edge, HalfRole::Cloud].iter().find_map(|role| {
            let ending = format!("-{:05}-of-00002.gguf", role.shard() + 1);
            Some((file_name.strip_suffix(ending.as_str())?, *role))
        })?;
        let (stem, cut) = prefix.rsplit_once("-s")?;
        let (split, bits) = cut.split_once('e')?;
        let (edge_bits, cloud_bits) = bits.split_once('c')?;
        let number = |s: &str| -> Option<u32> {
            let plain = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| s.parse().ok()).flatten()
        };
        if stem.is_empty() {
            return None;
        }
        let name = Self {
            stem: stem.to_owned(),
            split: number(split)?,
            edge_bits: number(edge_bits)?,
            cloud_bits: number(cloud_bits)?,
        };
        Some((name, role))
    }
}

/// The name of a model without `.gguf` and without llama.cpp's shard ending: the stem of the
/// pair made of it.
pub fn model_stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or(OsStr::new("model"));
    let name = name.to_string_lossy();
    let base = name.strip_suffix(".gguf").unwrap_or(&name);
    shard_of(&name).map_or(base, |s| s.prefix).to_owned()
}

/// A shard's name, as `big-00003-of-00007.gguf`, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardName<'a> {
    /// What stands before the numbers.
    pub prefix: &'a str,
    /// Which shard, from 1.
    pub number: u32,
    /// How many there are.
    pub count: u32,
}

/// Takes a shard's file name apart; `None` when it is not one.
pub fn shard_of(file_name: &str) -> Option<ShardName<'_>> {
    let rest = file_name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| -> Option<u32> {
        let plain = s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| s.parse().ok()).flatten()
    };
    let (number, count) = (digits(number)?, digits(count)?);
    (number >= 1 && number <= count).then_some(ShardName {
        prefix,
        number,
        count,
    })
}

/// What the path of a model (or none) stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// A pair, of which at least one file is there: a device may hold only its own half.
    Pair {
        /// What both names begin with.
        prefix: String,
        /// The edge file, if it is there.
        edge: Option<PathBuf>,
        /// The cloud file, if it is there.
        cloud: Option<PathBuf>,
    },
    /// A file without a pair's name: an unsplit model (the first shard of a sharded one), or a
    /// half that was renamed. Its metadata says which.
    Single(PathBuf),
}

/// Nothing, or more than one thing, was found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No such file, folder or prefix.
    #[error(
        "no model at `{}`: it is neither a file, nor a folder, nor what the names of a pair begin with",
        .0.display()
    )]
    NotFound(PathBuf),
    /// The folder holds no model.
    #[error(
        "no GGUF file in `{}`; name one, or make a pair with `splitconv MODEL --split N --edge-bits B`",
        .0.display()
    )]
    Empty(PathBuf),
    /// Several would do.
    #[error(
        "`{}` could be any of: {}; name one",
        .place.display(),
        .candidates.join(", ")
    )]
    Ambiguous {
        /// The folder or prefix.
        place: PathBuf,
        /// What was found there (at most 8 names).
        candidates: Vec<String>,
    },
    /// The folder could not be listed.
    #[error("cannot list `{}`", .place.display())]
    Io {
        /// The folder.
        place: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Finds the model that `path` names: either file of a pair, a folder, what the two names begin
/// with, an ordinary GGUF, or (`None`) the one pair, else the one model, in `cwd`. A relative
/// `path` is taken from `cwd`; pass an empty `cwd` to leave it as it is.
///
/// Only names are looked at, no file is opened.
///
/// # Errors
/// [`LocateError`] when nothing or more than one thing is meant.
pub fn locate(path: Option<&Path>, cwd: &Path) -> Result<Located, LocateError> {
    let Some(path) = path else {
        return in_folder(cwd);
    };
    let path = cwd.join(path);
    if path.is_dir() {
        return in_folder(&path);
    }
    if path.exists() {
        let named = path.file_name().and_then(OsStr::to_str);
        return Ok(match named.and_then(PairName::parse) {
            Some((name, role)) => pair_beside(&path, &name, role),
            None => Located::Single(path),
        });
    }
    by_prefix(&path)
}

/// The file itself and, when it is there, the other half beside it.
fn pair_beside(path: &Path, name: &PairName, role: HalfRole) -> Located {
    let other = path.with_file_name(name.file_name(role.other()));
    let other = other.is_file().then_some(other);
    let (edge, cloud) = match role {
        HalfRole::Edge => (Some(path.to_owned()), other),
        HalfRole::Cloud => (other, Some(path.to_owned())),
    };
    Located::Pair {
        prefix: name.prefix(),
        edge,
        cloud,
    }
}

/// What a folder holds, by name.
#[derive(Default)]
struct Listing {
    /// Prefix → the two files, where they are there.
    pairs: BTreeMap<String, [Option<PathBuf>; 2]>,
    /// Stem of each pair, by prefix.
    stems: BTreeMap<String, String>,
    /// Other GGUF files; of a sharded model only the first.
    singles: Vec<PathBuf>,
}

fn list(folder: &Path) -> Result<Listing, LocateError> {
    let place = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let io = |source| LocateError::Io {
        place: place.to_owned(),
        source,
    };
    let mut found = Listing::default();
    for entry in std::fs::read_dir(place).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let path = folder.join(&name);
        let Some(text) = name.to_str() else {
            continue;
        };
        if path.extension() != Some(OsStr::new("gguf")) || !path.is_file() {
            continue;
        }
        if let Some((pair, role)) = PairName::parse(text) {
            let prefix = pair.prefix();
            found.stems.insert(prefix.clone(), pair.stem);
            found.pairs.entry(prefix).or_default()[usize::from(role.shard())] = Some(path);
        } else if shard_of(text).is_none_or(|s| s.number == 1) {
            found.singles.push(path);
        }
    }
    found.singles.sort();
    Ok(found)
}

fn in_folder(folder: &Path) -> Result<Located, LocateError> {
    let mut found = list(folder)?;
    if found.pairs.len() > 1 {
        return Err(ambiguous(folder, found.pairs.keys().cloned()));
    }
    if let Some(pair) = found.pairs.pop_first() {
        return Ok(as_located(pair));
    }
    if found.singles.len() > 1 {
        return Err(ambiguous(folder, found.singles.iter().map(|p| short(p))));
    }
    match found.singles.pop() {
        Some(path) => Ok(Located::Single(path)),
        None => Err(LocateError::Empty(folder.to_owned())),
    }
}

/// `path` does not exist: its last component is what the names begin with. The whole prefix or
/// the whole stem of a pair goes before a mere beginning, so that `llama` can be told from
/// `llama-chat`.
fn by_prefix(path: &Path) -> Result<Located, LocateError> {
    let missing = || LocateError::NotFound(path.to_owned());
    let wanted = path.file_name().and_then(OsStr::to_str);
    let wanted = wanted.ok_or_else(missing)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    if !folder.as_os_str().is_empty() && !folder.is_dir() {
        return Err(missing());
    }
    let Listing {
        mut pairs, stems, ..
    } = list(folder)?;
    if let Some(pair) = pairs.remove_entry(wanted) {
        return Ok(as_located(pair));
    }
    let is_stem = |prefix: &String| stems.get(prefix).is_some_and(|s| s == wanted);
    let mut hits: Vec<String> = pairs.keys().filter(|p| is_stem(p)).cloned().collect();
    if hits.is_empty() {
        hits = pairs
            .keys()
            .filter(|p| p.starts_with(wanted))
            .cloned()
            .collect();
    }
    if hits.len() > 1 {
        return Err(ambiguous(path, hits.into_iter()));
    }
    let hit = hits.pop().and_then(|prefix| pairs.remove_entry(&prefix));
    hit.map(as_located).ok_or_else(missing)
}

fn as_located((prefix, [edge, cloud]): (String, [Option<PathBuf>; 2])) -> Located {
    Located::Pair {
        prefix,
        edge,
        cloud,
    }
}

fn ambiguous(place: &Path, names: impl Iterator<Item = String>) -> LocateError {
    LocateError::Ambiguous {
        place: place.to_owned(),
        candidates: names.take(8).collect(),
    }
}

fn short(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(dir: &Path, names: &[&str]) {
        for n in names {
            std::fs::write(dir.join(n), b"").unwrap();
        }
    }

    #[test]
    fn names_there_and_back() {
        let name = PairName {
            stem: "a-s1-s2e3c4".into(),
            split: 10,
            edge_bits: 3,
            cloud_bits: 8,
        };
        for role in [HalfRole::Edge, HalfRole::Cloud] {
            assert_eq!(
                PairName::parse(&name.file_name(role)),
                Some((name.clone(), role))
            );
        }
        assert_eq!(
            name.file_name(HalfRole::Cloud),
            "a-s1-s2e3c4-s10e3c8-00002-of-00002.gguf"
        );
        for no in [
            "a-00001-of-00002.gguf",
            "a-s10e3c8-00003-of-00002.gguf",
            "a-s10e3c8-00001-of-00003.gguf",
            "a-s10e3c-00001-of-00002.gguf",
            "a-s+1e3c8-00001-of-00002.gguf",
            "-s10e3c8-00001-of-00002.gguf",
            "a-s99999999999e3c8-00001-of-00002.gguf",
            "a-s10e3c8.gguf",
        ] {
            assert_eq!(PairName::parse(no), None, "{no}");
        }
    }

    #[test]
    fn stems() {
        let stem = |s: &str| model_stem(Path::new(s));
        assert_eq!(stem("dir/llama2-13b.gguf"), "llama2-13b");
        assert_eq!(stem("big-00001-of-00007.gguf"), "big");
        assert_eq!(stem("M.Q4_1.gguf"), "M.Q4_1");
        assert_eq!(stem("noending"), "noending");
    }

    #[test]
    fn finds_the_pair() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        assert!(matches!(locate(None, d), Err(LocateError::Empty(_))));
        touch(d, &["m.gguf", "note.txt"]);
        assert_eq!(locate(None, d).unwrap(), Located::Single(d.join("m.gguf")));
        let (e, c) = (
            "m-s3e4c8-00001-of-00002.gguf",
            "m-s3e4c8-00002-of-00002.gguf",
        );
        touch(d, &[e, c]);
        let pair = Located::Pair {
            prefix: "m-s3e4c8".into(),
            edge: Some(d.join(e)),
            cloud: Some(d.join(c)),
        };
        for given in [
            None,
            Some(e),
            Some(c),
            Some("m"),
            Some("m-s3e4c8"),
            Some("m-s"),
        ] {
            assert_eq!(locate(given.map(Path::new), d).unwrap(), pair, "{given:?}");
        }
        assert_eq!(locate(Some(d), Path::new("")).unwrap(), pair);
        assert_eq!(
            locate(Some(Path::new("m.gguf")), d).unwrap(),
            Located::Single(d.join("m.gguf"))
        );
        assert!(matches!(
            locate(Some(Path::new("n")), d),
            Err(LocateError::NotFound(_))
        ));
        assert!(matches!(
            locate(Some(Path::new("no/n")), d),
            Err(LocateError::NotFound(_))
        ));
        std::fs::remove_file(d.join(c)).unwrap();
        let half = Located::Pair {
            prefix: "m-s3e4c8".into(),
            edge: Some(d.join(e)),
            cloud: None,
        };
        assert_eq!(locate(None, d).unwrap(), half);
        assert_eq!(locate(Some(Path::new(e)), d).unwrap(), half);
    }

    #[test]
    fn says_what_is_ambiguous() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        touch(
            d,
            &[
                "m-s3e4c8-00001-of-00002.gguf",
                "m-chat-s3e4c8-00001-of-00002.gguf",
            ],
        );
        let err = locate(None, d).unwrap_err().to_string();
        assert!(
            err.contains("m-s3e4c8") && err.contains("m-chat-s3e4c8"),
            "{err}"
        );
        // A whole stem is not ambiguous though it begins both names.
        let Located::Pair { prefix, .. } = locate(Some(Path::new("m")), d).unwrap() else {
            panic!("a pair");
        };
        assert_eq!(prefix, "m-s3e4c8");
    }

    #[test]
    fn a_sharded_model_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        touch(d, &["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]);
        assert_eq!(
            locate(None, d).unwrap(),
            Located::Single(d.join("b-00001-of-00002.gguf"))
        );
    }
}
