//! From the source into the two files: decoded and encoded in pieces on all cores, written in
//! order, hashed on the way.
//!
//! Both files are complete and durable under temporary names before either gets its own.

mod chunks;
mod output;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use blake3::Hasher;
use formats::gguf::{Metadata, TensorDecl, Value, WriteError};
use formats::pair::{
    Contract, Digest, HalfInfo, HalfRole, PairId, PairIdBuilder, PairName, SourceDigest,
};

use crate::progress::Progress;
use crate::recipe::{Plan, TensorPlan, file_type};
use crate::source::Source;
use chunks::{Chunk, Job};
use output::{Output, publish};

pub use output::partial_name;

/// A conversion that could not be finished. Its own files have been removed, and files that
/// stood under their names are as they were.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The output cannot be written.
    #[error("cannot write {}{hint}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// There is a file of that name.
    #[error("{} exists already; --force replaces it, --out DIR writes elsewhere", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes the same file.
    #[error("{} is being written by another splitconv; wait for it or choose another --out", path.display())]
    Busy {
        /// The temporary file.
        path: PathBuf,
    },
    /// A signal asked for an end.
    #[error("interrupted; no half was written, run it again")]
    Interrupted,
    /// NaN or infinity in the source.
    #[error(
        "{}: tensor `{tensor}`, row {row} holds {value}, which cannot be encoded; the source is damaged, fetch or make it again",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row.
        row: usize,
        /// The value.
        value: f32,
    },
    /// A value beyond the range of F16.
    #[error(
        "{}: tensor `{tensor}`, row {row} holds {value}, which F16 cannot; use --tensor-type '{}=BF16'",
        path.display(),
        regex::escape(.tensor)
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row.
        row: usize,
        /// The value.
        value: f32,
    },
    /// The frequency factors of the source are of a kind the cloud's key cannot hold.
    #[error(
        "{}: tensor `rope_freqs.weight` is {found}, not F32; make the source again with a current llama.cpp",
        path.display()
    )]
    RopeFreqs {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: formats::blocks::BlockType,
    },
    /// No thread could be started.
    #[error("cannot start a thread; try -t 1")]
    Threads(#[source] io::Error),
    /// A bug.
    #[error("internal error: {0}; please report it with the command line")]
    Internal(&'static str),
}

impl StreamError {
    /// A write to `path` that failed; says what helps when there is no room.
    pub fn write(path: &Path, source: WriteError) -> Self {
        let full = |e: &io::Error| {
            matches!(
                e.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            )
        };
        let hint = match &source {
            WriteError::Io(e) if full(e) => {
                " (no half was left behind; make room there or choose another folder with --out)"
            }
            _ => "",
        };
        Self::Write {
            path: path.to_owned(),
            hint,
            source,
        }
    }
}

/// Where a pair goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The folder; created when it is not there.
    pub folder: PathBuf,
    /// The names.
    pub name: PairName,
    /// Whether files of these names may be replaced.
    pub force: bool,
}

impl Target {
    /// The file of one half.
    pub fn path(&self, role: HalfRole) -> PathBuf {
        self.folder.join(self.name.file_name(role))
    }

    /// Checks that nothing stands in the way.
    ///
    /// # Errors
    /// [`StreamError::Exists`] unless `force` is set.
    pub fn check(&self) -> Result<(), StreamError> {
        let taken = [HalfRole::Edge, HalfRole::Cloud]
            .map(|r| self.path(r))
            .into_iter()
            .find(|p| p.exists());
        match taken {
            Some(path) if !self.force => Err(StreamError::Exists { path }),
            _ => Ok(()),
        }
    }
}

/// A pair that has been written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Its identity.
    pub pair_id: PairId,
    /// BLAKE3 of the source.
    pub source_digest: Digest,
    /// Size of the edge file.
    pub edge_bytes: u64,
    /// Size of the cloud file.
    pub cloud_bytes: u64,
}

/// The digests as they become known.
struct Digests {
    source: HashMap<String, Digest>,
    /// In the plan's order.
    written: Vec<Digest>,
}

/// Writes the pair that `plan` describes, on `threads` threads.
///
/// # Errors
/// [`StreamError`], [`StreamError::Interrupted`] when `progress` wants it stopped; what was
/// written so far is removed.
pub fn write_pair(
    source: &Source,
    plan: &Plan,
    target: &Target,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Written, StreamError> {
    target.check()?;
    std::fs::create_dir_all(&target.folder)
        .map_err(|e| StreamError::write(&target.folder, e.into()))?;
    let jobs = jobs(source, plan)?;
    let headers = Headers::new(source, plan)?;
    let blank = Known::blank(plan);
    let create = |role| {
        let decls: Vec<TensorDecl> = plan.half(role).map(TensorPlan::decl).collect();
        Output::create(&target.path(role), &headers.of(role, &blank), decls)
    };
    let edge = create(HalfRole::Edge)?;
    let cloud = create(HalfRole::Cloud)?;
    let mut outputs = [edge, cloud];
    let chunks = chunks::cut(&jobs)?;
    progress.start(plan.tensors.iter().map(|t| t.from_bytes).sum());
    let digests = stream(plan, &jobs, &chunks, &mut outputs, threads, progress)?;
    let known = headers.known(source, digests)?;
    let [edge, cloud] = outputs;
    progress.say("writing to disk");
    let edge = edge.finish(&headers.of(HalfRole::Edge, &known))?;
    let cloud = cloud.finish(&headers.of(HalfRole::Cloud, &known))?;
    let written = Written {
        pair_id: known.pair_id,
        source_digest: known.source,
        edge_bytes: edge.bytes,
        cloud_bytes: cloud.bytes,
    };
    if progress.stopped() {
        return Err(StreamError::Interrupted);
    }
    target.check()?;
    publish([edge, cloud], &target.folder, target.force)?;
    progress.finish();
    Ok(written)
}

fn jobs<'a>(source: &'a Source, plan: &'a Plan) -> Result<Vec<Job<'a>>, StreamError> {
    let job = |t: &'a TensorPlan| {
        let found = source.tensor(&t.source);
        let (info, data) = found.ok_or(StreamError::Internal("a tensor vanished"))?;
        Ok(Job {
            name: &t.name,
            path: source.file_of(&t.source),
            data,
            row_len: info.row_len(),
            rows: info.rows(),
            from: t.from,
            to: t.to,
            encode: t.encode,
        })
    };
    plan.tensors.iter().map(job).collect()
}

/// Sends every piece to its file; returns the digests.
fn stream(
    plan: &Plan,
    jobs: &[Job<'_>],
    chunks: &[Chunk],
    outputs: &mut [Output; 2],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Digests, StreamError> {
    let mut digests = Digests {
        source: HashMap::new(),
        written: Vec::with_capacity(plan.tensors.len()),
    };
    let (mut read, mut wrote) = (Hasher::new(), Hasher::new());
    chunks::run(jobs, chunks, threads, |chunk, bytes| {
        if progress.stopped() {
            return Err(StreamError::Interrupted);
        }
        let tensor = &plan.tensors[chunk.job];
        let from = &jobs[chunk.job].data[chunk.source.clone()];
        wrote.update(bytes);
        if tensor.encode {
            read.update(from);
        }
        outputs[usize::from(tensor.role.shard())].write(bytes)?;
        progress.advance(from.len() as u64, &tensor.name);
        if chunk.last {
            let written: Digest = wrote.finalize().into();
            let source = if tensor.encode {
                read.finalize().into()
            } else {
                written
            };
            digests.written.push(written);
            digests.source.insert(tensor.source.clone(), source);
            wrote.reset();
            read.reset();
        }
        Ok(())
    })?;
    Ok(digests)
}

/// What becomes known while the tensors stream.
struct Known {
    pair_id: PairId,
    source: Digest,
    /// In the plan's order.
    tensors: Vec<Digest>,
}

impl Known {
    /// Stands in for what is not known yet: of the same encoded size.
    fn blank(plan: &Plan) -> Self {
        Self {
            pair_id: PairId([0; 16]),
            source: Digest([0; 32]),
            tensors: vec![Digest([0; 32]); plan.tensors.len()],
        }
    }
}

/// Makes the metadata of the two files.
struct Headers<'a> {
    plan: &'a Plan,
    base: Metadata,
    n_layer: u32,
    width: u32,
    rope_freqs: Option<Vec<f32>>,
    tensors: i32,
}

impl<'a> Headers<'a> {
    fn new(source: &Source, plan: &'a Plan) -> Result<Self, StreamError> {
        let rope_freqs = match source.tensor("rope_freqs.weight") {
            None => None,
            Some((t, data)) if t.block_type == formats::blocks::BlockType::F32 => {
                let (words, _) = data.as_chunks::<4>();
                Some(words.iter().map(|w| f32::from_le_bytes(*w)).collect())
            }
            Some((t, _)) => {
                return Err(StreamError::RopeFreqs {
                    path: source.path().to_owned(),
                    found: t.block_type,
                });
            }
        };
        let mut base = source.metadata().clone();
        base.set("general.file_type", Value::u32(file_type(plan.main_type())));
        base.set("general.quantization_version", Value::u32(2));
        let h = source.hparams();
        Ok(Self {
            plan,
            base,
            // The source's sizes fit u32.
            n_layer: h.n_layer as u32,
            width: h.n_embd as u32,
            rope_freqs,
            tensors: i32::try_from(plan.tensors.len())
                .map_err(|_| StreamError::Internal("too many tensors"))?,
        })
    }

    fn of(&self, role: HalfRole, known: &Known) -> Metadata {
        let (first_layer, end_layer) = match role {
            HalfRole::Edge => (0, self.plan.split),
            HalfRole::Cloud => (self.plan.split, self.n_layer),
        };
        let digests = self.plan.tensors.iter().zip(&known.tensors);
        let own = digests.filter(|(t, _)| t.role == role).map(|(_, d)| *d);
        let info = HalfInfo {
            role,
            contract: Contract {
                pair_id: known.pair_id,
                split: self.plan.split,
                n_layer: self.n_layer,
                width: self.width,
            },
            first_layer,
            end_layer,
            source_digest: known.source,
            tensor_digests: own.collect(),
            rope_freqs: match role {
                HalfRole::Edge => None,
                HalfRole::Cloud => self.rope_freqs.clone(),
            },
        };
        let mut meta = self.base.clone();
        info.write(&mut meta, self.tensors);
        meta
    }

    fn known(&self, source: &Source, digests: Digests) -> Result<Known, StreamError> {
        let mut whole = SourceDigest::new(source.metadata());
        for t in source.tensors() {
            let digest = digests.source.get(&t.name);
            let digest = digest.ok_or(StreamError::Internal("a tensor was left out"))?;
            whole.tensor(&t.name, t.block_type.id(), &t.dims, *digest);
        }
        let source = whole.finish();
        let mut id = PairIdBuilder::new(source, self.plan.split);
        for t in &self.plan.tensors {
            id.tensor(t.role, &t.name, t.to, t.encode);
        }
        Ok(Known {
            pair_id: id.finish(),
            source,
            tensors: digests.written,
        })
    }
}
