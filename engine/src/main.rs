//! splitrun.
fn main() {}
