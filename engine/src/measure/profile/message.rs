//! What a message and its answer cost beyond the wire: a server and an edge of this program in
//! one process, over loopback. Both run a layer of next to nothing, and sleep as long as the other
//! side of a real run computes, so that threads and processor have to be woken as they have there.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use formats::blocks::BlockType;
use formats::pair::{Contract, PairId};
use formats::wire::Codec;

use super::passes::median_ns;
use super::synthetic::{Noise, hollow, part};
use crate::cache::KvCache;
use crate::exec::{ExecError, Executor};
use crate::link::{Address, EdgeLink, EdgeOptions, Server, ServerOptions};
use crate::model::{HParams, ModelPart};
use crate::role::{Back as _, CloudBackend, RemoteBack, RunError, SessionOptions};

/// Makes an executor.
type Make<'a> = &'a dyn Fn(ModelPart) -> Result<Arc<dyn Executor>, RunError>;

/// Messages before the time counts, and those of which it does.
const FIRST: u32 = 10;
const TIMES: u32 = 61;
/// How long the other side computes, or a message is on its way: as long as with a small model, where a message weighs
/// most, and where the server computes on the network's thread.
const PAUSE: Duration = Duration::from_millis(3);

/// An executor that answers late.
struct Late {
    exec: Arc<dyn Executor>,
    /// Nanoseconds that the last answer was late.
    slept: Arc<AtomicU64>,
}

impl Executor for Late {
    fn hparams(&self) -> &HParams {
        self.exec.hparams()
    }

    fn layers(&self) -> Range<usize> {
        self.exec.layers()
    }

    fn is_on_host(&self) -> bool {
        self.exec.is_on_host()
    }

    fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
        self.exec.new_cache(n_ctx)
    }

    fn embed(&self, ids: &[u32], rows: &mut Vec<f32>) -> Result<(), ExecError> {
        self.exec.embed(ids, rows)
    }

    fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError> {
        self.exec.forward(cache, rows)
    }

    fn logits(&self, rows: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
        self.exec.logits(rows, logits)?;
        let start = Instant::now();
        std::thread::sleep(PAUSE);
        let slept = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.slept.store(slept, Ordering::Release);
        Ok(())
    }
}

/// Median nanoseconds of a token beyond what both sides' passes take when they run without pause:
/// waking threads, gRPC, sockets.
///
/// # Errors
/// When there is no loopback to listen on, or the device refuses.
pub(super) fn message_ns(make: Make<'_>) -> Result<f64, RunError> {
    let ns = exchange(make)?;
    if ns > 0.0 {
        return Ok(ns);
    }
    Err(RunError::Request(
        "other work on this machine took longer than a message; measure again when it is quiet"
            .into(),
    ))
}

/// [`message_ns`], which other work on the machine may make less than nothing.
fn exchange(make: Make<'_>) -> Result<f64, RunError> {
    let shape = hollow(1);
    let width = shape.n_embd;
    let layer = || make(part(&shape, BlockType::F32, 1, 32)?);
    let n_ctx = (FIRST + TIMES) as usize;
    let contract = Contract {
        pair_id: PairId([0; 16]),
        split: 1,
        n_layer: 2,
        width: width as u32,
    };
    let (front, back) = (layer()?, layer()?);
    let fresh = Noise(13).values(width);
    // What both compute when nothing is asleep.
    let mut row = fresh.clone();
    let (mut cache, mut logits) = (front.new_cache(n_ctx)?, Vec::new());
    let warm_ns = median_ns(|| {
        for _ in 0..32 {
            cache.truncate(0);
            row.copy_from_slice(&fresh);
            front.forward(&mut cache, &mut row)?;
        }
        Ok(())
    })? / 32.0;
    let head_ns = median_ns(|| Ok(back.logits(&fresh, &mut logits)?))?;

    let address = |text: String| -> Result<Address, RunError> {
        text.parse()
            .map_err(|e| RunError::Request(format!("an address of this machine: {e}")))
    };
    let server = Server::bind(
        &address("127.0.0.1:0".to_owned())?,
        ServerOptions::default(),
    )?;
    let slept = Arc::new(AtomicU64::new(0));
    let late = Late {
        exec: back,
        slept: Arc::clone(&slept),
    };
    let server = server.spawn(Arc::new(CloudBackend::new(Arc::new(late), contract, n_ctx)))?;
    let link = EdgeLink::connect(EdgeOptions::new(address(server.local_addr().to_string())?))?;
    let options = SessionOptions::default();
    let mut back = RemoteBack::open(link, contract, &Codec::Int8, None, n_ctx, options)?;
    let mut times = Vec::new();
    cache.truncate(0);
    for position in 0..FIRST + TIMES {
        let start = Instant::now();
        row.copy_from_slice(&fresh);
        front.forward(&mut cache, &mut row)?;
        let edge = start.elapsed();
        // The frame is on its way.
        std::thread::sleep(PAUSE);
        let start = Instant::now();
        let encoding = back.rows(position, &row, true)?;
        back.token()?;
        let away = start.elapsed().saturating_sub(encoding);
        let away = away.saturating_sub(Duration::from_nanos(slept.load(Ordering::Acquire)));
        if position >= FIRST {
            times.push((edge + away).as_nanos() as f64 - 2.0 * warm_ns - head_ns);
        }
    }
    back.close()?;
    server.stop()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Resident bytes of a process in which both ends of a link have run, and no model.
///
/// # Errors
/// As [`super::profile`]'s.
pub fn runtime_bytes(make: Make<'_>) -> Result<Option<u64>, RunError> {
    exchange(make)?;
    Ok(super::resident_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::cpu::{CpuExecutor, Isa};

    #[test]
    fn a_message_takes_some_time() {
        let make = |p: ModelPart| -> Result<Arc<dyn Executor>, RunError> {
            Ok(Arc::new(CpuExecutor::new(p, 2, Isa::detect()).unwrap()))
        };
        // What else the machine does can hide it.
        let measured = || message_ns(&make).is_ok_and(|ns| (1e3..1e9).contains(&ns));
        assert!((0..5).any(|_| measured()));
    }
}
