//! `splitconv verify`: whether the files are what splitconv wrote, and belong together.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::gguf::{Gguf, GgufError, Value};
use formats::model::Architecture;
use formats::pair::{
    ContractMismatch, Digest, HalfInfo, HalfRole, LocateError, Located, PairError, key, locate,
    metadata_digest,
};
use serde::Serialize;

use crate::at;
use crate::cli::VerifyArgs;
use crate::report::{print_json, print_text};

/// What is wrong with a file or with two files together.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// No file of that name.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// Not written by splitconv.
    #[error("{} is not a half of a pair: it has no digests to be checked", .0.display())]
    NotAHalf(PathBuf),
    /// Keys that cannot be read.
    #[error("{}", .0.display())]
    Keys(PathBuf, #[source] PairError),
    /// A tensor is not what was written.
    #[error(
        "{}: tensor `{tensor}` is damaged: its digest is {found}, it was written as {wanted}; convert again or fetch the file again",
        path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The digest of its bytes.
        found: Digest,
        /// The digest in the file.
        wanted: Digest,
    },
    /// The file cannot be read to its end.
    #[error("cannot read tensor `{tensor}` from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The header contradicts itself.
    #[error("{}: {what}; the file is damaged, convert again or fetch it again", path.display())]
    Contents {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Two files that are not one pair.
    #[error("{} and {} are not one pair", .0.display(), .1.display())]
    Mismatch(PathBuf, PathBuf, #[source] ContractMismatch),
    /// The same half twice.
    #[error("{} and {} are both the {role} half", a.display(), b.display())]
    SameRole {
        /// One file.
        a: PathBuf,
        /// The other.
        b: PathBuf,
        /// Which half.
        role: HalfRole,
    },
}

#[derive(Serialize)]
struct Verdict {
    ok: bool,
    /// Whether both halves of one pair were checked.
    whole_pair: bool,
    pair_id: Option<String>,
    files: Vec<Checked>,
}

#[derive(Serialize)]
struct Checked {
    file: String,
    role: &'static str,
    first_layer: u32,
    end_layer: u32,
    tensors: usize,
    tensor_bytes: usize,
}

/// Checks the files.
///
/// # Errors
/// [`VerifyError`]: the first thing found wrong.
pub fn run(args: &VerifyArgs) -> Result<(), Box<dyn Error>> {
    let mut halves: Vec<(Gguf, HalfInfo)> = Vec::new();
    for path in args.files.iter().map(|p| expand(p)) {
        for path in path? {
            halves.push(check_file(&path)?);
        }
    }
    for (i, a) in halves.iter().enumerate() {
        for b in &halves[i + 1..] {
            check_two(a, b)?;
        }
    }
    let verdict = Verdict {
        ok: true,
        whole_pair: halves.len() == 2,
        pair_id: halves.first().map(|(_, h)| h.contract.pair_id.to_string()),
        files: halves
            .iter()
            .map(|(file, half)| Checked {
                file: file.path().display().to_string(),
                role: half.role.name(),
                first_layer: half.first_layer,
                end_layer: half.end_layer,
                tensors: file.tensors().len(),
                tensor_bytes: file.tensors().iter().map(|t| t.bytes).sum(),
            })
            .collect(),
    };
    if args.json {
        return print_json(&verdict);
    }
    let mut out: Vec<String> = Vec::new();
    for f in &verdict.files {
        out.push(format!(
            "ok  {}: {} half, layers {} to {}, {} tensors of {} bytes as written\n",
            f.file,
            f.role,
            f.first_layer,
            f.end_layer - 1,
            f.tensors,
            f.tensor_bytes
        ));
    }
    if let Some(id) = verdict.pair_id.filter(|_| verdict.whole_pair) {
        out.push(format!("ok  both are one pair, {id}\n"));
    }
    print_text(&out.concat())
}

/// A file is itself; a folder or the beginning of a pair's names is what is found there.
fn expand(path: &Path) -> Result<Vec<PathBuf>, LocateError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    Ok(match locate(Some(path), Path::new(""))? {
        Located::Single(file) => vec![file],
        Located::Pair { edge, cloud, .. } => edge.into_iter().chain(cloud).collect(),
    })
}

/// Checks one half by itself: keys, contents, digests.
///
/// # Errors
/// [`VerifyError`].
pub fn check_file(path: &Path) -> Result<(Gguf, HalfInfo), VerifyError> {
    let file = Gguf::open(path)?;
    file.second_opinion()?;
    let half = HalfInfo::from_metadata(file.metadata())
        .map_err(|e| VerifyError::Keys(path.to_owned(), e))?
        .ok_or_else(|| VerifyError::NotAHalf(path.to_owned()))?;
    let contents = |what: String| VerifyError::Contents {
        path: path.to_owned(),
        what,
    };
    let (have, want) = (file.tensors().len(), half.tensor_digests.len());
    if have != want {
        return Err(contents(format!("{have} tensors, but {want} digests")));
    }
    let stated = file.metadata().get(key::METADATA_DIGEST);
    let found = metadata_digest(file.metadata()).to_string();
    if stated.and_then(Value::as_str) != Some(found.as_str()) {
        return Err(contents(format!(
            "the metadata is not as written: its digest is {found}, `{}` is {}",
            key::METADATA_DIGEST,
            stated.map_or("missing".to_owned(), ToString::to_string)
        )));
    }
    let architecture = Architecture::of(file.metadata()).map_err(|e| contents(e.to_string()))?;
    let number = |key: &str| file.metadata().get(key).and_then(Value::as_u32);
    let facts = [
        (architecture.key("block_count"), half.contract.n_layer),
        (architecture.key("embedding_length"), half.contract.width),
        (key::SPLIT_NO.into(), u32::from(half.role.shard())),
        (key::SPLIT_COUNT.into(), 2),
    ];
    for (key, wanted) in facts {
        let found = number(&key);
        if found != Some(wanted) {
            let found = found.map_or("missing".to_owned(), |n| n.to_string());
            return Err(contents(format!("`{key}` is {found}, not {wanted}")));
        }
    }
    let layers = half.first_layer..half.end_layer;
    for tensor in file.tensors() {
        let layer = tensor.name.strip_prefix("blk.").and_then(|n| {
            let (layer, _) = n.split_once('.')?;
            layer.parse::<u32>().ok()
        });
        if layer.is_some_and(|l| !layers.contains(&l)) {
            return Err(contents(format!(
                "tensor `{}` lies outside layers {} to {}",
                tensor.name,
                layers.start,
                layers.end - 1
            )));
        }
    }
    check_digests(&file, &half)?;
    Ok((file, half))
}

fn check_digests(file: &Gguf, half: &HalfInfo) -> Result<(), VerifyError> {
    let tensors = file.tensors();
    let next = AtomicUsize::new(0);
    let wrong: Mutex<Option<(usize, io::Result<Digest>)>> = Mutex::new(None);
    let worker = || {
        let mut buffer = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let (Some(t), Some(wanted)) = (tensors.get(i), half.tensor_digests.get(i)) else {
                return;
            };
            let found = at::digest(file.file(), t.start as u64, t.bytes, &mut buffer);
            if !found.as_ref().is_ok_and(|f| f == wanted) {
                let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                // The first in the file, whichever thread comes first.
                if wrong.as_ref().is_none_or(|(j, _)| i < *j) {
                    *wrong = Some((i, found));
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // One thread less is only slower.
            let _ = std::thread::Builder::new().spawn_scoped(scope, worker);
        }
        worker();
    });
    match wrong.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some((i, Err(source))) => Err(VerifyError::Read {
            path: file.path().to_owned(),
            tensor: tensors[i].name.clone(),
            source,
        }),
        Some((i, Ok(found))) => Err(VerifyError::Digest {
            path: file.path().to_owned(),
            tensor: tensors[i].name.clone(),
            found,
            wanted: half.tensor_digests[i],
        }),
    }
}

/// Checks that two halves are one pair.
///
/// # Errors
/// [`VerifyError`] naming both files and what differs.
pub fn check_two(a: &(Gguf, HalfInfo), b: &(Gguf, HalfInfo)) -> Result<(), VerifyError> {
    let (x, y) = (a.0.path().to_owned(), b.0.path().to_owned());
    if let Err(e) = a.1.contract.check(&b.1.contract) {
        return Err(VerifyError::Mismatch(x, y, e));
    }
    if a.1.role == b.1.role {
        return Err(VerifyError::SameRole {
            a: x,
            b: y,
            role: a.1.role,
        });
    }
    let total = a.0.tensors().len() + b.0.tensors().len();
    for (file, _) in [a, b] {
        let said = file.metadata().get(key::SPLIT_TENSORS_COUNT);
        let said = said.and_then(Value::as_u64);
        if said != Some(total as u64) {
            return Err(VerifyError::Contents {
                path: file.path().to_owned(),
                what: format!(
                    "`{}` is {}, but both files hold {total} tensors",
                    key::SPLIT_TENSORS_COUNT,
                    said.map_or("missing".to_owned(), |n| n.to_string())
                ),
            });
        }
    }
    Ok(())
}
