//! The flags of `splitconv plan` and `splitconv --auto`.

use std::path::PathBuf;

use clap::Args;
use formats::measured::LayerSensitivity;
use formats::model::{KvType, UnknownKvType};
use formats::units;

use super::problem::Objective;

/// What a plan must keep to, and what it is made from.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Planning")]
pub struct PlanFlags {
    /// Memory that the edge process may take [default: the profile's]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub edge_memory: Option<u64>,
    /// Memory that the cloud process may take [default: the profile's]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    pub cloud_memory: Option<u64>,
    /// What the edge can send, as 20Mbit/s
    #[arg(long, value_name = "RATE", value_parser = rate, allow_hyphen_values = true)]
    pub uplink: Option<f64>,
    /// Time there and back of an empty message, as 30ms [default: 30ms]
    #[arg(long, value_name = "TIME", value_parser = rtt, allow_hyphen_values = true)]
    pub rtt: Option<f64>,
    /// Instead of --uplink: bandwidth of a radio channel with Rayleigh fading, as 10MHz
    #[arg(long, value_name = "FREQUENCY", value_parser = frequency, conflicts_with = "uplink", requires = "snr")]
    pub radio_bandwidth: Option<f64>,
    /// Mean signal to noise ratio of the radio channel, as 20dB
    #[arg(long, value_name = "RATIO", value_parser = snr, requires = "radio_bandwidth", allow_hyphen_values = true)]
    pub snr: Option<f64>,
    /// How often the radio may be too slow for the deadline, as 1% [default: 1%]
    #[arg(long, value_name = "SHARE", value_parser = share, allow_hyphen_values = true, requires = "radio_bandwidth")]
    pub outage: Option<f64>,
    /// Positions of the context [default: the model's, 8192 at most; with --objective context as many as fit]
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub context: Option<u32>,
    /// Time a token may take at the end of the context, as 150ms [default: none]
    #[arg(long, value_name = "TIME", value_parser = deadline, allow_hyphen_values = true)]
    pub deadline: Option<f64>,
    /// Divergence from the source that types and codec may cost, nats per token [default: 0.05]
    #[arg(long, value_name = "NATS", value_parser = nats, allow_hyphen_values = true)]
    pub max_kl: Option<f64>,
    /// How fast the edge is: a file of `splitrun bench --profile`, or jetson-xavier-nx,
    /// jetson-agx-orin, rtx-a6000 (derived from published figures) [default: jetson-xavier-nx]
    #[arg(long, value_name = "FILE")]
    pub edge_profile: Option<PathBuf>,
    /// How fast the cloud is, likewise [default: rtx-a6000]
    #[arg(long, value_name = "FILE")]
    pub cloud_profile: Option<PathBuf>,
    /// Form of keys and values, as splitrun's --kv-type on both sides: f16, q8_0, q4_0, or auto for
    /// what is best within the limits [default: f16]
    #[arg(long, value_name = "TYPE", value_parser = kv_type)]
    pub kv_type: Option<KvChoice>,
    /// What types and codecs cost this model: a file of `splitrun calibrate --sensitivity`
    #[arg(long, value_name = "FILE")]
    pub sensitivity: Option<PathBuf>,
    /// With --sensitivity: perplexity that the model has on the text to come, as `splitrun eval`
    /// finds it; divergences go with its logarithm [default: that of the text of calibration]
    #[arg(long, value_name = "P", value_parser = perplexity, allow_hyphen_values = true, requires = "sensitivity")]
    pub perplexity: Option<f64>,
    /// Devices that share the server [default: 1]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub edges: Option<u32>,
    /// What is best [default: speed with --context, else context]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub objective: Option<Objective>,
    /// Tokens of a prompt, for the time to the first token [default: 512, half the context at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub prompt_tokens: Option<u32>,
    /// Draws memory and time by cut and what can be chosen
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl PlanFlags {
    /// The first of these flags that was given: a conversion without `--auto` has no use for it.
    pub fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--edge-memory", self.edge_memory.is_some()),
            ("--cloud-memory", self.cloud_memory.is_some()),
            ("--uplink", self.uplink.is_some()),
            ("--rtt", self.rtt.is_some()),
            ("--radio-bandwidth", self.radio_bandwidth.is_some()),
            ("--context", self.context.is_some()),
            ("--deadline", self.deadline.is_some()),
            ("--max-kl", self.max_kl.is_some()),
            ("--edge-profile", self.edge_profile.is_some()),
            ("--cloud-profile", self.cloud_profile.is_some()),
            ("--kv-type", self.kv_type.is_some()),
            ("--sensitivity", self.sensitivity.is_some()),
            ("--perplexity", self.perplexity.is_some()),
            ("--edges", self.edges.is_some()),
            ("--objective", self.objective.is_some()),
            ("--prompt-tokens", self.prompt_tokens.is_some()),
            ("--svg", self.svg.is_some()),
        ];
        given.iter().find(|(_, g)| *g).map(|(flag, _)| *flag)
    }
}

/// What `--kv-type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvChoice {
    /// Whatever is best.
    Auto,
    /// This one.
    Fixed(KvType),
}

impl KvChoice {
    /// What there is to choose from.
    pub fn types(self) -> Vec<KvType> {
        match self {
            Self::Auto => KvType::ALL.to_vec(),
            Self::Fixed(kv_type) => vec![kv_type],
        }
    }
}

fn kv_type(text: &str) -> Result<KvChoice, String> {
    if text == "auto" {
        return Ok(KvChoice::Auto);
    }
    let read = text.parse().map(KvChoice::Fixed);
    read.map_err(|e: UnknownKvType| format!("{e}; or auto"))
}

/// Arguments of `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// The model: a GGUF file (or any shard of one), or a folder in the Hugging Face layout
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Importance matrix that the conversion will be given: what it changes in the recipe is
    /// planned with, and a calibrated one allows codec tcq
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// What to plan with.
    #[command(flatten)]
    pub flags: PlanFlags,
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    units::bytes(text).map_err(|e| e.to_string())
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    units::bits_per_second(text).map_err(|e| e.to_string())
}

fn rtt(text: &str) -> Result<f64, String> {
    units::milliseconds(text, true).map_err(|e| e.to_string())
}

pub(super) fn deadline(text: &str) -> Result<f64, String> {
    units::milliseconds(text, false).map_err(|e| e.to_string())
}

pub(super) fn frequency(text: &str) -> Result<f64, String> {
    units::hertz(text).map_err(|e| e.to_string())
}

pub(super) fn nats(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v.is_finite() && v > 0.0 && v <= 100.0 => Ok(v),
        _ => Err("expected nats per token, above 0 and at most 100, as 0.05".into()),
    }
}

/// A ratio: in decibels with the unit, plain without.
pub(super) fn snr(text: &str) -> Result<f64, String> {
    let ratio = match text.strip_suffix("dB") {
        Some(db) => db
            .trim_end()
            .parse::<f64>()
            .map(|db| 10_f64.powf(db / 10.0)),
        None => text.parse::<f64>(),
    };
    match ratio {
        Ok(v) if v.is_finite() && v > 0.0 && v <= 1e12 => Ok(v),
        _ => Err("expected a ratio above 0, as 20dB or 100".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim_end().parse::<f64>().map(|p| p / 100.0),
        None => text.parse::<f64>(),
    };
    match share {
        Ok(v) if v > 0.0 && v < 1.0 => Ok(v),
        _ => Err("expected a probability above 0 and below 1, as 1% or 0.01".into()),
    }
}

fn perplexity(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if LayerSensitivity::is_perplexity(v) => Ok(v),
        _ => Err("expected a number from 1.01 to 1e9, as 13.5".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_shares() {
        assert_eq!(snr("20dB"), Ok(100.0));
        assert_eq!(snr("100"), Ok(100.0));
        assert!((snr("-3dB").unwrap() - 0.501).abs() < 1e-3);
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("0.5"), Ok(0.5));
        for bad in ["", "0", "-1", "inf", "NaN", "1e99"] {
            assert!(snr(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "0%", "100%", "1", "-1%", "NaN"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        assert_eq!(perplexity("13.5"), Ok(13.5));
        for bad in ["", "1", "-3", "NaN", "inf", "x"] {
            assert!(perplexity(bad).is_err(), "{bad}");
        }
        for bad in ["0", "-0.1", "NaN", "inf", "1000", "x"] {
            assert!(nats(bad).is_err(), "{bad}");
        }
    }
}
