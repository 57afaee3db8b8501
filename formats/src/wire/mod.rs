//! The activation frame.
