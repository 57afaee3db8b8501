//! Damaged files and frames, all the way through: an error or a result, never a panic, a hang, or
//! memory out of proportion.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use converter::progress::Silent;
use converter::recipe::{self, Bits, Request};
use converter::source::Source;
use converter::stream::{self, Target};
use engine::exec::Executor;
use engine::exec::cpu::{CpuExecutor, Isa};
use engine::link::{Backend, OpenRequest, Sampling};
use engine::role::{CloudBackend, OpenedModel, RunError, open_model};
use engine::text::{ChatTemplate, Message, Tokenizer};
use formats::pair::{Contract, PairId, PairName};
use formats::wire::{self, Codec, CutStatistics, Origin, Scratch};

/// Counts what is allocated, to hold it against a bound.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's contract is ours.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is ours.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Held by each test: what one allocates must not count for the other.
static ALONE: Mutex<()> = Mutex::new(());

/// What one damaged input may take beyond the input itself.
const BOUND: usize = 64 << 20;

/// Repeatable noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize
    }

    /// Damages a few bytes among the first `head`, or cuts the end off.
    fn damage(&mut self, good: &[u8], head: usize) -> Vec<u8> {
        let mut b = good.to_vec();
        for _ in 0..=self.next() % 4 {
            let i = self.next() % head.min(b.len());
            b[i] = match self.next() % 5 {
                0 => 0xff,
                1 => 0,
                2 => b[i] ^ (1 << (self.next() % 8)),
                3 => b[i].wrapping_add(1),
                _ => self.next() as u8,
            };
        }
        if self.next().is_multiple_of(8) {
            b.truncate(self.next() % b.len());
        }
        b
    }
}

/// Everything that splitrun does with a file, down to one token.
fn run_model(path: &Path) -> Result<(), RunError> {
    let model = open_model(Some(path))?;
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let template = ChatTemplate::from_metadata(model.metadata())?;
    let mut ids = tokenizer.encode_prompt("Hello <s> world");
    // A damaged template may refuse; that is its right.
    let _ = template.render(&tokenizer, &[Message::new("user", "hi")], true);
    let OpenedModel::Whole { part, .. } = model else {
        return Ok(());
    };
    let exec = CpuExecutor::new(*part, 1, Isa::detect()).map_err(RunError::io("threads"))?;
    ids.truncate(2);
    let (mut rows, mut logits) = (Vec::new(), Vec::new());
    exec.embed(&ids, &mut rows)?;
    exec.forward(&mut exec.new_cache(4)?, &mut rows)?;
    exec.logits(&rows, &mut logits)?;
    Ok(())
}

/// Everything that splitconv does with it.
fn convert_model(path: &Path, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let source = Source::open(path)?;
    let request = Request {
        split: 1,
        edge_bits: Bits::new(4)?,
        cloud_bits: Bits::new(8)?,
        edge_type: None,
        cloud_type: None,
        tensor_types: Vec::new(),
        effort: formats::blocks::Effort::Normal,
        spending: recipe::Spending::Auto,
        edge_budget: None,
    };
    let plan = recipe::plan(&source, &request, None, 1)?;
    let name = PairName {
        stem: "damaged".into(),
        split: 1,
        edge_bits: 4,
        cloud_bits: 8,
    };
    let target = Target {
        folder: out.to_owned(),
        name,
        force: true,
        fresh: false,
    };
    stream::write_pair(&source, &plan, &target, 1, &Silent)?;
    Ok(())
}

#[test]
fn two_thousand_damaged_models() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fixtures::LlamaShape {
        n_layer: 2,
        ..fixtures::LlamaShape::tiny()
    }
    .write(&path)
    .unwrap();
    let good = std::fs::read(&path).unwrap();
    let header = formats::gguf::Gguf::open(&path).unwrap().data_start();
    run_model(&path).unwrap();
    convert_model(&path, dir.path()).unwrap();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let (mut ran, mut converted) = (0, 0);
    for i in 0..2000 {
        let bad = noise.damage(&good, header);
        std::fs::write(&path, &bad).unwrap();
        let before = NOW.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            (
                run_model(&path).is_ok(),
                convert_model(&path, dir.path()).is_ok(),
            )
        }));
        let Ok((r, c)) = outcome else {
            let keep = std::env::temp_dir().join(format!("panics-{i}.gguf"));
            std::fs::write(&keep, &bad).unwrap();
            panic!("damage {i} panics; the file is kept as {}", keep.display());
        };
        let grown = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        assert!(grown < BOUND + bad.len(), "damage {i} took {grown} bytes");
        ran += usize::from(r);
        converted += usize::from(c);
    }
    // Some damage is harmless (a score, a name); if none were, the test would prove little.
    assert!(
        (1..2000).contains(&ran) && (1..2000).contains(&converted),
        "{ran} {converted}"
    );
}

#[test]
fn damaged_frames_of_every_coding_reach_a_session() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fixtures::LlamaShape::tiny().write(&path).unwrap();
    let OpenedModel::Whole { part, .. } = open_model(Some(&path)).unwrap() else {
        panic!()
    };
    let exec = Arc::new(CpuExecutor::new(*part, 1, Isa::detect()).unwrap());
    let width = exec.hparams().n_embd;
    let contract = Contract {
        pair_id: PairId([9; 16]),
        split: 1,
        n_layer: 6,
        width: width as u32,
    };
    let cut = CutStatistics {
        mean: vec![0.0; width],
        sigma: vec![2.0; width],
        kl: Vec::new(),
    };
    let backend = CloudBackend::new(exec, contract, 256).with_boundary(Some(&cut));
    let open = |codec: &Codec| {
        let request = OpenRequest {
            contract,
            codec: codec.to_string(),
            n_ctx: 256,
            sampling: Sampling::default(),
            top_logprobs: 0,
            tail_ids: Vec::new(),
        };
        backend
            .open(&request)
            .unwrap_or_else(|e| panic!("{e}"))
            .session
    };
    let mut noise = Noise(77);
    let values: Vec<f32> = (0..3 * width)
        .map(|i| (i as f32 * 0.7).sin() * 3.0)
        .collect();
    let mut accepted = 0;
    for spec in ["f32", "f16", "int8", "auto", "tcq:step=0.3"] {
        let codec: Codec = spec.parse::<Codec>().unwrap().resolve(None);
        let origin = Origin {
            pair_tag: contract.pair_id.into(),
            first_position: 0,
            width,
        };
        let mut good = Vec::new();
        let mut scratch = Scratch::calibrated(cut.channels(width));
        wire::encode(&codec, &origin, &values, &mut scratch, &mut good).unwrap();
        assert_eq!(open(&codec).rows(&good, true).unwrap().rows, 3);
        let mut session = open(&codec);
        for i in 0..5000 {
            let bad = noise.damage(&good, good.len());
            let before = NOW.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let got = catch_unwind(AssertUnwindSafe(|| session.rows(&bad, true)));
            let Ok(got) = got else {
                panic!("{spec}: frame {i} panics: {bad:02x?}")
            };
            assert!(
                PEAK.load(Ordering::Relaxed).saturating_sub(before) < BOUND,
                "{spec}: frame {i}"
            );
            if got.is_ok() {
                // The checksum lets nothing damaged through: it must be the good frame itself. That
                // of `tcq` has fifteen bits, and these five thousand frames do not find them.
                assert_eq!(bad, good, "{spec}: frame {i} was accepted");
                accepted += 1;
                session = open(&codec);
            }
        }
    }
    assert!(accepted < 200);

    // A sound frame of another pair is refused by name.
    let other = PairId([5; 16]);
    let origin = Origin {
        pair_tag: other.into(),
        first_position: 0,
        width,
    };
    let mut frame = Vec::new();
    wire::encode(
        &Codec::F16,
        &origin,
        &values,
        &mut Scratch::default(),
        &mut frame,
    )
    .unwrap();
    let error = open(&Codec::F16)
        .rows(&frame, true)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("05050505") && error.contains("09090909"),
        "{error}"
    );
}
