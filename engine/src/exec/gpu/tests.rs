//! Against the CPU executor.
