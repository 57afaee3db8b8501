//! Looking on while rows go through the layers.

use super::matmul::ActBuf;

/// Which matrices of a layer the rows are about to meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// `attn_q`, `attn_k` and `attn_v`, which share their input.
    AttnIn,
    /// `attn_output`.
    AttnOutput,
    /// `ffn_gate` and `ffn_up`, which share their input.
    FfnIn,
    /// `ffn_down`.
    FfnDown,
    /// The head.
    Head,
}

/// Activation rows, seen in place.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn of(buf: &'a ActBuf) -> Self {
        Self {
            values: buf.values(),
            stride: buf.stride(),
            width: buf.cols(),
        }
    }

    /// Rows of `width` values without gaps.
    pub fn packed(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            stride: width,
            width,
        }
    }

    /// The rows, each `width` values.
    pub fn iter(&self) -> impl Iterator<Item = &'a [f32]> {
        let width = self.width;
        self.values
            .chunks_exact(self.stride.max(1))
            .map(move |row| &row[..width])
    }
}

/// Sees the rows of a pass. With `()` nobody looks and nothing is paid.
pub trait Observer {
    /// `rows` are about to be multiplied with the matrices `site` of layer `layer` (of the whole
    /// model; for [`Site::Head`] the number of layers).
    fn input(&mut self, layer: usize, site: Site, rows: Rows<'_>);

    /// `rows` have left the first `layers` layers of the model: what would travel at that cut.
    /// The first of them stands at position `first`.
    fn hidden(&mut self, layers: usize, first: usize, rows: Rows<'_>);
}

impl Observer for () {
    #[inline]
    fn input(&mut self, _: usize, _: Site, _: Rows<'_>) {}

    #[inline]
    fn hidden(&mut self, _: usize, _: usize, _: Rows<'_>) {}
}
