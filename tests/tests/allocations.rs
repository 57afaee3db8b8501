//! Decoding on the processor asks for no memory: once buffers have grown to a pass, the next one
//! finds them. Counted for the whole process, kernels' threads included, so this file has one test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::cache::KvCache;
use engine::exec::cpu::{Activations, CpuExecutor, Isa};
use engine::exec::{Executor, Sequence};
use engine::model::ModelPart;
use formats::blocks::BlockType;
use formats::model::KvType;
use integration::model_of;

/// The system's allocator, and how often it was asked.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: all is done by the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
}

/// Attention takes positions in spans of so many; a new one needs room for what it comes to.
const SPAN: usize = 256;

/// Allocations of `n` tokens, each of every sequence in `caches`.
fn decode(
    exec: &CpuExecutor,
    caches: &mut [KvCache],
    buffers: &mut (Vec<f32>, Vec<f32>),
    n: usize,
) -> usize {
    let before = ASKED.load(Ordering::Relaxed);
    let (rows, logits) = buffers;
    for i in 0..n {
        let ids = [7 * i as u32 % 320, 3, 5];
        exec.embed(&ids[..caches.len()], rows).unwrap();
        match caches {
            [one] => exec.forward(one, rows).unwrap(),
            [a, b, c] => {
                let (x, rest) = rows.split_at_mut(256);
                let (y, z) = rest.split_at_mut(256);
                let mut all =
                    [(a, x), (b, y), (c, z)].map(|(cache, rows)| Sequence { cache, rows });
                exec.forward_batch(&mut all).unwrap();
            }
            _ => unreachable!("one or three"),
        }
        exec.logits(rows, logits).unwrap();
    }
    ASKED.load(Ordering::Relaxed) - before
}

#[test]
fn a_decoded_token_asks_for_no_memory() {
    assert_ne!(
        count(|| drop(std::hint::black_box(Box::new(1)))),
        0,
        "nothing is counted"
    );
    let dir = tempfile::tempdir().unwrap();
    // Whole numbers; whole numbers by super-blocks, with minima; floats alone.
    for ty in [
        BlockType::Q8_0,
        BlockType::Q4_K,
        BlockType::Q6_K,
        BlockType::F16,
    ] {
        let set = model_of(dir.path(), ty);
        for isa in Isa::available() {
            for activations in [Activations::Int8, Activations::F32] {
                for kv_type in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
                    let part = ModelPart::load(&set, 0..1).unwrap();
                    let mut exec = CpuExecutor::new(part, 2, isa)
                        .unwrap()
                        .with_activations(activations)
                        .with_kv_type(kv_type)
                        .unwrap();
                    // Some of them read tiles.
                    if kv_type != KvType::Q8_0 {
                        exec.repack(0).unwrap();
                    }
                    for sequences in [1, 3] {
                        let case =
                            format!("{ty} {isa} {activations:?} {kv_type}, {sequences} together");
                        passes(&exec, sequences, isa == Isa::detect(), &case);
                    }
                }
            }
        }
    }
}

/// Allocations of `f`.
fn count(f: impl FnOnce()) -> usize {
    let before = ASKED.load(Ordering::Relaxed);
    f();
    ASKED.load(Ordering::Relaxed) - before
}

fn passes(exec: &CpuExecutor, sequences: usize, far: bool, case: &str) {
    let mut caches: Vec<_> = (0..sequences)
        .map(|_| exec.new_cache(2 * SPAN).unwrap())
        .collect();
    let mut buffers = (Vec::new(), Vec::new());
    // The first passes make the buffers.
    decode(exec, &mut caches, &mut buffers, 2);
    // A thread that the system starts late asks once for itself, so not every count has to be zero;
    // what a token asks for is in all of them.
    let counts: Vec<_> = (0..5)
        .map(|_| decode(exec, &mut caches, &mut buffers, 8))
        .collect();
    assert!(counts.contains(&0), "{case}: {counts:?} for 8 tokens each");
    if !far {
        return;
    }
    // At the second span one buffer grows, once.
    let n = SPAN - caches[0].len() + 20;
    let asked = decode(exec, &mut caches, &mut buffers, n);
    assert!(asked <= 2, "{case}: {asked} on the way past a span");
}
