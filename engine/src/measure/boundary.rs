//! Rows through a codec, as they would travel, and what that costs in bytes.

use formats::wire::{self, Codec, CutStatistics, Expect, Origin, PairTag, Scratch};

use crate::role::RunError;

/// A codec at a boundary, and the frames that it has made.
pub(super) struct Boundary {
    /// `auto` resolved.
    pub(super) codec: Codec,
    /// Rows of a frame, at most.
    pub(super) frame_rows: usize,
    /// Bytes of complete frames so far.
    pub(super) bytes: usize,
    /// Rows so far.
    pub(super) rows: usize,
    /// Bytes of the largest frame.
    pub(super) largest: usize,
    scratch: Scratch,
    frame: Vec<u8>,
    decoded: Vec<f32>,
}

impl Boundary {
    /// `codec` between halves of a pair that knows `cut` of its rows of `width` values.
    pub(super) fn new(
        codec: &Codec,
        cut: Option<&CutStatistics>,
        width: usize,
        frame_rows: usize,
    ) -> Self {
        let scratch = Scratch::calibrated(cut.and_then(|c| c.channels(width)));
        Self::with_scratch(codec.resolve(cut), scratch, frame_rows)
    }

    /// A codec that is not `auto`; `scratch` knows the channels if it needs them.
    pub(super) fn with_scratch(codec: Codec, scratch: Scratch, frame_rows: usize) -> Self {
        Self {
            codec,
            frame_rows: frame_rows.max(1),
            bytes: 0,
            rows: 0,
            largest: 0,
            scratch,
            frame: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// Sends `rows` of `width` values, which stand at positions `first ..`, through the codec in
    /// place.
    pub(super) fn pass(
        &mut self,
        first: usize,
        width: usize,
        rows: &mut [f32],
    ) -> Result<(), RunError> {
        let pair_tag = PairTag([0; 4]);
        for (i, group) in rows.chunks_mut(self.frame_rows * width).enumerate() {
            let first_position = (first + i * self.frame_rows) as u32;
            let origin = Origin {
                pair_tag,
                first_position,
                width,
            };
            wire::encode(
                &self.codec,
                &origin,
                group,
                &mut self.scratch,
                &mut self.frame,
            )?;
            let expect = Expect {
                pair_tag,
                width,
                max_rows: self.frame_rows,
            };
            wire::decode(&self.frame, &expect, &mut self.scratch, &mut self.decoded)?;
            group.copy_from_slice(&self.decoded);
            self.bytes += self.frame.len();
            self.largest = self.largest.max(self.frame.len());
            self.rows += group.len() / width;
        }
        Ok(())
    }
}
