//! splitconv: a model in, a pair of halves out.
