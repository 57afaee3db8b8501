//! What a message and its answer cost beyond the wire: a server and an edge of this program in
//! one process, over loopback, with an executor that computes nothing between them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::pair::{Contract, PairId};
use formats::wire::Codec;

use super::synthetic::{Noise, hollow};
use crate::cache::{KvCache, KvShape};
use crate::exec::{ExecError, Executor};
use crate::link::{EdgeLink, EdgeOptions, Server, ServerOptions};
use crate::model::HParams;
use crate::role::{Back as _, CloudBackend, RemoteBack, RunError, SessionOptions};

/// Messages before the time counts, and those of which it does.
const FIRST: u32 = 20;
const TIMES: u32 = 101;
/// The edge computes as long between two of them, so that threads go to sleep as they do in a run.
const PAUSE: Duration = Duration::from_millis(2);

/// Layers that change nothing, and a head of one token.
struct Still(HParams);

impl Executor for Still {
    fn hparams(&self) -> &HParams {
        &self.0
    }

    fn layers(&self) -> Range<usize> {
        1..self.0.n_layer
    }

    fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
        let bytes = self.cache_bytes(n_ctx);
        let shape = KvShape::of(&self.0, self.kv_type());
        KvCache::new(1, n_ctx, shape).ok_or(ExecError::CacheTooLarge { n_ctx, bytes })
    }

    fn embed(&self, _: &[u32], _: &mut Vec<f32>) -> Result<(), ExecError> {
        Ok(())
    }

    fn forward(&self, cache: &mut KvCache, rows: &mut [f32]) -> Result<(), ExecError> {
        cache.advance(rows.len() / self.0.n_embd.max(1));
        Ok(())
    }

    fn logits(&self, _: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
        logits.clear();
        logits.push(1.0);
        Ok(())
    }
}

/// Median nanoseconds from a row of `width` values that is ready to the token that answers it,
/// less encoding and what the server says that it computed.
///
/// # Errors
/// When there is no loopback to listen on.
pub(super) fn message_ns(width: usize) -> Result<f64, RunError> {
    let shape = HParams {
        n_embd: width,
        n_vocab: 1,
        ..hollow(2)
    };
    let contract = Contract {
        pair_id: PairId([0; 16]),
        split: 1,
        n_layer: 2,
        width: width as u32,
    };
    let n_ctx = (FIRST + TIMES) as usize;
    let address = "127.0.0.1:0"
        .parse()
        .map_err(|e| RunError::Request(format!("an address of this machine: {e}")))?;
    let server = Server::bind(&address, ServerOptions::default())?;
    let backend = Arc::new(CloudBackend::new(Arc::new(Still(shape)), contract, n_ctx));
    let server = server.spawn(backend)?;
    let address = (server.local_addr().to_string().parse())
        .map_err(|e| RunError::Request(format!("an address of this machine: {e}")))?;
    let link = EdgeLink::connect(EdgeOptions::new(address))?;
    let options = SessionOptions::default();
    let mut back = RemoteBack::open(link, contract, &Codec::Int8, None, n_ctx, options)?;
    let row = Noise(13).values(width);
    let mut times = Vec::new();
    for position in 0..FIRST + TIMES {
        let busy = Instant::now();
        while busy.elapsed() < PAUSE {
            std::hint::spin_loop();
        }
        let sent = Instant::now();
        let encoding = back.rows(position, &row, true)?;
        let token = back.token()?;
        let rest = sent.elapsed().saturating_sub(encoding);
        if position >= FIRST {
            times.push(rest.saturating_sub(token.cloud).as_nanos() as f64);
        }
    }
    back.close()?;
    server.stop()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_takes_some_time() {
        let ns = message_ns(64).unwrap();
        assert!((1e3..1e9).contains(&ns), "{ns}");
    }
}
