//! Keys and values of the positions seen so far.

mod host;

use std::any::Any;
use std::fmt;

use formats::model::KvType;

use self::host::HostKv;
pub use self::host::KvShape;
pub(crate) use self::host::{LayerKv, Page, Side, code, columns, floats, half_of_key};

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
    #[cfg_attr(not(feature = "gpu"), allow(dead_code))] // nobody makes one then
    Device(Box<dyn DeviceKv>),
}

/// Keys and values that a device keeps.
pub trait DeviceKv: Any + Send + Sync + fmt::Debug {
    /// Bytes of keys and values.
    fn bytes(&self) -> usize;

    /// The same, as what it is.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// A cache of nothing, for a place that another was taken out of.
impl Default for KvCache {
    fn default() -> Self {
        Self::with(0, 0, Store::Host(HostKv::none()))
    }
}

impl KvCache {
    /// An empty cache in this process's memory, or `None` when the memory cannot be had.
    pub fn new(layers: usize, n_ctx: usize, shape: KvShape) -> Option<Self> {
        let host = HostKv::new(layers, n_ctx, shape)?;
        Some(Self::with(layers, n_ctx, Store::Host(host)))
    }

    /// An empty cache of `n_ctx` positions in the memory of a device.
    #[cfg(feature = "gpu")]
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
            Store::Host(kv) => kv.bytes(),
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

    /// The shape of a position, where this process's memory has it.
    pub(crate) fn host_shape(&self) -> Option<KvShape> {
        match &self.store {
            Store::Host(kv) => Some(kv.shape()),
            Store::Device(_) => None,
        }
    }

    /// In what form keys and values are kept.
    pub fn kv_type(&self) -> KvType {
        self.host_shape().map_or(KvType::F16, |s| s.kv_type)
    }

    /// Keys and values of a layer (counted from the range's first); `None` when a device has them.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> Option<LayerKv<'_>> {
        match &mut self.store {
            Store::Host(kv) => Some(kv.layer_mut(layer)),
            Store::Device(_) => None,
        }
    }

    /// Holds `n` more positions that nobody computed, with numbers that `fill` makes up: for what
    /// measures the cost of a long context, which does not depend on them. Returns whether it could:
    /// a device's memory is out of reach, and a context may be full.
    pub(crate) fn pretend(&mut self, n: usize, mut fill: impl FnMut(&mut [f32])) -> bool {
        let (from, layers) = (self.len, self.layers);
        let Store::Host(kv) = &mut self.store else {
            return false;
        };
        if n > self.n_ctx - from {
            return false;
        }
        let width = kv.shape().heads * kv.shape().head_dim;
        let (mut keys, mut values) = (vec![0.0; width], vec![0.0; width]);
        for layer in 0..layers {
            let mut layer = kv.layer_mut(layer);
            for at in from..from + n {
                fill(&mut keys);
                fill(&mut values);
                layer.put(at, &keys, &values);
            }
        }
        self.len += n;
        true
    }

    /// What a device keeps, if it is a `T`.
    #[cfg(feature = "gpu")]
    pub(crate) fn device_mut<T: DeviceKv>(&mut self) -> Option<&mut T> {
        match &mut self.store {
            Store::Host(_) => None,
            Store::Device(kv) => kv.as_any_mut().downcast_mut(),
        }
    }
}
