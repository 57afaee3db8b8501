//! Weights in the order in which kernels read them.
//!
//! A copy in tiles (`integer::order`) costs a moment at the start and as much memory as the mapped file
//! would take, whose pages are given back; decoding then reads memory from one end to the other, as fast as
//! a processor can. Results are the same to the last bit.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use formats::units::Size;
use memmap2::MmapMut;

use super::integer;
use super::isa::Isa;
use crate::model::{ModelPart, Tensor, Tiles};

/// Bytes of weights that a thread lays out at a time.
const PIECE: usize = 1 << 20;
/// Bytes of a line of the cache.
const LINE: usize = 64;
/// How far from the beginning of a line tiles begin: so every read of a whole line's length touches two, and asks
/// for the second before it is needed. With Q6_K one core read 30 GB/s in this way and 24 where half of the reads
/// were whole lines (Zen 4, AVX-512, nothing beside it).
const SKEW: usize = 16;

/// Why weights stay as they are in the file.
#[derive(Debug, thiserror::Error)]
pub enum RepackError {
    /// They could push out what else is in memory.
    #[error(
        "a copy of the weights in the order of the kernels takes {needed}, beside it {reserve} are kept for keys and values, \
         and {available} are free: they are read where the file is mapped, which is slower; --no-repack asks for that, \
         fewer layers or bits make room"
    )]
    Memory {
        /// Bytes of the tiles.
        needed: Size,
        /// Bytes that something else will want.
        reserve: Size,
        /// Bytes that can be had without swapping.
        available: Size,
    },
    /// The system gives no memory.
    #[error(
        "no memory for a copy of the weights in the order of the kernels: they are read where the file is mapped, \
         which is slower; --no-repack asks for that"
    )]
    Map(#[source] std::io::Error),
}

/// Some rows of a matrix, and their place in tiles.
struct Piece<'a> {
    from: &'a Tensor,
    rows: Range<usize>,
    to: &'a mut [u8],
}

impl Piece<'_> {
    /// Lays the rows out in tiles of `lanes`.
    fn lay(&mut self, lanes: usize) {
        let (w, bytes) = (self.from, self.from.row_bytes());
        let rows = &w.data()[self.rows.start * bytes..self.rows.end * bytes];
        let tiles = self.to.chunks_exact_mut(lanes * bytes);
        for (rows, tile) in rows.chunks(lanes * bytes).zip(tiles) {
            integer::lay_tile(w.block_type, rows, bytes, lanes, tile);
        }
        w.release(self.rows.clone());
    }
}

/// Lays the matrices of `part` that have products in whole numbers out for the kernels of `isa`, with
/// `threads` threads, if that leaves `reserve` of the bytes `available` (nobody may know how many).
/// Returns the bytes of the copy: none where there is no such matrix, or no vectors.
///
/// # Errors
/// Without the memory for it; `part` is as it was then.
pub(super) fn repack(
    part: &mut ModelPart,
    isa: Isa,
    threads: usize,
    reserve: usize,
    available: Option<usize>,
) -> Result<usize, RepackError> {
    let Some(lanes) = isa.lanes() else {
        return Ok(0);
    };
    let fits = |w: &Tensor| integer::covers(w.block_type);
    let bytes = |w: &Tensor| w.rows.next_multiple_of(lanes) * w.row_bytes();
    let sizes = part.matrices().filter(|w| fits(w));
    let needed: usize = sizes.map(|w| bytes(w).next_multiple_of(LINE)).sum();
    if needed == 0 {
        return Ok(0);
    }
    // Pages of a file can be dropped where these cannot.
    if let Some(free) = available.filter(|free| *free < needed.saturating_add(reserve)) {
        let [needed, reserve, available] = [needed, reserve, free].map(|n| Size(n as u64));
        return Err(RepackError::Memory {
            needed,
            reserve,
            available,
        });
    }
    let mut memory = MmapMut::map_anon(SKEW + needed).map_err(RepackError::Map)?;
    // Fewer faults and fewer misses; without them it is as right.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);

    let mut places = Vec::new();
    let mut pieces = Vec::new();
    let (mut rest, mut at) = (&mut memory[SKEW..], SKEW);
    for w in part.matrices().filter(|w| fits(w)) {
        let (own, others) = rest.split_at_mut(bytes(w).next_multiple_of(LINE));
        places.push(at..at + bytes(w));
        (rest, at) = (others, at + own.len());
        let rows = (PIECE / w.row_bytes().max(1))
            .max(1)
            .next_multiple_of(lanes);
        let own = own[..bytes(w)].chunks_mut(rows * w.row_bytes());
        pieces.extend(own.enumerate().map(|(i, to)| Piece {
            from: w,
            rows: i * rows..((i + 1) * rows).min(w.rows),
            to,
        }));
    }
    let pieces = Mutex::new(pieces.into_iter());
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || std::iter::from_fn(next).for_each(|mut piece| piece.lay(lanes));
    std::thread::scope(|s| {
        // The caller is one of them; it does all of it where the system gives no more.
        for i in 1..threads {
            let thread = std::thread::Builder::new().name(format!("repack-{i}"));
            if thread.spawn_scoped(s, work).is_err() {
                break;
            }
        }
        work();
    });
    drop(pieces);
    let memory = Arc::new(memory.make_read_only().map_err(RepackError::Map)?);
    for (w, place) in part.matrices_mut().filter(|w| fits(w)).zip(places) {
        w.lay(Tiles::new(lanes, &memory, place));
    }
    Ok(needed)
}
