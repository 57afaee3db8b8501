//! splitconv.
fn main() {}
