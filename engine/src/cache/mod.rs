//! Keys and values of the positions seen so far.

use half::f16;

/// The f16 KV cache of one sequence over one layer range.
///
/// Layout per layer: keys then values, each `n_ctx × kv_width`, position after position.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: usize,
    n_ctx: usize,
    kv_width: usize,
    len: usize,
    keys: Vec<f16>,
    values: Vec<f16>,
}

impl KvCache {
    /// An empty cache, or `None` when the memory cannot be had.
    pub fn new(layers: usize, n_ctx: usize, kv_width: usize) -> Option<Self> {
        let n = layers.checked_mul(n_ctx)?.checked_mul(kv_width)?;
        Some(Self {
            layers,
            n_ctx,
            kv_width,
            len: 0,
            keys: zeroed(n)?,
            values: zeroed(n)?,
        })
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Layers covered.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        2 * (self.keys.len() + self.values.len())
    }

    /// Forgets every position from `len` on (a rollback); no effect when fewer are held.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Counts `n` more positions as held; the caller has written them.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        debug_assert!(self.len <= self.n_ctx);
    }

    /// Keys and values of a layer (counted from the range's first), each `n_ctx × kv_width`.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut [f16], &mut [f16]) {
        let n = self.n_ctx * self.kv_width;
        (
            &mut self.keys[layer * n..(layer + 1) * n],
            &mut self.values[layer * n..(layer + 1) * n],
        )
    }
}

/// Zeroed memory that the system hands out page by page as it is touched.
fn zeroed(n: usize) -> Option<Vec<f16>> {
    bytemuck::allocation::try_zeroed_vec(n).ok()
}
