/// The rows that a dispatch is about: one sequence's, or all.
struct Pass {
    rows: u32,
    /// Position of the first of them in its sequence.
    start: u32,
    /// Where they begin among all rows of the pass.
    first: u32,
    /// Positions of a part of attention, where it is split.
    split: u32,
}

@group(1) @binding(0) var<uniform> pass_: Pass;
