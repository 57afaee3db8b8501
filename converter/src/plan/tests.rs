//! The search against brute force.
