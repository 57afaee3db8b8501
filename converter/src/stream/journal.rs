//! What a run has finished, so that the next one need not do it again.
//!
//! A text file of lines that are only ever appended: `CHECK JSON`. The check is the beginning of
//! the BLAKE3 of the check before it and the line, so a torn or changed line ends the file for
//! its reader, and no line can be taken for another. What a line says about bytes on the disk
//! is never believed: a tensor counts as finished when its bytes have the digest that the line
//! names. So lines and bytes need no order on the disk, and none is waited for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use formats::pair::{Digest, PairId};
use serde::{Deserialize, Serialize};

use super::StreamError;
use super::fingerprint::Fingerprint;

/// Changes when a line's meaning does.
const VERSION: u32 = 1;
/// No journal of ours is longer; a line is about 200 bytes and stands for a tensor.
const LONGEST: u64 = 64 << 20;
/// Hexadecimal digits of a check.
const CHECK: usize = 16;

/// The names are about to be given: both files are whole and on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Publish {
    /// Whether files of these names may be replaced.
    pub(super) replace: bool,
    pair_id: String,
    source: String,
    /// Sizes: edge, cloud.
    pub(super) bytes: [u64; 2],
}

impl Publish {
    pub(super) fn new(replace: bool, pair_id: PairId, source: Digest, bytes: [u64; 2]) -> Self {
        Self {
            replace,
            pair_id: pair_id.to_string(),
            source: source.to_string(),
            bytes,
        }
    }

    pub(super) fn pair_id(&self) -> Option<PairId> {
        self.pair_id.parse().ok()
    }

    pub(super) fn source(&self) -> Option<Digest> {
        Digest::from_hex(self.source.as_bytes())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begin {
        version: u32,
        fingerprint: Fingerprint,
    },
    Tensor {
        index: usize,
        source: String,
        written: String,
    },
    Publish(Publish),
    /// The names could not be given; the files are as before [`Line::Publish`].
    Withdraw,
}

/// What an earlier run has left.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) fingerprint: Fingerprint,
    /// Tensor of the plan → its digests in the source and in the half.
    pub(super) done: BTreeMap<usize, [Digest; 2]>,
    pub(super) publish: Option<Publish>,
}

/// The open journal.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    check: [u8; CHECK],
}

fn next_check(before: [u8; CHECK], line: &[u8]) -> [u8; CHECK] {
    let mut hash = blake3::Hasher::new();
    hash.update(&before).update(line);
    let hex = hash.finalize().to_hex();
    let mut check = [0; CHECK];
    check.copy_from_slice(&hex.as_bytes()[..CHECK]);
    check
}

impl Journal {
    /// Reads what stands in `file` as far as it is sound; lines are appended there.
    pub(super) fn open(path: &Path, mut file: File) -> Result<(Self, Option<Past>), StreamError> {
        let fail = |e: io::Error| StreamError::write(path, e.into());
        let mut text = Vec::new();
        (&mut file)
            .take(LONGEST)
            .read_to_end(&mut text)
            .map_err(fail)?;
        let (mut past, mut sound, mut check) = (None, 0, [b'0'; CHECK]);
        for line in text.split_inclusive(|b| *b == b'\n') {
            let Some((said, json)) = split(line) else {
                break;
            };
            let next = next_check(check, json);
            if next != *said || !note(&mut past, json) {
                break;
            }
            check = next;
            sound += line.len();
        }
        file.seek(SeekFrom::Start(sound as u64)).map_err(fail)?;
        let journal = Self {
            path: path.to_owned(),
            file,
            check,
        };
        Ok((journal, past))
    }

    /// The file's name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets everything and begins again.
    pub(super) fn begin(&mut self, fingerprint: &Fingerprint) -> Result<(), StreamError> {
        let fail = |e: io::Error| StreamError::write(&self.path, e.into());
        self.file.set_len(0).map_err(fail)?;
        self.file.rewind().map_err(fail)?;
        self.check = [b'0'; CHECK];
        self.append(&Line::Begin {
            version: VERSION,
            fingerprint: fingerprint.clone(),
        })
    }

    /// Goes on behind the last sound line.
    pub(super) fn resume(&mut self) -> Result<(), StreamError> {
        let fail = |e: io::Error| StreamError::write(&self.path, e.into());
        let end = self.file.stream_position().map_err(fail)?;
        self.file.set_len(end).map_err(fail)
    }

    /// The tensor `index` is in its place.
    pub(super) fn tensor(&mut self, index: usize, digests: [Digest; 2]) -> Result<(), StreamError> {
        self.append(&Line::Tensor {
            index,
            source: digests[0].to_string(),
            written: digests[1].to_string(),
        })
    }

    /// Both files are durable; so is this line when it returns.
    pub(super) fn publish(&mut self, publish: &Publish) -> Result<(), StreamError> {
        self.append(&Line::Publish(publish.clone()))?;
        let synced = self.file.sync_all();
        synced.map_err(|e| StreamError::write(&self.path, e.into()))
    }

    /// The names could not be given.
    pub(super) fn withdraw(&mut self) -> Result<(), StreamError> {
        self.append(&Line::Withdraw)
    }

    /// Another handle of the file, to make it durable.
    pub(super) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn append(&mut self, line: &Line) -> Result<(), StreamError> {
        let json = serde_json::to_vec(line);
        let json = json.map_err(|_| StreamError::Internal("a line that is no JSON"))?;
        self.check = next_check(self.check, &json);
        // At once, so that a kill leaves the line or not.
        let bytes = [&self.check[..], b" ", &json, b"\n"].concat();
        let wrote = self.file.write_all(&bytes);
        wrote.map_err(|e| StreamError::write(&self.path, e.into()))
    }
}

/// The check and the JSON of a whole line.
fn split(line: &[u8]) -> Option<(&[u8; CHECK], &[u8])> {
    let (check, rest) = line.split_first_chunk::<CHECK>()?;
    Some((check, rest.strip_prefix(b" ")?.strip_suffix(b"\n")?))
}

/// Takes in a line; `false` when it makes no sense where it stands.
fn note(past: &mut Option<Past>, json: &[u8]) -> bool {
    let Ok(line) = serde_json::from_slice::<Line>(json) else {
        return false;
    };
    let digest = |hex: &str| Digest::from_hex(hex.as_bytes());
    match (line, past) {
        (
            Line::Begin {
                version: VERSION,
                fingerprint,
            },
            past @ None,
        ) => {
            *past = Some(Past {
                fingerprint,
                ..Past::default()
            });
        }
        (
            Line::Tensor {
                index,
                source,
                written,
            },
            Some(past),
        ) => {
            let (Some(source), Some(written)) = (digest(&source), digest(&written)) else {
                return false;
            };
            past.done.insert(index, [source, written]);
        }
        (Line::Publish(publish), Some(past)) => past.publish = Some(publish),
        (Line::Withdraw, Some(past)) => past.publish = None,
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(value: &str) -> Fingerprint {
        let mut f = Fingerprint::default();
        f.add("the types", &value);
        f
    }

    fn open(path: &Path) -> (Journal, Option<Past>) {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        Journal::open(path, options.open(path).unwrap()).unwrap()
    }

    /// Cut anywhere, or with any byte changed: the sound beginning counts, and goes on.
    #[test]
    fn damage_ends_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let digests = |i: u8| [Digest([i; 32]), Digest([i + 100; 32])];
        let (mut journal, past) = open(&path);
        assert!(past.is_none());
        journal.begin(&fingerprint("Q4_K")).unwrap();
        for i in 0..3 {
            journal.tensor(usize::from(i), digests(i)).unwrap();
        }
        let publish = Publish::new(true, PairId([7; 16]), Digest([9; 32]), [1, 2]);
        journal.publish(&publish).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let ends: Vec<usize> = whole
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'\n')
            .map(|(i, _)| i + 1)
            .collect();
        let check = |sound: usize| {
            let (_, past) = open(&path);
            assert_eq!(past.is_some(), sound > 0);
            let past = past.unwrap_or_default();
            assert_eq!(past.done.len(), sound.saturating_sub(1).min(3));
            assert!(past.done.iter().all(|(i, d)| *d == digests(*i as u8)));
            assert_eq!(past.publish, (sound == 5).then(|| publish.clone()));
        };
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            check(ends.iter().filter(|e| **e <= cut).count());
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            check(ends.iter().filter(|e| **e <= at).count());
        }
        // It goes on behind what is sound.
        std::fs::write(&path, &whole[..ends[1] + 5]).unwrap();
        let (mut journal, past) = open(&path);
        assert_eq!(past.unwrap().done.len(), 1);
        journal.resume().unwrap();
        journal.tensor(5, digests(5)).unwrap();
        let (_, past) = open(&path);
        let done: Vec<usize> = past.unwrap().done.into_keys().collect();
        assert_eq!(done, [0, 5]);
    }
}
