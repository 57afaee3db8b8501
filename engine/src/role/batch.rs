//! Sessions that decode at the same time share passes, so that weights are read once for all of them.
//!
//! Nobody waits to be joined. Who finds the executor free runs at once, alone; who comes meanwhile lines up, and
//! the first in line takes all that stand there through [`Executor::forward_batch`]. A sequence does not
//! feel its neighbours, so no bit depends on who ran with whom.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use formats::model::KvType;

use crate::cache::KvCache;
use crate::exec::{ExecError, Executor, Sequence};
use crate::model::HParams;
use crate::text::argmax;

/// Rows up to which a pass waits for the one before and goes with others: a decoded token, or a few that
/// were guessed. A prompt keeps a device busy by itself.
const FEW: usize = 8;

/// An executor whose small passes go together when they come at the same time.
pub(super) struct Batched {
    exec: Arc<dyn Executor>,
    line: Mutex<Line>,
    /// Somebody has left, or been served.
    moved: Condvar,
}

#[derive(Default)]
struct Line {
    /// A small pass is running.
    busy: bool,
    waiting: Vec<Pass>,
    done: Vec<(u64, Option<Done>)>,
    tickets: u64,
}

/// What one session wants.
struct Pass {
    ticket: u64,
    cache: KvCache,
    rows: Vec<f32>,
    /// Rows whose logits are wanted, the last ones.
    logits: usize,
}

/// What became of it.
struct Done {
    cache: KvCache,
    rows: Vec<f32>,
    result: Result<Vec<f32>, ExecError>,
}

/// Lets the next one on, whatever happens to whoever holds it; passes that it did not finish are given up.
struct Turn<'a> {
    batched: &'a Batched,
    owed: Vec<u64>,
    /// Whoever holds it, if it stood in line itself.
    own: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut line = self.batched.line();
        line.busy = false;
        if std::thread::panicking() {
            // Nobody will come for it.
            line.done.retain(|(t, _)| Some(*t) != self.own);
        }
        line.done.extend(self.owed.drain(..).map(|t| (t, None)));
        self.batched.moved.notify_all();
    }
}

impl Batched {
    pub(super) fn new(exec: Arc<dyn Executor>) -> Self {
        Self {
            exec,
            line: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn, if nobody has it.
    fn alone(&self) -> Option<Turn<'_>> {
        let mut line = self.line();
        if line.busy || !line.waiting.is_empty() {
            return None;
        }
        line.busy = true;
        Some(Turn {
            batched: self,
            owed: Vec::new(),
            own: None,
        })
    }

    fn is_small(&self, rows: &[f32]) -> bool {
        rows.len() <= FEW * self.width()
    }

    /// Lines up with a small pass and returns when it is done, here or in another session's turn.
    fn line_up(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        logits: usize,
    ) -> Result<Vec<f32>, ExecError> {
        let mut line = self.line();
        let ticket = line.tickets;
        line.tickets += 1;
        line.waiting.push(Pass {
            ticket,
            cache: std::mem::take(cache),
            rows: rows.to_vec(),
            logits,
        });
        loop {
            if let Some(at) = line.done.iter().position(|(t, _)| *t == ticket) {
                let Some(done) = line.done.swap_remove(at).1 else {
                    return Err(ExecError::Abandoned);
                };
                *cache = done.cache;
                rows.copy_from_slice(&done.rows);
                return done.result;
            }
            if !line.busy && line.waiting.iter().any(|p| p.ticket == ticket) {
                line.busy = true;
                let passes = std::mem::take(&mut line.waiting);
                drop(line);
                self.serve(passes, ticket);
                line = self.line();
                continue;
            }
            line = self
                .moved
                .wait(line)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs `passes` together, in the turn of whoever brought `own`.
    fn serve(&self, mut passes: Vec<Pass>, own: u64) {
        let mut turn = Turn {
            batched: self,
            owed: passes
                .iter()
                .map(|p| p.ticket)
                .filter(|t| *t != own)
                .collect(),
            own: Some(own),
        };
        let before: Vec<usize> = passes.iter().map(|p| p.cache.len()).collect();
        let mut batch: Vec<Sequence<'_>> = passes
            .iter_mut()
            .map(|p| Sequence {
                cache: &mut p.cache,
                rows: &mut p.rows,
            })
            .collect();
        let together = self.exec.forward_batch(&mut batch);
        let mut served: Vec<(Pass, Result<(), ExecError>)> = Vec::with_capacity(passes.len());
        for (mut pass, before) in passes.into_iter().zip(before) {
            // One that failed has changed nothing; those behind it have not run.
            let mut result = Ok(());
            if together.is_err() && pass.cache.len() == before {
                result = self.exec.forward(&mut pass.cache, &mut pass.rows);
            }
            if result.is_err() {
                pass.logits = 0;
            }
            served.push((pass, result));
        }
        // The head of up to as many rows as a device multiplies one by one.
        while !served.is_empty() {
            let mut rows = Vec::new();
            let mut n = 0;
            while let Some((pass, _)) = served.get(n)
                && (n == 0 || rows.len() / self.width() + pass.logits <= FEW)
            {
                let from = pass.rows.len() - pass.logits * self.width();
                rows.extend_from_slice(&pass.rows[from..]);
                n += 1;
            }
            let mut logits = Vec::new();
            let head = if rows.is_empty() {
                Ok(())
            } else {
                self.exec.logits(&rows, &mut logits)
            };
            let vocab = logits.len() / (rows.len() / self.width()).max(1);
            let mut rest = logits.as_slice();
            for (pass, result) in served.drain(..n) {
                let own = rest.split_off(..(pass.logits * vocab).min(rest.len()));
                let result = match pass.logits {
                    0 => result,
                    _ => head.clone(),
                };
                let done = Done {
                    cache: pass.cache,
                    rows: pass.rows,
                    result: result.map(|()| own.unwrap_or_default().to_vec()),
                };
                self.line().done.push((pass.ticket, Some(done)));
                turn.owed.retain(|t| *t != pass.ticket);
            }
            self.moved.notify_all();
        }
    }

    fn width(&self) -> usize {
        self.exec.hparams().n_embd
    }
}

impl Executor for Batched {
    fn hparams(&self) -> &HParams {
        self.exec.hparams()
    }

    fn layers(&self) -> Range<usize> {
        self.exec.layers()
    }

    fn is_on_host(&self) -> bool {
        self.exec.is_on_host()
    }

    fn kv_type(&self) -> KvType {
        self.exec.kv_type()
    }

    fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
        self.exec.new_cache(n_ctx)
    }

    fn cache_memory(&self) -> Option<usize> {
        self.exec.cache_memory()
    }

    fn embed(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<(), ExecError> {
        self.exec.embed(ids, rows)
    }

    fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError> {
        if !self.is_small(rows) {
            return self.exec.forward(cache, rows);
        }
        match self.alone() {
            Some(_turn) => self.exec.forward(cache, rows),
            None => self.line_up(cache, rows, 0).map(drop),
        }
    }

    fn forward_batch(&self, sequences: &mut [Sequence<'_>]) -> Result<(), ExecError> {
        self.exec.forward_batch(sequences)
    }

    fn logits(&self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
        self.exec.logits(rows, logits)
    }

    fn forward_logits(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        last: usize,
        logits: &mut Vec<f32>,
    ) -> Result<(), ExecError> {
        if !self.is_small(rows) {
            return self.exec.forward_logits(cache, rows, last, logits);
        }
        if let Some(_turn) = self.alone() {
            return self.exec.forward_logits(cache, rows, last, logits);
        }
        let last = last.min(rows.len() / self.width());
        *logits = self.line_up(cache, rows, last)?;
        Ok(())
    }

    fn forward_argmax(
        &self,
        cache: &mut KvCache,
        rows: &mut [f32],
        logits: &mut Vec<f32>,
    ) -> Result<u32, ExecError> {
        if !self.is_small(rows) {
            return self.exec.forward_argmax(cache, rows, logits);
        }
        if let Some(_turn) = self.alone() {
            return self.exec.forward_argmax(cache, rows, logits);
        }
        *logits = self.line_up(cache, rows, 1)?;
        Ok(argmax(logits))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::scope;

    use super::*;
    use crate::cache::KvShape;
    use crate::model::{Architecture, Rope, RopeStyle};

    /// Doubles rows; a pass whose first value is 7 waits for a word first, and one with 13 fails.
    struct Doubling {
        shape: HParams,
        word: Mutex<Receiver<()>>,
        began: Mutex<Sender<()>>,
        largest: AtomicUsize,
    }

    impl Executor for Doubling {
        fn hparams(&self) -> &HParams {
            &self.shape
        }

        fn layers(&self) -> Range<usize> {
            0..1
        }

        fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
            let shape = KvShape::of(&self.shape, KvType::F16);
            KvCache::new(1, n_ctx, shape).ok_or(ExecError::Abandoned)
        }

        fn embed(&self, _: &[u32], _: &mut Vec<f32>) -> Result<(), ExecError> {
            Ok(())
        }

        fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError> {
            if rows[0] == 7.0 {
                self.began.lock().unwrap().send(()).unwrap();
                self.word.lock().unwrap().recv().unwrap();
            }
            assert!(rows[0] != 99.0, "a broken executor");
            if rows[0] == 13.0 {
                return Err(ExecError::BadRows { len: 13, width: 2 });
            }
            cache.advance(rows.len() / 2);
            for v in rows.iter_mut() {
                *v *= 2.0;
            }
            Ok(())
        }

        fn forward_batch(&self, sequences: &mut [Sequence<'_>]) -> Result<(), ExecError> {
            self.largest.fetch_max(sequences.len(), Ordering::Relaxed);
            sequences
                .iter_mut()
                .try_for_each(|s| self.forward(s.cache, s.rows))
        }

        fn logits(&self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
            logits.clear();
            logits.extend_from_slice(rows);
            Ok(())
        }
    }

    /// Runs a pass of each of `firsts` while another is at work, and returns what came of them in order, and how many
    /// went together.
    fn meanwhile(firsts: &[f32]) -> (Vec<Result<Vec<f32>, String>>, usize) {
        let (say, word) = channel();
        let (began, has_begun) = channel();
        let exec = Arc::new(Doubling {
            shape: HParams {
                architecture: Architecture::Llama,
                n_layer: 1,
                n_embd: 2,
                n_head: 1,
                n_head_kv: 1,
                head_dim: 2,
                n_ff: 2,
                n_vocab: 2,
                n_ctx_train: 100,
                rms_eps: 1e-5,
                rope: Rope {
                    dims: 2,
                    base: 10_000.0,
                    linear_scale: 1.0,
                    factors: None,
                    style: RopeStyle::Interleaved,
                },
                tied: false,
            },
            word: Mutex::new(word),
            began: Mutex::new(began),
            largest: AtomicUsize::new(0),
        });
        let batched = Batched::new(Arc::clone(&exec) as Arc<dyn Executor>);
        let run = |first: f32| {
            let mut cache = batched.new_cache(10).unwrap();
            let (mut rows, mut logits) = ([first, 3.0], Vec::new());
            let done = batched.forward_logits(&mut cache, &mut rows, 1, &mut logits);
            done.map_err(|e| e.to_string()).map(|()| {
                assert_eq!(cache.len(), 1);
                assert_eq!(rows, logits[..]);
                logits
            })
        };
        let results = scope(|s| {
            let run = &run;
            let busy = s.spawn(move || run(7.0));
            has_begun.recv().unwrap();
            let others: Vec<_> = firsts.iter().map(|f| s.spawn(move || run(*f))).collect();
            while batched.line().waiting.len() < firsts.len() {
                std::thread::yield_now();
            }
            say.send(()).unwrap();
            assert_eq!(busy.join().unwrap(), Ok(vec![14.0, 6.0]));
            let joined = others.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined
                .map(|r| r.unwrap_or_else(|_| Err("panicked".into())))
                .collect()
        });
        // Nothing is left behind, and whoever comes next goes at once.
        assert!(batched.line().done.is_empty());
        assert_eq!(run(1.0), Ok(vec![2.0, 6.0]));
        (results, exec.largest.load(Ordering::Relaxed))
    }

    #[test]
    fn who_waits_goes_together() {
        let (results, together) = meanwhile(&[1.0, 2.0, 5.0]);
        let want = [2.0, 4.0, 10.0].map(|first| Ok(vec![first, 6.0]));
        assert_eq!((results, together), (want.to_vec(), 3));
    }

    #[test]
    fn one_that_fails_does_not_hurt_the_others() {
        let (results, _) = meanwhile(&[13.0, 13.0, 5.0, 1.0]);
        let error = ExecError::BadRows { len: 13, width: 2 }.to_string();
        assert_eq!(results[0], Err(error.clone()));
        assert_eq!(results[1], Err(error));
        assert_eq!(results[2..], [Ok(vec![10.0, 6.0]), Ok(vec![2.0, 6.0])]);
    }

    #[test]
    fn a_panic_frees_the_line() {
        let (results, _) = meanwhile(&[99.0, 1.0]);
        assert!(results.iter().all(Result::is_err), "{results:?}");
    }
}
