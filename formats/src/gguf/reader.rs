//! A GGUF file over a memory map, and several shards of one model as one.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::error::{GgufError, GgufErrorKind as Kind};
use super::header::{self, Header, TensorInfo};
use super::value::Metadata;

/// One open GGUF file. Tensor data stays in the map until it is touched.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    map: Mmap,
    header: Header,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Opens and checks a file: header, metadata, tensor directory, ranges.
    ///
    /// Memory used is bounded by the size of the header. Tensor data is not read.
    ///
    /// # Errors
    /// Any [`GgufErrorKind`](super::GgufErrorKind), with the file's name.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let fail = |e| GgufError::new(path, e);
        let regular = |kind: std::io::Result<std::fs::Metadata>| match kind {
            Ok(kind) if !kind.is_file() => {
                let e = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
                Err(fail(e.into()))
            }
            kind => kind.map_err(|e| fail(e.into())),
        };
        // Looked at before it is opened: opening a pipe waits for somebody to write into it.
        regular(std::fs::metadata(path))?;
        let file = File::open(path).map_err(|e| fail(e.into()))?;
        let kind = regular(file.metadata())?;
        if kind.len() == 0 {
            return Err(fail(Kind::NotGguf { found: Vec::new() }));
        }
        // SAFETY: the map is read-only and private to this struct. Another process that truncates
        // the file while we run would fault us, as it would every program that maps its weights;
        // our own writers never change a file in place (they write a new one and rename it).
        let map = unsafe { Mmap::map(&file) }.map_err(|e| fail(e.into()))?;
        // Weights in pages of 2 MiB, where the file system gives them and the file is not in memory yet: with
        // small ones whoever reads all of it waits for page tables. Advice: without it all is the same but slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let header = header::parse(&map).map_err(fail)?;
        let by_name = header
            .tensors
            .iter()
            .enumerate()
            .map(|(i, t)| (t.name.clone(), i))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            map,
            header,
            by_name,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for reads by position: those answer damage with an error, where touching
    /// the map would end the process.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// GGUF version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Alignment of tensor data in bytes.
    pub fn alignment(&self) -> usize {
        self.header.alignment
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The tensor directory, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.header.tensors[*i])
    }

    /// The bytes of a tensor of this file.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        // The header check put every tensor of this file inside the map; a foreign one gets what
        // the range allows.
        self.map
            .get(tensor.start..tensor.start + tensor.bytes)
            .unwrap_or(&[])
    }

    /// Bytes of the file by position; empty when `range` reaches past the end.
    pub fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.map.get(range).unwrap_or(&[])
    }

    /// Tells the system that the pages of `range` are not needed: who has copied them elsewhere (to
    /// a device, say) does not hold them twice. They are read again if somebody looks.
    pub fn release(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if range.start < range.end && range.end <= self.map.len() {
            // SAFETY: the map is read-only and of a file, so a page that was dropped comes back
            // with the same bytes.
            let done = unsafe {
                self.map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
            // It is advice: a system that does not take it holds the pages a while longer.
            let _ = done;
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.map.len()
    }

    /// First byte of the data section.
    pub fn data_start(&self) -> usize {
        self.header.data_start
    }

    /// Reads the file a second time with the `gguf-rs` crate and compares what both saw.
    ///
    /// Only our bounded reader's acceptance makes this safe: `gguf-rs` allocates what a header
    /// claims. It takes paths as UTF-8 only: for another path nothing is compared and the answer
    /// is `Ok`.
    ///
    /// # Errors
    /// When the two readers disagree about the version, the names of the keys, or the tensors'
    /// names, types, shapes or offsets.
    pub fn second_opinion(&self) -> Result<(), GgufError> {
        let fail = |why: String| GgufError::new(&self.path, Kind::SecondOpinion(why));
        let Some(path) = self.path.to_str() else {
            return Ok(());
        };
        let mut container = gguf_rs::get_gguf_container(path).map_err(|e| fail(e.to_string()))?;
        let other = container.decode().map_err(|e| fail(e.to_string()))?;
        let version = format!("v{}", self.version());
        if other.get_version() != version {
            return Err(fail(format!(
                "version {} there, {version} here",
                other.get_version()
            )));
        }
        if let Some((key, _)) =
            (self.metadata().iter()).find(|(k, _)| !other.metadata().contains_key(*k))
        {
            return Err(fail(format!("key `{key}` here, not there")));
        }
        // With all of ours there, equal numbers mean equal names.
        if other.metadata().len() != self.metadata().len() {
            return Err(fail(format!(
                "{} metadata keys there, {} here",
                other.metadata().len(),
                self.metadata().len()
            )));
        }
        if other.tensors().len() != self.tensors().len() {
            return Err(fail(format!(
                "{} tensors there, {} here",
                other.tensors().len(),
                self.tensors().len()
            )));
        }
        for (theirs, ours) in other.tensors().iter().zip(self.tensors()) {
            let offset = (ours.start - self.data_start()) as u64;
            let mut shape = theirs.shape.clone();
            while shape.len() > ours.dims.len() && shape.last() == Some(&1) {
                shape.pop();
            }
            if theirs.name != ours.name
                || theirs.offset != offset
                || theirs.kind != ours.block_type.id()
                || shape != ours.dims
            {
                return Err(fail(format!(
                    "tensor `{}` {shape:?} at {} there, `{}` {:?} at {offset} here",
                    theirs.name, theirs.offset, ours.name, ours.dims
                )));
            }
        }
        Ok(())
    }
}

/// All shards of one model, read as one.
#[derive(Debug)]
pub struct GgufSet {
    files: Vec<Gguf>,
    by_name: HashMap<String, (usize, usize)>,
}

impl GgufSet {
    /// Opens `path` and, when its metadata says `split.count` > 1, its sibling shards
    /// (`NAME-00001-of-00003.gguf` …) from the same folder. Any shard may be named.
    ///
    /// # Errors
    /// When a shard is missing, is of another model, or holds a tensor twice.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let first = Gguf::open(path)?;
        let count = split_count(first.metadata());
        if count <= 1 {
            return Self::from_files(vec![first]);
        }
        let shard = |no: usize, why: String| {
            GgufError::new(
                path,
                Kind::Shard {
                    no: no + 1,
                    count,
                    why,
                },
            )
        };
        let no = first
            .metadata()
            .get("split.no")
            .and_then(super::Value::as_u64)
            .unwrap_or(0);
        let no = usize::try_from(no).unwrap_or(usize::MAX);
        let stem = shard_stem(path, no, count).ok_or_else(|| {
            shard(
                no,
                format!(
                    "the file's name does not end in -{:05}-of-{count:05}.gguf, so the other \
                     shards cannot be found; rename it as it was",
                    no.saturating_add(1)
                ),
            )
        })?;
        let mut files = Vec::new();
        let mut first = Some(first);
        for i in 0..count {
            let file = if i == no { first.take() } else { None };
            let file = match file {
                Some(f) => f,
                None => open_sibling(&path.with_file_name(shard_name(&stem, i, count)), i, count)?,
            };
            let m = file.metadata();
            let its_no = m.get("split.no").and_then(super::Value::as_u64);
            if its_no != Some(i as u64) || split_count(m) != count {
                return Err(GgufError::new(
                    file.path(),
                    Kind::Shard {
                        no: i + 1,
                        count,
                        why: format!(
                            "its metadata says shard {} of {}",
                            its_no.map_or(0, |n| n.saturating_add(1)),
                            split_count(m)
                        ),
                    },
                ));
            }
            files.push(file);
        }
        let total: usize = files.iter().map(|f| f.tensors().len()).sum();
        let said = files[0]
            .metadata()
            .get("split.tensors.count")
            .and_then(super::Value::as_u64);
        if said.is_some_and(|s| s != total as u64) {
            return Err(shard(
                0,
                format!(
                    "{} tensors promised, {total} found in all shards",
                    said.unwrap_or(0)
                ),
            ));
        }
        Self::from_files(files)
    }

    /// A set of files opened by the caller (no sibling is looked for).
    ///
    /// # Errors
    /// When a tensor stands in two files.
    pub fn from_files(files: Vec<Gguf>) -> Result<Self, GgufError> {
        let mut by_name = HashMap::new();
        for (f, file) in files.iter().enumerate() {
            for (t, tensor) in file.tensors().iter().enumerate() {
                if let Some((other, _)) = by_name.insert(tensor.name.clone(), (f, t)) {
                    let other: &Gguf = &files[other];
                    return Err(GgufError::new(
                        file.path(),
                        Kind::Malformed {
                            what: format!("tensor `{}`", tensor.name),
                            why: format!("it also stands in {}", other.path().display()),
                        },
                    ));
                }
            }
        }
        Ok(Self { files, by_name })
    }

    /// The files, in shard order; at least one.
    pub fn files(&self) -> &[Gguf] {
        &self.files
    }

    /// The metadata of the first shard, which describes the model.
    pub fn metadata(&self) -> &Metadata {
        self.files[0].metadata()
    }

    /// The tensor called `name` and the file it stands in.
    pub fn tensor(&self, name: &str) -> Option<(&Gguf, &TensorInfo)> {
        let (f, t) = *self.by_name.get(name)?;
        let file = &self.files[f];
        Some((file, &file.tensors()[t]))
    }

    /// Which file (an index into [`files`](Self::files)) holds `name`, and its place there.
    pub fn find(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let (f, t) = *self.by_name.get(name)?;
        Some((f, &self.files[f].tensors()[t]))
    }

    /// All tensors with their files, shard by shard.
    pub fn tensors(&self) -> impl Iterator<Item = (&Gguf, &TensorInfo)> {
        self.files
            .iter()
            .flat_map(|f| f.tensors().iter().map(move |t| (f, t)))
    }
}

/// Opens shard `i`; says that it is a shard when it is not there.
fn open_sibling(path: &Path, i: usize, count: usize) -> Result<Gguf, GgufError> {
    Gguf::open(path).map_err(|e| match e.kind {
        Kind::Io(io) if io.kind() == std::io::ErrorKind::NotFound => GgufError::new(
            path,
            Kind::Shard {
                no: i + 1,
                count,
                why: "no such file".into(),
            },
        ),
        _ => e,
    })
}

fn split_count(m: &Metadata) -> usize {
    let n = m
        .get("split.count")
        .and_then(super::Value::as_u64)
        .unwrap_or(0);
    // GGUF stores it as a u16; more is damage and would only make us look for files.
    usize::try_from(n).unwrap_or(0).min(usize::from(u16::MAX))
}

/// `STEM` of `STEM-00001-of-00002.gguf`, when the numbers are these.
fn shard_stem(path: &Path, no: usize, count: usize) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let suffix = format!("-{:05}-of-{count:05}.gguf", no.checked_add(1)?);
    name.strip_suffix(&suffix).map(str::to_owned)
}

/// The name of shard `no` (from 0) of `count`, as GGUF defines it.
pub fn shard_name(stem: &str, no: usize, count: usize) -> String {
    format!("{stem}-{:05}-of-{count:05}.gguf", no + 1)
}
