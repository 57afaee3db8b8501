//! The cloud half behind the link: one [`BackSession`] per edge.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::pair::Contract;
use formats::wire::{self, Channels, Codec, Coding, CutStatistics, Expect, Scratch, SpecError};

use super::back::{BackSession, SessionOptions};
use super::batch::Batched;
use super::from_wire;
use crate::exec::{ExecError, Executor};
use crate::link::{Backend, OpenRequest, Opened, Refusal, RowsDone, Session, SessionError};

/// Rows one message may carry: enough for a whole chunk of a prompt, and at any width below
/// gRPC's message limit.
const MAX_ROWS: u32 = 512;

/// Serves the cloud half of one pair.
pub struct CloudBackend {
    exec: Arc<dyn Executor>,
    contract: Contract,
    n_ctx: usize,
    /// Bytes that the caches of all sessions may have together; `None`: no bound.
    kv_budget: Option<usize>,
    kv_used: Arc<AtomicUsize>,
    channels: Option<Arc<Channels>>,
}

impl CloudBackend {
    /// Serves `exec` with at most `n_ctx` positions a session. The caches of all sessions together
    /// may take 80 % of the memory that is available now where `exec` keeps them, the device's or the processor's;
    /// where nobody tells, any.
    pub fn new(exec: Arc<dyn Executor>, contract: Contract, n_ctx: usize) -> Self {
        Self {
            contract,
            n_ctx,
            kv_budget: exec.cache_memory().map(|bytes| bytes / 5 * 4),
            kv_used: Arc::default(),
            channels: None,
            exec: Arc::new(Batched::new(exec)),
        }
    }

    /// Says what the pair knows of the rows that will come.
    #[must_use]
    pub fn with_boundary(mut self, cut: Option<&CutStatistics>) -> Self {
        self.channels = cut.and_then(|c| c.channels(self.contract.width as usize));
        self
    }

    /// Lets the caches of all sessions together take `bytes`. The system gives their memory only
    /// as it is used, so that without a bound a server would take in sessions it cannot keep.
    #[must_use]
    pub fn with_kv_budget(mut self, bytes: usize) -> Self {
        self.kv_budget = Some(bytes);
        self
    }

    /// As [`with_kv_budget`](Self::with_kv_budget), but never more than there is.
    #[must_use]
    pub fn with_kv_limit(mut self, bytes: usize) -> Self {
        self.kv_budget = Some(self.kv_budget.map_or(bytes, |there| there.min(bytes)));
        self
    }

    /// Takes what a session of `n_ctx` positions needs off the budget.
    fn reserve(&self, n_ctx: usize) -> Result<Reserved, Refusal> {
        let bytes = self.exec.cache_bytes(n_ctx);
        let budget = self.kv_budget.unwrap_or(usize::MAX);
        self.kv_used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= budget)
            })
            .map_err(|used| {
                Refusal::Full(format!(
                    "a context of {n_ctx} positions takes {bytes} bytes, and {used} of the {budget} for all sessions are in use; ask for fewer positions with -c, or try again later"
                ))
            })?;
        Ok(Reserved {
            used: Arc::clone(&self.kv_used),
            bytes,
        })
    }
}

/// A session's part of the budget, given back when dropped.
struct Reserved {
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// How the frames of a session name its codec.
fn coding_of(codec: &Codec) -> Result<Coding, Refusal> {
    match codec.resolve(None) {
        Codec::F32 => Ok(Coding::F32),
        Codec::F16 => Ok(Coding::F16),
        Codec::Int8 => Ok(Coding::Int8),
        Codec::TsTabQ(_) => Ok(Coding::TsTabQ),
        Codec::Tcq(_) => Ok(Coding::Tcq),
        other => Err(Refusal::Unfit(format!(
            "codec: `{other}` is not served; use auto, f16 or f32"
        ))),
    }
}

/// A codec's name, as `--codec` spells it.
fn name_of(coding: Coding) -> &'static str {
    match coding {
        Coding::F32 => "f32",
        Coding::F16 => "f16",
        Coding::Int8 => "int8",
        Coding::TsTabQ => "ts-tabq",
        Coding::Tcq => "tcq",
        _ => "another codec",
    }
}

impl Backend for CloudBackend {
    fn contract(&self) -> Contract {
        self.contract
    }

    fn open(&self, request: &OpenRequest) -> Result<Opened, Refusal> {
        let codec: Codec = request.codec.parse().map_err(|e: SpecError| {
            let text = format!("codec: {e}");
            match e {
                // Perhaps one of a newer release.
                SpecError::UnknownCodec { .. } | SpecError::UnknownOption { .. } => {
                    Refusal::Unfit(text)
                }
                _ => Refusal::Invalid(text),
            }
        })?;
        let coding = coding_of(&codec)?;
        if codec.needs_calibration() && self.channels.is_none() {
            return Err(Refusal::Unfit(format!(
                "codec: `{codec}` needs a calibrated pair, and this half is not; use ts-tabq"
            )));
        }
        let n_ctx = match request.n_ctx as usize {
            0 => self.n_ctx,
            n => n.min(self.n_ctx),
        };
        let reserved = self.reserve(n_ctx)?;
        let options = SessionOptions {
            sampling: from_wire(&request.sampling),
            top_logprobs: request.top_logprobs as usize,
            tail_ids: request.tail_ids.clone(),
        };
        let session = BackSession::new(Arc::clone(&self.exec), n_ctx, options)
            .map_err(|e| Refusal::Full(e.to_string()))?;
        tracing::info!(%codec, n_ctx, "session opened");
        Ok(Opened {
            session: Box::new(CloudSession {
                session,
                n_ctx,
                on_host: self.exec.is_on_host(),
                contract: self.contract,
                coding,
                scratch: Scratch::calibrated(self.channels.clone()),
                rows: Vec::new(),
                _reserved: reserved,
            }),
            n_ctx: n_ctx as u32,
            max_rows_per_message: MAX_ROWS,
        })
    }
}

struct CloudSession {
    session: BackSession,
    n_ctx: usize,
    on_host: bool,
    contract: Contract,
    coding: Coding,
    scratch: Scratch,
    rows: Vec<f32>,
    /// Last, so that the cache is freed before its bytes are given back.
    _reserved: Reserved,
}

impl Session for CloudSession {
    fn rows(&mut self, frame: &[u8], want_token: bool) -> Result<RowsDone, SessionError> {
        let expect = Expect {
            pair_tag: self.contract.pair_id.into(),
            width: self.contract.width as usize,
            max_rows: MAX_ROWS as usize,
        };
        let bad = |why: String| SessionError::BadFrame(why);
        let header = wire::decode(frame, &expect, &mut self.scratch, &mut self.rows)
            .map_err(|e| bad(e.to_string()))?;
        if header.coding != self.coding {
            return Err(bad(format!(
                "a frame in {}, but the session was opened for {}",
                name_of(header.coding),
                name_of(self.coding)
            )));
        }
        if header.rows == 0 {
            return Err(bad("a frame without rows".into()));
        }
        if header.first_position as usize != self.session.len() {
            return Err(bad(format!(
                "a frame for position {}, but {} are held",
                header.first_position,
                self.session.len()
            )));
        }
        if self.session.len() + header.rows > self.n_ctx {
            let full = ExecError::ContextFull {
                used: self.session.len(),
                n_ctx: self.n_ctx,
                more: header.rows,
            };
            return Err(SessionError::ContextFull(full.to_string()));
        }
        let token = self
            .session
            .run(&mut self.rows, want_token)
            .map_err(|e| SessionError::Internal(e.to_string()))?;
        Ok(RowsDone {
            rows: header.rows as u32,
            token,
        })
    }

    fn is_single(&self, frame: &[u8]) -> bool {
        self.on_host && wire::rows_at_a_glance(frame) == Some(1)
    }

    fn truncate(&mut self, len: u32) -> Result<(), SessionError> {
        self.session.truncate(len as usize);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use formats::model::KvType;
    use formats::pair::PairId;
    use formats::wire::Origin;

    use super::*;
    use crate::cache::{KvCache, KvShape};
    use crate::link::Sampling;
    use crate::model::{Architecture, HParams, Rope, RopeStyle};

    const CONTRACT: Contract = Contract {
        pair_id: PairId([3; 16]),
        split: 1,
        n_layer: 3,
        width: 8,
    };

    /// Two layers that change nothing, and a head for which id 0 is always the likeliest.
    struct Still(HParams);

    impl Executor for Still {
        fn hparams(&self) -> &HParams {
            &self.0
        }

        fn layers(&self) -> Range<usize> {
            1..3
        }

        fn new_cache(&self, n_ctx: usize) -> Result<KvCache, ExecError> {
            let shape = KvShape::of(&self.0, KvType::F16);
            KvCache::new(2, n_ctx, shape).ok_or(ExecError::BadRows { len: 0, width: 0 })
        }

        fn cache_memory(&self) -> Option<usize> {
            Some(64 * 300)
        }

        fn embed(&self, _: &[u32], _: &mut Vec<f32>) -> Result<(), ExecError> {
            Ok(())
        }

        fn forward(&self, _: &mut KvCache, _: &mut [f32]) -> Result<(), ExecError> {
            Ok(())
        }

        fn logits(&self, _: &[f32], logits: &mut Vec<f32>) -> Result<(), ExecError> {
            logits.clear();
            logits.extend([1.0, 0.0]);
            Ok(())
        }
    }

    fn backend() -> CloudBackend {
        let shape = HParams {
            architecture: Architecture::Llama,
            n_layer: 3,
            n_embd: 8,
            n_head: 1,
            n_head_kv: 1,
            head_dim: 8,
            n_ff: 8,
            n_vocab: 2,
            n_ctx_train: 100,
            rms_eps: 1e-5,
            rope: Rope {
                dims: 8,
                base: 10_000.0,
                linear_scale: 1.0,
                factors: None,
                style: RopeStyle::Interleaved,
            },
            tied: false,
        };
        CloudBackend::new(Arc::new(Still(shape)), CONTRACT, 100)
    }

    fn request(codec: &str) -> OpenRequest {
        OpenRequest {
            contract: CONTRACT,
            codec: codec.into(),
            n_ctx: 0,
            sampling: Sampling::default(),
            top_logprobs: 0,
            tail_ids: Vec::new(),
        }
    }

    fn frame(codec: &str) -> Vec<u8> {
        let codec: Codec = codec.parse().unwrap();
        let origin = Origin {
            pair_tag: CONTRACT.pair_id.into(),
            first_position: 0,
            width: 8,
        };
        let rows: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let mut frame = Vec::new();
        wire::encode(
            &codec.resolve(None),
            &origin,
            &rows,
            &mut Scratch::default(),
            &mut frame,
        )
        .unwrap();
        frame
    }

    #[test]
    fn frames_are_in_the_codec_of_the_session() {
        let codecs = ["f32", "f16", "int8", "auto", "ts-tabq:tau=20"];
        let coding = |spec: &str| coding_of(&spec.parse().unwrap()).unwrap();
        for open in codecs {
            for sent in codecs {
                let mut session = backend().open(&request(open)).unwrap().session;
                let got = session.rows(&frame(sent), true);
                if coding(open) == coding(sent) {
                    assert_eq!(got.unwrap().rows, 1, "{sent} in {open}");
                    continue;
                }
                let Err(SessionError::BadFrame(text)) = got else {
                    panic!("{sent} in {open}: {got:?}")
                };
                for coding in [coding(open), coding(sent)] {
                    assert!(text.contains(name_of(coding)), "{text}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_codec_does_not_fit_and_a_broken_one_is_invalid() {
        let refusal = |codec: &str| backend().open(&request(codec)).err().unwrap();
        let unknown = refusal("f17");
        assert!(
            matches!(&unknown, Refusal::Unfit(text) if text.contains("f17")),
            "{unknown:?}"
        );
        assert!(matches!(refusal("ts-tabq:new=1"), Refusal::Unfit(_)));
        // Known, but this pair has no statistics: the edge may ask again for another.
        assert!(matches!(refusal("tcq"), Refusal::Unfit(text) if text.contains("calibrated")));
        assert!(matches!(refusal("ts-tabq:bits=x"), Refusal::Invalid(_)));
    }

    #[test]
    fn sessions_share_a_budget_and_give_it_back() {
        // 2 layers, keys and values, 8 halves each: 64 bytes a position, in pages of 16.
        let backend = backend().with_kv_budget(64 * 300);
        let first = backend.open(&request("f16")).unwrap();
        let _second = backend.open(&request("f16")).unwrap();
        let refusal = backend.open(&request("f16")).err().unwrap();
        let Refusal::Full(text) = refusal else {
            panic!("{refusal:?}")
        };
        for number in ["100 positions", "7168 bytes", "14336 of the 19200"] {
            assert!(text.contains(number), "{text} lacks {number}");
        }
        // A shorter one still fits, and then one as long as the one that ends.
        let small = OpenRequest {
            n_ctx: 50,
            ..request("f16")
        };
        let _third = backend.open(&small).unwrap();
        assert!(backend.open(&small).is_err());
        drop(first);
        backend.open(&request("f16")).unwrap();
    }

    /// Unless told otherwise: four fifths of the memory where the executor keeps its caches.
    #[test]
    fn the_budget_is_of_the_executors_memory() {
        let backend = backend();
        assert_eq!(backend.kv_budget, Some(64 * 240));
        let _first = backend.open(&request("f16")).unwrap();
        let _second = backend.open(&request("f16")).unwrap();
        assert!(matches!(
            backend.open(&request("f16")),
            Err(Refusal::Full(_))
        ));
    }
}
