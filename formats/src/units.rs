//! Quantities as people write them: `4GiB`, `20Mbit/s`, `30ms`. Strict: a number, then a unit
//! that is spelled like this, with at most one space between; nothing negative, nothing infinite.

use std::fmt;

/// Bytes, decimal units first; what a message shows.
const SIZES: [(&str, f64); 9] = [
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];
/// In bits per second.
const RATES: [(&str, f64); 8] = [
    ("bit/s", 1.0),
    ("kbit/s", 1e3),
    ("Mbit/s", 1e6),
    ("Gbit/s", 1e9),
    ("B/s", 8.0),
    ("kB/s", 8e3),
    ("MB/s", 8e6),
    ("GB/s", 8e9),
];
/// In milliseconds.
const TIMES: [(&str, f64); 4] = [("us", 1e-3), ("µs", 1e-3), ("ms", 1.0), ("s", 1e3)];
/// In hertz.
const FREQUENCIES: [(&str, f64); 4] = [("Hz", 1.0), ("kHz", 1e3), ("MHz", 1e6), ("GHz", 1e9)];

/// Text that is no quantity of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no {kind}: {why}; write it as {example}")]
pub struct UnitError {
    found: String,
    kind: &'static str,
    why: &'static str,
    example: &'static str,
}

/// What is asked for.
struct Kind {
    name: &'static str,
    units: &'static [(&'static str, f64)],
    example: &'static str,
    /// The largest value that makes sense, in the basic unit.
    most: f64,
    /// Whether it may be nothing at all.
    zero: bool,
}

fn parse(text: &str, kind: &Kind) -> Result<f64, UnitError> {
    let fail = |why| UnitError {
        found: text.chars().take(40).collect(),
        kind: kind.name,
        why,
        example: kind.example,
    };
    let negative = text.strip_prefix('-');
    if negative.is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit() || c == '.')) {
        return Err(fail("it is negative"));
    }
    let end = (text.find(|c: char| !c.is_ascii_digit() && c != '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let value: f64 = number
        .parse()
        .map_err(|_| fail("it does not begin with a number"))?;
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    if unit.is_empty() && value == 0.0 && kind.zero {
        return Ok(0.0);
    }
    let Some((_, factor)) = kind.units.iter().find(|(name, _)| *name == unit) else {
        return Err(fail(if unit.is_empty() {
            "it has no unit"
        } else {
            "its unit is unknown"
        }));
    };
    let value = value * factor;
    if value == 0.0 && !kind.zero {
        return Err(fail("it is zero"));
    }
    if value > kind.most {
        return Err(fail("nothing is that large"));
    }
    Ok(value)
}

/// A size in bytes, above zero: `4GiB`, `512MB`.
///
/// # Errors
/// What is wrong, and an example.
pub fn bytes(text: &str) -> Result<u64, UnitError> {
    let kind = Kind {
        name: "size",
        units: &SIZES,
        example: "4GiB, 512MiB or 48GB",
        // A pebibyte.
        most: 1_125_899_906_842_624.0,
        zero: false,
    };
    let value = parse(text, &kind)?;
    if value < 1.0 {
        return Err(UnitError {
            found: text.chars().take(40).collect(),
            kind: kind.name,
            why: "it is less than a byte",
            example: kind.example,
        });
    }
    Ok(value as u64)
}

/// A rate in bits per second, above zero: `20Mbit/s`.
///
/// # Errors
/// What is wrong, and an example.
pub fn bits_per_second(text: &str) -> Result<f64, UnitError> {
    let kind = Kind {
        name: "rate",
        units: &RATES,
        example: "20Mbit/s, 1Gbit/s or 2.5MB/s",
        most: 1e15,
        zero: false,
    };
    parse(text, &kind)
}

/// A time in milliseconds, above zero unless `zero` is allowed: `30ms`.
///
/// # Errors
/// What is wrong, and an example.
pub fn milliseconds(text: &str, zero: bool) -> Result<f64, UnitError> {
    let kind = Kind {
        name: "time",
        units: &TIMES,
        example: "30ms, 0.5s or 800us",
        // A day.
        most: 86_400_000.0,
        zero,
    };
    parse(text, &kind)
}

/// A frequency in hertz, above zero: `10MHz`.
///
/// # Errors
/// What is wrong, and an example.
pub fn hertz(text: &str) -> Result<f64, UnitError> {
    let kind = Kind {
        name: "bandwidth",
        units: &FREQUENCIES,
        example: "10MHz or 180kHz",
        most: 1e12,
        zero: false,
    };
    parse(text, &kind)
}

/// Bytes as a person reads them, in binary units with three digits: `3.42 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
            // What would be shown as 1000 or more.
            if value < 999.5 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        let digits = match value {
            _ if unit == "B" => 0,
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        write!(f, "{value:.digits$} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_them() {
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("0.5 kB"), Ok(500));
        assert_eq!(bits_per_second("20Mbit/s"), Ok(2e7));
        assert_eq!(bits_per_second("2.5MB/s"), Ok(2e7));
        assert_eq!(milliseconds("30ms", false), Ok(30.0));
        assert_eq!(milliseconds("0", true), Ok(0.0));
        assert_eq!(milliseconds("0.8s", true), Ok(800.0));
        assert_eq!(hertz("10MHz"), Ok(1e7));
        for (n, text) in [
            (0, "0 B"),
            (1023, "1.00 KiB"),
            (3_672_000_000, "3.42 GiB"),
            (1 << 40, "1.00 TiB"),
        ] {
            assert_eq!(Size(n).to_string(), text);
        }
    }

    #[test]
    fn what_is_none_is_refused_with_an_example() {
        for (text, why) in [
            ("", "does not begin"),
            ("GiB", "does not begin"),
            ("-4GiB", "negative"),
            ("--rtt", "does not begin"),
            ("4", "no unit"),
            ("4gib", "unknown"),
            ("4 GiB ", "unknown"),
            ("4  GiB", "unknown"),
            ("1e9B", "unknown"),
            ("0GiB", "zero"),
            ("0.1B", "less than a byte"),
            ("9999999999TiB", "that large"),
            ("1.2.3GiB", "does not begin"),
            ("NaNGiB", "does not begin"),
            ("∞B", "does not begin"),
        ] {
            let said = bytes(text).unwrap_err().to_string();
            assert!(
                said.contains(why) && said.contains("4GiB"),
                "{text}: {said}"
            );
        }
        assert!(milliseconds("0ms", false).is_err());
        assert!(milliseconds("0ms", true).is_ok());
        assert!(bits_per_second("20Mb").is_err());
        assert!(hertz("0Hz").is_err());
    }
}
