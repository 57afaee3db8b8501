//! What `splitrun` measures and `splitconv plan` plans with: JSON files.
//!
//! | file | made by | says |
//! |---|---|---|
//! | [`Profile`] | `splitrun bench --profile OUT.json` | how fast a host computes, and what it needs besides the model |
//! | [`LayerSensitivity`] | `splitrun calibrate --sensitivity` | what types and codecs cost in nats on one model |
//!
//! Both are one JSON object with the keys `format` and `version`; a reader refuses another format
//! and a newer version, and ignores keys that it does not know. Files of more than
//! [`MAX_BYTES`] are refused before they are read, numbers that are no times, sizes or divergences
//! (negative, not finite) after.

mod curve;
mod error;
mod file;
mod profile;
mod sensitivity;
#[cfg(test)]
mod tests;

pub use curve::{Curve, MAX_POINTS, MAX_ROWS};
pub use error::{MeasuredError, MeasuredErrorKind};
pub use file::MAX_BYTES;
pub use profile::{AttentionTime, CodecTime, MatrixTime, PROFILE_VERSION, Profile};
pub use sensitivity::{
    CodecPoint, Front, LayerSensitivity, SENSITIVITY_VERSION, TypeDamage, WHOLE_LAYER,
};
