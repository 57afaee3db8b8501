//! What an edge asks for and gets, and its way through the protocol's messages.

use std::time::Duration;

use formats::pair::{Contract, PairId};

use super::{PROTOCOL, proto};

/// Bytes a codec specification may have.
const MAX_CODEC_BYTES: usize = 256;
/// Log probabilities one token may bring.
const MAX_TOP_LOGPROBS: u32 = 128;
/// Prompt ids one `Open` may bring: 512 KiB at most.
const MAX_TAIL_IDS: usize = 100_000;

/// What an edge asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRequest {
    /// What the edge's half is.
    pub contract: Contract,
    /// How its frames are encoded (`f16`, `ts-tabq:tau=20`, ...); at most 256 bytes.
    pub codec: String,
    /// Positions wanted; 0 for whatever the server gives.
    pub n_ctx: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most likely ids wanted with each token; at most 128.
    pub top_logprobs: u32,
    /// The last prompt ids, oldest first; needed for a repeat penalty only. Of more than 100,000
    /// the last 100,000 are sent.
    pub tail_ids: Vec<u32>,
}

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: always the most likely token.
    pub temperature: f32,
    /// Keep the k most likely tokens. 0: all.
    pub top_k: u32,
    /// Keep the most likely tokens that reach this probability together. 1: all.
    pub top_p: f32,
    /// Keep tokens at least this likely, relative to the best. 0: all.
    pub min_p: f32,
    /// Divisor for tokens seen lately. 1: none.
    pub repeat_penalty: f32,
    /// How many tokens back that reaches.
    pub repeat_last_n: u32,
    /// Seed; with the position it decides the draw.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 0,
            seed: 0,
        }
    }
}

/// A token as the edge gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOut {
    /// Its id.
    pub id: u32,
    /// The position it takes: one after the last row sent.
    pub position: u32,
    /// Its natural log probability, where asked for.
    pub logprob: Option<f32>,
    /// The most likely ids with theirs, best first.
    pub top_logprobs: Vec<(u32, f32)>,
    /// What the cloud computed since its last token, without waiting.
    pub cloud: Duration,
}

impl OpenRequest {
    pub(super) fn to_proto(&self) -> proto::Open {
        let s = self.sampling;
        let tail = self.tail_ids.len().saturating_sub(MAX_TAIL_IDS);
        proto::Open {
            protocol: PROTOCOL,
            pair_id: self.contract.pair_id.0.to_vec(),
            split: self.contract.split,
            n_layer: self.contract.n_layer,
            width: self.contract.width,
            codec: self.codec.clone(),
            n_ctx: self.n_ctx,
            sampling: Some(proto::Sampling {
                temperature: s.temperature,
                top_k: s.top_k,
                top_p: Some(s.top_p),
                min_p: s.min_p,
                repeat_penalty: Some(s.repeat_penalty),
                repeat_last_n: s.repeat_last_n,
                seed: s.seed,
            }),
            top_logprobs: self.top_logprobs,
            tail_ids: self.tail_ids[tail..].to_vec(),
        }
    }

    /// Reads an `Open` of any sender; the text of an error goes back to it. The protocol version
    /// has been checked before.
    pub(super) fn from_proto(open: proto::Open) -> Result<Self, String> {
        let pair_id: [u8; 16] = open
            .pair_id
            .as_slice()
            .try_into()
            .map_err(|_| format!("a pair id has 16 bytes, not {}", open.pair_id.len()))?;
        if open.codec.is_empty() || open.codec.len() > MAX_CODEC_BYTES {
            return Err(format!(
                "the codec has {} bytes; 1 to {MAX_CODEC_BYTES} are allowed",
                open.codec.len()
            ));
        }
        if open.top_logprobs > MAX_TOP_LOGPROBS {
            return Err(format!(
                "{} log probabilities a token asked for; at most {MAX_TOP_LOGPROBS} are given",
                open.top_logprobs
            ));
        }
        if open.tail_ids.len() > MAX_TAIL_IDS {
            return Err(format!(
                "{} prompt ids sent; at most {MAX_TAIL_IDS} are taken",
                open.tail_ids.len()
            ));
        }
        Ok(Self {
            contract: Contract {
                pair_id: PairId(pair_id),
                split: open.split,
                n_layer: open.n_layer,
                width: open.width,
            },
            codec: open.codec,
            n_ctx: open.n_ctx,
            sampling: open
                .sampling
                .map_or(Ok(Sampling::default()), Sampling::from_proto)?,
            top_logprobs: open.top_logprobs,
            tail_ids: open.tail_ids,
        })
    }
}

impl Sampling {
    /// Absent is "off"; only where that is no 0 do the fields tell the two apart.
    fn from_proto(s: proto::Sampling) -> Result<Self, String> {
        let this = Self {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p.unwrap_or(1.0),
            min_p: s.min_p,
            repeat_penalty: s.repeat_penalty.unwrap_or(1.0),
            repeat_last_n: s.repeat_last_n,
            seed: s.seed,
        };
        let fits = |name: &str, x: f32, max: f32| {
            if (0.0..=max).contains(&x) {
                Ok(())
            } else {
                Err(format!("{name} is {x}; it must be between 0 and {max}"))
            }
        };
        fits("temperature", this.temperature, 1000.0)?;
        fits("top_p", this.top_p, 1.0)?;
        fits("min_p", this.min_p, 1.0)?;
        fits("repeat_penalty", this.repeat_penalty, 1000.0)?;
        Ok(this)
    }
}

impl From<proto::Token> for TokenOut {
    fn from(token: proto::Token) -> Self {
        Self {
            id: token.id,
            position: token.position,
            logprob: token.logprob,
            top_logprobs: token
                .top_logprobs
                .into_iter()
                .map(|l| (l.id, l.logprob))
                .collect(),
            cloud: Duration::from_micros(token.cloud_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> OpenRequest {
        OpenRequest {
            contract: Contract {
                pair_id: PairId([7; 16]),
                split: 10,
                n_layer: 30,
                width: 576,
            },
            codec: "f16".into(),
            n_ctx: 512,
            sampling: Sampling {
                temperature: 0.7,
                seed: u64::MAX,
                ..Sampling::default()
            },
            top_logprobs: 3,
            tail_ids: vec![1, 2, u32::MAX],
        }
    }

    #[test]
    fn survives_the_way() {
        assert_eq!(OpenRequest::from_proto(request().to_proto()), Ok(request()));
        let bare = proto::Open {
            sampling: None,
            ..request().to_proto()
        };
        let got = OpenRequest::from_proto(bare).unwrap();
        assert_eq!(got.sampling, Sampling::default());
        let absent = proto::Open {
            sampling: Some(proto::Sampling::default()),
            ..request().to_proto()
        };
        let got = OpenRequest::from_proto(absent).unwrap();
        assert_eq!(got.sampling, Sampling::default());
    }

    #[test]
    fn zero_is_not_absent() {
        let zeros = OpenRequest {
            sampling: Sampling {
                top_p: 0.0,
                repeat_penalty: 0.0,
                ..Sampling::default()
            },
            ..request()
        };
        assert_eq!(OpenRequest::from_proto(zeros.to_proto()), Ok(zeros));
    }

    #[test]
    fn a_long_tail_is_cut_to_its_end() {
        let long = OpenRequest {
            tail_ids: (0..100_003).collect(),
            ..request()
        };
        let got = OpenRequest::from_proto(long.to_proto()).unwrap();
        assert_eq!(got.tail_ids.len(), 100_000);
        assert_eq!((got.tail_ids[0], got.tail_ids[99_999]), (3, 100_002));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        type Spoil = fn(&mut proto::Open);
        let cases: [(Spoil, &str); 9] = [
            (|o| o.pair_id.truncate(15), "16 bytes, not 15"),
            (|o| o.codec.clear(), "0 bytes"),
            (|o| o.codec = "x".repeat(257), "257 bytes"),
            (|o| o.top_logprobs = 129, "129 log"),
            (|o| o.tail_ids = vec![0; 100_001], "100001 prompt ids"),
            (
                |o| o.sampling.as_mut().unwrap().temperature = f32::NAN,
                "temperature is NaN",
            ),
            (
                |o| o.sampling.as_mut().unwrap().temperature = -1.0,
                "temperature is -1",
            ),
            (
                |o| o.sampling.as_mut().unwrap().top_p = Some(1.5),
                "top_p is 1.5",
            ),
            (
                |o| o.sampling.as_mut().unwrap().repeat_penalty = Some(f32::INFINITY),
                "repeat_penalty is inf",
            ),
        ];
        for (spoil, want) in cases {
            let mut open = request().to_proto();
            spoil(&mut open);
            let error = OpenRequest::from_proto(open).unwrap_err();
            assert!(error.contains(want), "{error} lacks {want}");
        }
    }
}
