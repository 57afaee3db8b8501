//! Reading with a bound, checking what both kinds have in common, writing.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{MeasuredError, MeasuredErrorKind as Kind};

/// The most bytes that a file of measurements may have: a hundred layers in ten types take
/// less than a tenth of it.
pub const MAX_BYTES: u64 = 16 << 20;

/// A kind of file.
pub(super) struct Form {
    /// Its `format`.
    pub(super) name: &'static str,
    /// The newest version known.
    pub(super) version: u32,
    /// The command that writes it, as a user types it.
    pub(super) maker: &'static str,
}

/// What every file begins with.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

/// Reads the file `path` as `form`; what it holds is not checked yet.
pub(super) fn open<T: DeserializeOwned>(path: &Path, form: &Form) -> Result<T, MeasuredError> {
    let bytes = bounded(path).map_err(|kind| MeasuredError::new(path, kind))?;
    parse(&bytes, form).map_err(|kind| MeasuredError::new(path, kind))
}

fn bounded(path: &Path) -> Result<Vec<u8>, Kind> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_BYTES {
        return Err(Kind::TooLarge(size));
    }
    // A file may grow, and a pipe has no size.
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Kind::TooLarge(bytes.len() as u64));
    }
    Ok(bytes)
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], form: &Form) -> Result<T, Kind> {
    let json = |e| Kind::Json(e, form.maker);
    let head: Head = serde_json::from_slice(bytes).map_err(json)?;
    if head.format != form.name {
        return Err(Kind::OtherFormat {
            found: head.format.chars().take(40).collect(),
            wanted: form.name,
            maker: form.maker,
        });
    }
    if head.version == 0 || head.version > form.version {
        return Err(Kind::Version {
            found: head.version,
            known: form.version,
        });
    }
    serde_json::from_slice(bytes).map_err(json)
}

/// The JSON text of `value`, which ends with a line break.
pub(super) fn text(value: &impl Serialize) -> String {
    // Structs of numbers, strings and lists: nothing in them can fail to be written.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
