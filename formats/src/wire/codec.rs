//! Which coding a frame uses, and its written form (`SPEC` on the command line and in `Open`).

use std::fmt;
use std::str::FromStr;

use super::CutStatistics;

/// Every name a `SPEC` may start with, as error messages list them.
const NAMES: &str =
    "f32, f16, int8, ts-tabq[:tau=…,delta=…,bits=1..8], tcq[:step=…], auto[:max-kl=…]";
const TS_TABQ_OPTIONS: &str = "tau, delta, bits";
const TAU_VALUES: &str = "an absolute value of at least 0 (`20`, `inf` for no splitting) or a multiple of the row's sigma (`4s`)";
const DELTA_VALUES: &str =
    "a finite number of at least 0, in sigmas of the row (0 keeps every row at `bits`)";
const BITS_VALUES: &str = "a whole number from 1 to 8";
const STEP_VALUES: &str =
    "a number from 0.01 to 8, in standard deviations of the middle channel (0.5 by default)";
const MAX_KL_VALUES: &str = "a finite number above 0";

/// The coding of a frame's rows.
///
/// Parsed from and displayed as `f32`, `f16`, `int8`, `ts-tabq[:tau=…,delta=…,bits=1..8]` or
/// `auto[:max-kl=…]`. [`fmt::Display`] writes every option, so what a peer reads back does not
/// depend on its defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Codec {
    /// Every bit of every value.
    F32,
    /// Half precision; what half precision cannot hold travels exactly.
    F16,
    /// One symmetric scale a row. Weak where a row holds a spike: it takes the whole scale.
    Int8,
    /// Threshold splitting, then token-wise adaptive bits.
    TsTabQ(TsTabQ),
    /// Trellis-coded quantisation under static probabilities, which come from calibration.
    Tcq(Tcq),
    /// The fewest bytes predicted to hold the bound; see [`Codec::resolve`].
    Auto {
        /// Bound on the mean KL divergence of the final distribution, in nats.
        max_kl: f32,
    },
}

/// From which magnitude on a value travels exactly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tau {
    /// `|x| ≥ τ`, the same for every row. Infinite: only NaN, infinities and magnitudes of 2^120
    /// and more are split off.
    Absolute(f32),
    /// `|x| ≥ k·σ`, σ the trimmed sigma of the row (see `docs/wire-format.md`).
    Sigma(f32),
}

/// Parameters of threshold splitting and TAB-Q. They steer the encoder only: a frame decodes
/// without them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TsTabQ {
    /// The threshold.
    pub tau: Tau,
    /// How far the root mean square error of a row's dense part may go, in trimmed sigmas of the
    /// row, when its width is lowered below `bits`; 0 keeps every row at `bits`.
    pub delta: f32,
    /// The highest width of a code, 1 to 8 bits.
    pub bits: u8,
}

/// Parameters of trellis-coded quantisation. They steer the encoder only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tcq {
    /// The step that the rate is of, twice that of the error: in standard deviations of the
    /// channel in the middle, for a row of ordinary spread. No value is further off than that,
    /// and outliers are exact.
    pub step: f32,
}

impl Tcq {
    /// The smallest step.
    pub const SMALLEST: f32 = 0.01;
    /// The largest step.
    pub const LARGEST: f32 = 8.0;

    /// Whether the value is among the allowed ones.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(self) -> Result<(), SpecError> {
        if (Self::SMALLEST..=Self::LARGEST).contains(&self.step) {
            return Ok(());
        }
        Err(SpecError::BadValue {
            option: "step",
            value: self.step.to_string(),
            allowed: STEP_VALUES,
        })
    }
}

impl Default for Tcq {
    fn default() -> Self {
        Self { step: 0.5 }
    }
}

impl Default for TsTabQ {
    fn default() -> Self {
        Self {
            tau: Tau::Sigma(4.0),
            delta: 0.1,
            bits: 8,
        }
    }
}

impl TsTabQ {
    /// Whether the values are among the allowed ones.
    ///
    /// # Errors
    /// The first option that is not.
    pub fn check(&self) -> Result<(), SpecError> {
        let bad = |option, value: String, allowed| SpecError::BadValue {
            option,
            value,
            allowed,
        };
        let tau_ok = match self.tau {
            Tau::Absolute(t) => t >= 0.0,
            Tau::Sigma(k) => k >= 0.0 && k.is_finite(),
        };
        if !tau_ok {
            return Err(bad("tau", self.tau.to_string(), TAU_VALUES));
        }
        if !(self.delta.is_finite() && self.delta >= 0.0) {
            return Err(bad("delta", self.delta.to_string(), DELTA_VALUES));
        }
        if !(1..=8).contains(&self.bits) {
            return Err(bad("bits", self.bits.to_string(), BITS_VALUES));
        }
        Ok(())
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::Auto {
            max_kl: Self::AUTO_MAX_KL,
        }
    }
}

impl Codec {
    /// The bound of a bare `auto`.
    pub const AUTO_MAX_KL: f32 = 0.003;
    /// Where `auto` aims, as a share of its bound: another text than that of calibration may be
    /// harder.
    const AUTO_AIM: f32 = 0.8;

    /// What `auto` uses where nothing is known of the model: τ at five trimmed sigmas, five bits
    /// for every row. `docs/wire-format.md` has the measurements behind it.
    pub fn auto_default() -> TsTabQ {
        TsTabQ {
            tau: Tau::Sigma(5.0),
            delta: 0.0,
            bits: 5,
        }
    }

    /// The coding that is really used: [`Codec::Tcq`] for `auto` where calibration has measured
    /// what a step costs, else [`Codec::auto_default`]; all others stay.
    #[must_use]
    pub fn resolve(&self, cut: Option<&CutStatistics>) -> Self {
        match self {
            Self::Auto { max_kl } => cut
                .and_then(|c| c.step_for(max_kl * Self::AUTO_AIM))
                .map_or(Self::TsTabQ(Self::auto_default()), Self::Tcq),
            other => *other,
        }
    }

    /// Whether frames in this coding need a calibrated pair; `auto` takes what there is.
    pub fn needs_calibration(&self) -> bool {
        matches!(self, Self::Tcq(_))
    }

    /// Whether the options are among the allowed ones; parsed codecs always are.
    ///
    /// # Errors
    /// The first option that is not.
    pub fn check(&self) -> Result<(), SpecError> {
        match self {
            Self::F32 | Self::F16 | Self::Int8 => Ok(()),
            Self::TsTabQ(t) => t.check(),
            Self::Tcq(t) => t.check(),
            Self::Auto { max_kl } if max_kl.is_finite() && *max_kl > 0.0 => Ok(()),
            Self::Auto { max_kl } => Err(SpecError::BadValue {
                option: "max-kl",
                value: max_kl.to_string(),
                allowed: MAX_KL_VALUES,
            }),
        }
    }
}

impl fmt::Display for Tau {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(t) => write!(f, "{t}"),
            Self::Sigma(k) => write!(f, "{k}s"),
        }
    }
}

impl fmt::Display for TsTabQ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tau, delta, bits } = self;
        write!(f, "ts-tabq:tau={tau},delta={delta},bits={bits}")
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::F16 => f.write_str("f16"),
            Self::Int8 => f.write_str("int8"),
            Self::TsTabQ(t) => t.fmt(f),
            Self::Tcq(Tcq { step }) => write!(f, "tcq:step={step}"),
            Self::Auto { max_kl } => write!(f, "auto:max-kl={max_kl}"),
        }
    }
}

/// Why a `SPEC` is not one. Each names the part at fault and what may stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The part before the colon is no codec.
    #[error("there is no codec `{name}`; allowed are {NAMES}")]
    UnknownCodec {
        /// What stood there.
        name: String,
    },
    /// Options after a codec that has none.
    #[error("codec `{codec}` takes no options, but `:{options}` follows it; write `{codec}`")]
    NoOptions {
        /// The codec.
        codec: &'static str,
        /// What followed.
        options: String,
    },
    /// An option that the codec does not have.
    #[error("codec `{codec}` has no option `{option}`; allowed are {allowed}, each as name=value")]
    UnknownOption {
        /// The codec.
        codec: &'static str,
        /// What stood there.
        option: String,
        /// The options there are.
        allowed: &'static str,
    },
    /// A value out of range or not a number.
    #[error("`{value}` is no value for the codec option `{option}`; allowed is {allowed}")]
    BadValue {
        /// The option.
        option: &'static str,
        /// What stood there.
        value: String,
        /// What may stand there.
        allowed: &'static str,
    },
    /// The same option again.
    #[error("the codec option `{option}` stands twice; keep one")]
    Twice {
        /// The option.
        option: &'static str,
    },
}

/// What a message may quote of a stranger's text.
fn quote(s: &str) -> String {
    s.chars().take(64).collect()
}

fn number(option: &'static str, value: &str, allowed: &'static str) -> Result<f32, SpecError> {
    value.parse().map_err(|_| SpecError::BadValue {
        option,
        value: quote(value),
        allowed,
    })
}

/// Calls `set(name, value)` for each `name=value` of `options`; `set` answers the option's own
/// name, or `None` where there is no such option.
fn each_option(
    codec: &'static str,
    allowed: &'static str,
    options: &str,
    mut set: impl FnMut(&str, &str) -> Result<Option<&'static str>, SpecError>,
) -> Result<(), SpecError> {
    let mut seen: Vec<&'static str> = Vec::new();
    for part in options.split(',') {
        let known = match part.split_once('=') {
            Some((name, value)) => set(name, value)?,
            None => None,
        };
        let option = known.ok_or_else(|| SpecError::UnknownOption {
            codec,
            option: quote(part),
            allowed,
        })?;
        if seen.contains(&option) {
            return Err(SpecError::Twice { option });
        }
        seen.push(option);
    }
    Ok(())
}

fn parse_ts_tabq(options: &str) -> Result<TsTabQ, SpecError> {
    let mut t = TsTabQ::default();
    each_option("ts-tabq", TS_TABQ_OPTIONS, options, |name, value| {
        Ok(Some(match name {
            "tau" => {
                t.tau = match value.strip_suffix('s') {
                    Some(k) => Tau::Sigma(number("tau", k, TAU_VALUES)?),
                    None => Tau::Absolute(number("tau", value, TAU_VALUES)?),
                };
                "tau"
            }
            "delta" => {
                t.delta = number("delta", value, DELTA_VALUES)?;
                "delta"
            }
            "bits" => {
                t.bits = value.parse().map_err(|_| SpecError::BadValue {
                    option: "bits",
                    value: quote(value),
                    allowed: BITS_VALUES,
                })?;
                "bits"
            }
            _ => return Ok(None),
        }))
    })?;
    Ok(t)
}

fn parse_tcq(options: &str) -> Result<Tcq, SpecError> {
    let mut t = Tcq::default();
    each_option("tcq", "step", options, |name, value| {
        if name != "step" {
            return Ok(None);
        }
        t.step = number("step", value, STEP_VALUES)?;
        Ok(Some("step"))
    })?;
    Ok(t)
}

fn parse_auto(options: &str) -> Result<f32, SpecError> {
    let mut max_kl = Codec::AUTO_MAX_KL;
    each_option("auto", "max-kl", options, |name, value| {
        if name != "max-kl" {
            return Ok(None);
        }
        max_kl = number("max-kl", value, MAX_KL_VALUES)?;
        Ok(Some("max-kl"))
    })?;
    Ok(max_kl)
}

impl FromStr for Codec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        let (name, options) = match spec.split_once(':') {
            Some((name, options)) => (name, Some(options)),
            None => (spec, None),
        };
        let plain = |codec: &'static str, value: Self| match options {
            None => Ok(value),
            Some(o) => Err(SpecError::NoOptions {
                codec,
                options: quote(o),
            }),
        };
        let codec = match name {
            "f32" => plain("f32", Self::F32)?,
            "f16" => plain("f16", Self::F16)?,
            "int8" => plain("int8", Self::Int8)?,
            "ts-tabq" => Self::TsTabQ(options.map_or(Ok(TsTabQ::default()), parse_ts_tabq)?),
            "tcq" => Self::Tcq(options.map_or(Ok(Tcq::default()), parse_tcq)?),
            "auto" => Self::Auto {
                max_kl: options.map_or(Ok(Self::AUTO_MAX_KL), parse_auto)?,
            },
            _ => return Err(SpecError::UnknownCodec { name: quote(name) }),
        };
        codec.check()?;
        Ok(codec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn specs_parse_and_display() {
        let cases = [
            ("f32", Codec::F32, "f32"),
            ("f16", Codec::F16, "f16"),
            ("int8", Codec::Int8, "int8"),
            (
                "ts-tabq",
                Codec::TsTabQ(TsTabQ::default()),
                "ts-tabq:tau=4s,delta=0.1,bits=8",
            ),
            (
                "ts-tabq:bits=4,tau=20",
                Codec::TsTabQ(TsTabQ {
                    tau: Tau::Absolute(20.0),
                    bits: 4,
                    ..TsTabQ::default()
                }),
                "ts-tabq:tau=20,delta=0.1,bits=4",
            ),
            (
                "ts-tabq:tau=inf,delta=0,bits=1",
                Codec::TsTabQ(TsTabQ {
                    tau: Tau::Absolute(f32::INFINITY),
                    delta: 0.0,
                    bits: 1,
                }),
                "ts-tabq:tau=inf,delta=0,bits=1",
            ),
            ("auto", Codec::default(), "auto:max-kl=0.003"),
            (
                "auto:max-kl=1e-3",
                Codec::Auto { max_kl: 0.001 },
                "auto:max-kl=0.001",
            ),
        ];
        for (spec, codec, shown) in cases {
            assert_eq!(spec.parse::<Codec>().unwrap(), codec, "{spec}");
            assert_eq!(codec.to_string(), shown);
            assert_eq!(shown.parse::<Codec>().unwrap(), codec);
        }
    }

    #[test]
    fn bad_specs_name_the_part_and_the_choices() {
        for (spec, part, choice) in [
            ("", "``", "ts-tabq"),
            ("F32", "`F32`", "f32, f16, int8"),
            ("f32:", "`:`", "write `f32`"),
            ("int8:bits=4", "bits=4", "write `int8`"),
            ("ts-tabq:", "option ``", "tau, delta, bits"),
            ("ts-tabq:tau", "option `tau`", "name=value"),
            ("ts-tabq:tau=", "``", "4s"),
            ("ts-tabq:tau=-1", "`-1`", "at least 0"),
            ("ts-tabq:tau=-1s", "`-1s`", "at least 0"),
            ("ts-tabq:tau=nan", "`NaN`", "at least 0"),
            ("ts-tabq:tau=infs", "`infs`", "sigma"),
            ("ts-tabq:delta=inf", "`inf`", "finite"),
            ("ts-tabq:delta=-0.5", "`-0.5`", "finite"),
            ("ts-tabq:bits=0", "`0`", "1 to 8"),
            ("ts-tabq:bits=9", "`9`", "1 to 8"),
            ("ts-tabq:bits=4.5", "`4.5`", "1 to 8"),
            ("ts-tabq:bits=999", "`999`", "1 to 8"),
            ("ts-tabq:bits=4,bits=4", "`bits`", "twice"),
            ("ts-tabq:bits=4,", "option ``", "tau"),
            ("ts-tabq:width=4", "`width=4`", "tau, delta, bits"),
            ("auto:max-kl=0", "`0`", "above 0"),
            ("auto:max_kl=1", "`max_kl=1`", "max-kl"),
            ("auto:max-kl=nan", "`NaN`", "above 0"),
        ] {
            let said = spec.parse::<Codec>().unwrap_err().to_string();
            assert!(said.contains(part), "{spec}: {said}");
            assert!(said.contains(choice), "{spec}: {said}");
        }
        let long = "é".repeat(10_000).parse::<Codec>().unwrap_err().to_string();
        assert!(long.len() < 400, "{}", long.len());
    }

    proptest! {
        #[test]
        fn any_codec_is_read_back(sigma: bool, t in 0f32.., delta in 0f32..1e9, bits in 1u8..=8) {
            let tau = if sigma { Tau::Sigma(t) } else { Tau::Absolute(t) };
            let codec = Codec::TsTabQ(TsTabQ { tau, delta, bits });
            prop_assert_eq!(codec.to_string().parse::<Codec>(), Ok(codec));
        }

        #[test]
        fn any_text_is_answered(spec in ".{0,60}") {
            let _ = spec.parse::<Codec>();
        }
    }
}
