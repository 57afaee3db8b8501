//! Keys and values of the positions seen so far.

use std::any::Any;
use std::fmt;

use half::f16;

/// The KV cache of one sequence over one layer range: how many positions are held, and where.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    n_ctx: usize,
    len: usize,
    store: Store,
}

/// Where keys and values are.
#[derive(Debug)]
enum Store {
    Host(HostKv),
    /// In the memory of a device, whose executor alone can read them.
    Device(Box<dyn DeviceKv>),
}

/// Keys and values that a device keeps.
pub trait DeviceKv: Any + Send + Sync + fmt::Debug {
    /// Bytes of keys and values.
    fn bytes(&self) -> usize;

    /// The same, as what it is.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Keys and values in f16. Layout per layer: keys then values, each `n_ctx × kv_width`, position
/// after position.
struct HostKv {
    per_layer: usize,
    keys: Vec<f16>,
    values: Vec<f16>,
}

impl fmt::Debug for HostKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostKv")
            .field("values", &self.values.len())
            .finish_non_exhaustive()
    }
}

/// A cache of nothing, for a place that another was taken out of.
impl Default for KvCache {
    fn default() -> Self {
        let (keys, values) = (Vec::new(), Vec::new());
        let host = HostKv {
            per_layer: 0,
            keys,
            values,
        };
        Self::with(0, 0, Store::Host(host))
    }
}

impl KvCache {
    /// An empty cache in this process's memory, or `None` when the memory cannot be had.
    pub fn new(layers: usize, n_ctx: usize, kv_width: usize) -> Option<Self> {
        let per_layer = n_ctx.checked_mul(kv_width)?;
        let n = layers.checked_mul(per_layer)?;
        let host = HostKv {
            per_layer,
            keys: zeroed(n)?,
            values: zeroed(n)?,
        };
        Some(Self::with(layers, n_ctx, Store::Host(host)))
    }

    /// An empty cache of `n_ctx` positions in the memory of a device.
    pub(crate) fn on_device(layers: usize, n_ctx: usize, kv: Box<dyn DeviceKv>) -> Self {
        Self::with(layers, n_ctx, Store::Device(kv))
    }

    fn with(layers: usize, n_ctx: usize, store: Store) -> Self {
        Self {
            layers,
            n_ctx,
            len: 0,
            store,
        }
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
        match &self.store {
            Store::Host(kv) => 2 * (kv.keys.len() + kv.values.len()),
            Store::Device(kv) => kv.bytes(),
        }
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

    /// Whether keys and values are in this process's memory.
    pub(crate) fn is_host(&self) -> bool {
        matches!(self.store, Store::Host(_))
    }

    /// Keys and values of a layer (counted from the range's first), each `n_ctx × kv_width`; empty
    /// when a device has them.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> (&mut [f16], &mut [f16]) {
        match &mut self.store {
            Store::Host(kv) => {
                let at = layer * kv.per_layer..(layer + 1) * kv.per_layer;
                (&mut kv.keys[at.clone()], &mut kv.values[at])
            }
            Store::Device(_) => (&mut [], &mut []),
        }
    }

    /// What a device keeps, if it is a `T`.
    pub(crate) fn device_mut<T: DeviceKv>(&mut self) -> Option<&mut T> {
        match &mut self.store {
            Store::Host(_) => None,
            Store::Device(kv) => kv.as_any_mut().downcast_mut(),
        }
    }
}

/// Zeroed memory that the system hands out page by page as it is touched.
fn zeroed(n: usize) -> Option<Vec<f16>> {
    bytemuck::allocation::try_zeroed_vec(n).ok()
}
