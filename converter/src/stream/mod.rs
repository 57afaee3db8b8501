//! From the source into the two files, on all cores, in pieces: [`chunks`] says how.
//!
//! Both files are complete and durable under temporary names before either gets its own
//! ([`publish`]). What is finished outlives the run: [`journal`] says which tensors are, and the
//! next run takes them over when source and recipe are the same.

mod chunks;
mod crew;
mod error;
mod fingerprint;
mod headers;
mod journal;
mod layout;
mod output;
mod publish;
mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use formats::gguf::TensorDecl;
use formats::pair::{Digest, HalfRole, PairId, PairName};

use crate::at;
use crate::progress::{Item, Progress, Step};
use crate::recipe::{Plan, TensorPlan};
use crate::source::Source;
use chunks::{Job, Scratch, Work};
use fingerprint::Fingerprint;
use headers::{Headers, Known};
use journal::{Journal, Past, Publish};
use output::{Output, Partial};

pub use error::StreamError;
pub use layout::Layout;
pub use output::partial_name;

/// Bytes that may be written before the system is asked to bring them to the disk. So at the end
/// little is left to wait for, and a machine that stops loses little.
const FLUSH: u64 = 64 << 20;

/// Where a pair goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The folder; created when it is not there.
    pub folder: PathBuf,
    /// The names.
    pub name: PairName,
    /// Whether files of these names may be replaced.
    pub force: bool,
    /// Whether to forget what an interrupted run has finished.
    pub fresh: bool,
}

impl Target {
    /// The file of one half.
    pub fn path(&self, role: HalfRole) -> PathBuf {
        self.folder.join(self.name.file_name(role))
    }

    /// Where a run notes what it has finished.
    pub fn journal(&self) -> PathBuf {
        let name = format!("{}-journal.partial", self.name.prefix());
        self.folder.join(name)
    }

    /// Checks that nothing stands in the way.
    ///
    /// # Errors
    /// [`StreamError::Exists`] unless `force` is set.
    pub fn check(&self) -> Result<(), StreamError> {
        let taken = self.paths().into_iter().find(|p| p.exists());
        match taken {
            Some(path) if !self.force => Err(StreamError::Exists { path }),
            _ => Ok(()),
        }
    }

    fn paths(&self) -> [PathBuf; 2] {
        [HalfRole::Edge, HalfRole::Cloud].map(|r| self.path(r))
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
    /// Tensors that an interrupted run had finished.
    pub resumed_tensors: usize,
    /// What this run took, until all of it was on the disk.
    pub time: Duration,
}

/// Writes the pair that `plan` describes, on `threads` threads; goes on where an interrupted run
/// with the same source, plan and target has stopped.
///
/// # Errors
/// [`StreamError`], [`StreamError::Interrupted`] when `progress` wants it stopped. Inside a
/// [`StreamError::Kept`] when tensors are finished that the next run can use; else nothing stays.
pub fn write_pair(
    source: &Source,
    plan: &Plan,
    target: &Target,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Written, StreamError> {
    std::fs::create_dir_all(&target.folder)
        .map_err(|e| StreamError::write(&target.folder, e.into()))?;
    let headers = Headers::new(source, plan)?;
    let fingerprint = Fingerprint::of(source, plan, &headers)?;
    let mut record = Partial::open(target.journal())?;
    let handle = record.file.try_clone();
    let handle = handle.map_err(|e| StreamError::write(&record.temporary, e.into()))?;
    let (mut journal, past) = Journal::open(&record.temporary, handle)?;
    // What somebody may still want is not removed before it is known to be of no use.
    record.keep = past.is_some();
    let paths = target.paths();
    if let Some(past) = &past
        && let Some(unfinished) = &past.publish
        && publish::complete(&paths, &target.folder, &record.temporary, unfinished)?
    {
        progress.note("an earlier run was stopped while it renamed its files: done now");
        record.keep = false;
        let same = past.fingerprint == fingerprint;
        if let Some(written) = published(unfinished, past).filter(|_| same) {
            return Ok(written);
        }
    }
    target.check()?;
    let mut outputs = open_outputs(plan, target, &headers, past.is_some())?;
    let past = past.filter(|p| useful(p, &fingerprint, target, progress));
    for output in &mut outputs {
        output.partial.keep = past.is_some();
    }
    let mut run = Run {
        source,
        plan,
        threads,
        progress,
        begun: Instant::now(),
        journal: &mut journal,
        done: BTreeMap::new(),
    };
    let result = run
        .resume_or_begin(past, &outputs, &fingerprint)
        .and_then(|resumed| {
            run.stream(&outputs)?;
            run.finish(&headers, target, &outputs, resumed)
        });
    let done = run.done.len();
    let keep = match &result {
        Ok(_) => false,
        Err(e) => done > 0 && e.may_pass(),
    };
    record.keep = keep;
    for output in &mut outputs {
        // A published file no longer has the name that would be removed, but another run's file
        // may have it by now.
        output.partial.keep = keep || result.is_ok();
    }
    result.map_err(|cause| {
        if !keep {
            return cause;
        }
        StreamError::Kept {
            cause: Box::new(cause),
            done,
            of: plan.tensors.len(),
            journal: target.journal(),
        }
    })
}

/// What a run that was killed while renaming has written.
fn published(publish: &Publish, past: &Past) -> Option<Written> {
    let [edge_bytes, cloud_bytes] = publish.bytes;
    Some(Written {
        pair_id: publish.pair_id()?,
        source_digest: publish.source()?,
        edge_bytes,
        cloud_bytes,
        resumed_tensors: past.done.len(),
        time: Duration::ZERO,
    })
}

/// Whether what an earlier run has left can be used; says so when not.
fn useful(past: &Past, now: &Fingerprint, target: &Target, progress: &dyn Progress) -> bool {
    let different = past.fingerprint.differences(now);
    if past.done.is_empty() {
        false
    } else if target.fresh {
        progress.note("starting over, as --fresh asks");
        false
    } else if different.is_empty() {
        true
    } else {
        progress.note(&format!(
            "starting over: since the interrupted run, {} changed",
            different.join(", ")
        ));
        false
    }
}

fn open_outputs(
    plan: &Plan,
    target: &Target,
    headers: &Headers<'_>,
    keep: bool,
) -> Result<[Output; 2], StreamError> {
    let blank = Known::blank(plan);
    let open = |role| {
        let decls: Vec<TensorDecl> = plan.half(role).map(TensorPlan::decl).collect();
        let mut output = Output::open(&target.path(role), &headers.of(role, &blank), decls)?;
        output.partial.keep = keep;
        Ok(output)
    };
    Ok([open(HalfRole::Edge)?, open(HalfRole::Cloud)?])
}

/// Every tensor of the plan, with where it comes from and goes to.
fn jobs<'a>(
    source: &'a Source,
    plan: &'a Plan,
    outputs: &'a [Output; 2],
) -> Result<Vec<Job<'a>>, StreamError> {
    let mut before = [0; 2];
    let mut jobs = Vec::with_capacity(plan.tensors.len());
    for (index, t) in plan.tensors.iter().enumerate() {
        let half = usize::from(t.role.shard());
        let (info, data) = source
            .tensor(&t.source)
            .ok_or(StreamError::Internal("a tensor vanished"))?;
        let start = outputs[half].start(before[half]);
        before[half] += 1;
        jobs.push(Job {
            index,
            name: &t.name,
            data,
            row_len: info.row_len(),
            rows: info.rows(),
            from: t.from,
            to: t.to,
            encode: t.encode,
            file: &outputs[half].partial.file,
            file_path: &outputs[half].partial.temporary,
            start: start.ok_or(StreamError::Internal("a tensor without a place"))?,
            bytes: t.bytes as usize,
            effort: plan.effort,
            weighing: &t.weighing,
        });
    }
    Ok(jobs)
}

/// A conversion under way.
struct Run<'a> {
    source: &'a Source,
    plan: &'a Plan,
    threads: usize,
    progress: &'a dyn Progress,
    begun: Instant,
    journal: &'a mut Journal,
    /// Finished tensors: place in the plan → digests in the source and in the half.
    done: BTreeMap<usize, [Digest; 2]>,
}

impl Run<'_> {
    /// Takes over what is finished and sound, or empties the files; returns how many tensors
    /// were taken over.
    fn resume_or_begin(
        &mut self,
        past: Option<Past>,
        outputs: &[Output; 2],
        fingerprint: &Fingerprint,
    ) -> Result<usize, StreamError> {
        let Some(past) = past else {
            self.journal.begin(fingerprint)?;
            outputs.iter().try_for_each(Output::clear)?;
            return Ok(0);
        };
        self.journal.resume()?;
        if past.publish.is_some() {
            // Those files are gone.
            self.journal.withdraw()?;
        }
        // Until it is known to be damaged all of it counts: an interruption changes nothing.
        let claimed = past.done;
        self.done.clone_from(&claimed);
        let jobs = jobs(self.source, self.plan, outputs)?;
        let claims: Vec<(&Job<'_>, Digest)> = claimed
            .iter()
            .filter_map(|(i, [_, written])| Some((jobs.get(*i)?, *written)))
            .collect();
        self.progress.say("checking what is there");
        let (done, progress) = (&mut self.done, self.progress);
        done.retain(|i, _| *i < jobs.len());
        crew::run(
            claims.len(),
            self.threads,
            Vec::new,
            |buffer, i| {
                let (job, wanted) = claims[i];
                Ok((job.index, is_written(job, wanted, buffer)))
            },
            |(index, sound)| {
                if !sound {
                    done.remove(&index);
                }
                Ok(())
            },
            || progress.stopped(),
        )?;
        self.progress.note(&format!(
            "going on where an interrupted run stopped: {} of {} tensors are finished{}",
            self.done.len(),
            self.plan.tensors.len(),
            match claimed.len() - self.done.len() {
                0 => String::new(),
                n => format!(", {n} were damaged and are made again"),
            }
        ));
        Ok(self.done.len())
    }

    /// Does every tensor that is not finished.
    fn stream(&mut self, outputs: &[Output; 2]) -> Result<(), StreamError> {
        let mut jobs = jobs(self.source, self.plan, outputs)?;
        let items: Vec<Item<'_>> = (jobs.iter())
            .map(|j| Item {
                name: j.name,
                bytes: j.data.len() as u64,
                kind: (j.from, j.to),
                done: self.done.contains_key(&j.index),
            })
            .collect();
        self.progress.start(&items);
        jobs.retain(|j| !self.done.contains_key(&j.index));
        let work = Work::new(&jobs)?;
        let (threads, progress) = (self.threads, self.progress);
        std::thread::scope(|scope| {
            let flusher = self.flusher(outputs)?;
            let (signal, signals) = sync_channel(1);
            let flusher = move || flush(&signals, &flusher);
            // Without it the end takes longer.
            let flusher = std::thread::Builder::new().spawn_scoped(scope, flusher);
            let mut dirty = 0;
            let result = crew::run(
                work.len(),
                threads,
                Scratch::default,
                |scratch, i| work.step(scratch, i),
                |step| {
                    dirty += step.written;
                    if dirty >= FLUSH {
                        dirty = 0;
                        wake(&signal);
                    }
                    self.take(&step)
                },
                || progress.stopped(),
            );
            drop(signal);
            let flushed = flusher.map(std::thread::ScopedJoinHandle::join);
            result?;
            match flushed {
                Ok(Ok(flushed)) => flushed,
                Ok(Err(_)) => Err(StreamError::Internal("the flushing thread died")),
                Err(_) => Ok(()),
            }
        })
        // A source that changed explains a read that failed.
        .map_err(|e| match (e, self.source.changed()) {
            (StreamError::Read { .. }, Some(path)) => StreamError::SourceChanged {
                path: path.to_owned(),
            },
            (e, _) => e,
        })
    }

    /// A piece is in its place.
    fn take(&mut self, step: &chunks::Step) -> Result<(), StreamError> {
        self.progress.advance(&Step {
            tensor: step.tensor,
            bytes: step.read,
            time: step.time,
        });
        let Some(digests) = step.done else {
            return Ok(());
        };
        if let Some(path) = self.source.changed() {
            return Err(StreamError::SourceChanged {
                path: path.to_owned(),
            });
        }
        self.journal.tensor(step.tensor, digests)?;
        self.done.insert(step.tensor, digests);
        Ok(())
    }

    /// Handles of all files, with their names.
    fn flusher(&self, outputs: &[Output; 2]) -> Result<Vec<(File, PathBuf)>, StreamError> {
        let mut files = Vec::new();
        let journal = (self.journal.handle(), self.journal.path());
        let halves = outputs.iter().map(|o| {
            let handle = o.partial.file.try_clone();
            (handle, o.partial.temporary.as_path())
        });
        for (handle, path) in halves.chain([journal]) {
            let handle = handle.map_err(|e| StreamError::write(path, e.into()))?;
            files.push((handle, path.to_owned()));
        }
        Ok(files)
    }

    /// Completes both files and gives them their names.
    fn finish(
        &mut self,
        headers: &Headers<'_>,
        target: &Target,
        outputs: &[Output; 2],
        resumed: usize,
    ) -> Result<Written, StreamError> {
        let digests: Vec<[Digest; 2]> = self.done.values().copied().collect();
        if digests.len() != self.plan.tensors.len() {
            return Err(StreamError::Internal("a tensor was left out"));
        }
        let known = headers.known(self.source, &digests)?;
        self.progress.say("writing to disk");
        let [edge, cloud] = outputs;
        let edge_bytes = edge.finish(&headers.of(HalfRole::Edge, &known))?;
        let cloud_bytes = cloud.finish(&headers.of(HalfRole::Cloud, &known))?;
        if self.progress.stopped() {
            return Err(StreamError::Interrupted);
        }
        target.check()?;
        let bytes = [edge_bytes, cloud_bytes];
        self.journal.publish(&Publish::new(
            target.force,
            known.pair_id,
            known.source,
            bytes,
        ))?;
        if let Err(e) = publish::publish(&target.paths(), &target.folder, target.force) {
            self.journal.withdraw()?;
            return Err(e);
        }
        self.progress.finish();
        Ok(Written {
            pair_id: known.pair_id,
            source_digest: known.source,
            edge_bytes,
            cloud_bytes,
            resumed_tensors: resumed,
            time: self.begun.elapsed(),
        })
    }
}

/// Whether the bytes of a tensor are in the output.
fn is_written(job: &Job<'_>, wanted: Digest, buffer: &mut Vec<u8>) -> bool {
    // What cannot be read is made again, and that says what is wrong.
    at::digest(job.file, job.start, job.bytes, buffer).is_ok_and(|found| found == wanted)
}

/// Tells the flusher that there is something to do, unless it knows.
fn wake(flusher: &SyncSender<()>) {
    // Full or gone: it is at work, or its error waits.
    let _ = flusher.try_send(());
}

/// Brings all files to the disk whenever it is woken. An error is told once by the system, and
/// would then be missing at the end.
fn flush(signals: &Receiver<()>, files: &[(File, PathBuf)]) -> Result<(), StreamError> {
    while signals.recv().is_ok() {
        for (file, path) in files {
            let synced = file.sync_data();
            synced.map_err(|e| StreamError::write(Path::new(path), e.into()))?;
        }
    }
    Ok(())
}
