//! GGML's rows to the planes of a matrix on the GPU.
//!
//! A [`Layout`] says where the planes of a whole matrix lie in its buffer. They can be made at once with
//! [`BlockShader::repack`], or in pieces of some rows: for each plane [`Layout::segment`] says where the
//! rows' bytes go and [`Layout::gather`] makes them.

use std::ops::Range;

use crate::blocks::{BlockShader, MAX_PLANES, Plane};

/// Weights of a run, to whole numbers of which rows of floats are padded.
pub const RUN: usize = 32;

/// Bytes that a plane is aligned to and padded to: a `vec4<u32>`.
const ALIGN: usize = 16;

/// Rows of a piece should be a multiple of this: then every segment begins at a multiple of 4
/// bytes, as copies of buffers demand, and ends there too, unless the matrix ends.
pub const ROW_STEP: usize = 4;

/// Rows that are not those of a matrix of this type, or do not fit where they should go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepackError {
    /// The rows are not whole blocks.
    #[error("a row of {cols} weights is not whole {name} blocks of {block_len}")]
    Columns {
        /// Type of the matrix.
        name: &'static str,
        /// Weights of a block.
        block_len: usize,
        /// Weights of the row.
        cols: usize,
    },
    /// A plane begins beyond what a `u32` counts in words, or the size overflows.
    #[error(
        "a {name} matrix of {rows} × {cols} is too large for one buffer: cut it by rows into several"
    )]
    TooLarge {
        /// Type of the matrix.
        name: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Weights of a row.
        cols: usize,
    },
    /// A slice is not as long as its contents.
    #[error("{what} of a {name} matrix: {got} bytes given, {wanted} needed")]
    Bytes {
        /// What the slice should hold.
        what: &'static str,
        /// Type of the matrix.
        name: &'static str,
        /// Bytes of the slice.
        got: usize,
        /// Bytes it should have.
        wanted: usize,
    },
    /// No such plane, or rows beyond the last.
    #[error(
        "no plane {plane} with rows {} to {} in a {name} matrix of {} rows in {} planes", rows.start, rows.end, of.0, of.1
    )]
    Range {
        /// Type of the matrix.
        name: &'static str,
        /// Plane asked for.
        plane: usize,
        /// Rows asked for.
        rows: Range<usize>,
        /// Rows and planes that there are.
        of: (usize, usize),
    },
}

/// Where the planes of a matrix lie in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Rows of the matrix.
    pub rows: u32,
    /// Weights of a row.
    pub cols: u32,
    /// Runs of a row: `cols / 32`, rounded up.
    pub runs: u32,
    /// First word of each plane, the table as the last; 0 for those that the type does not have.
    pub plane: [u32; MAX_PLANES],
    /// Bytes of the buffer, a multiple of 16.
    pub bytes: usize,
    /// Bytes of each plane without its padding.
    plane_bytes: [usize; MAX_PLANES],
    planes: usize,
    block: &'static BlockShader,
}

impl Layout {
    /// Where the bytes of these rows lie in the buffer, in this plane.
    ///
    /// # Errors
    /// [`RepackError::Range`] for a plane or rows that there are not.
    pub fn segment(&self, plane: usize, rows: Range<usize>) -> Result<Range<usize>, RepackError> {
        let count = self.rows as usize;
        if plane >= self.block.planes.len() || rows.start > rows.end || rows.end > count {
            return Err(RepackError::Range {
                name: self.block.name,
                plane,
                rows,
                of: (count, self.block.planes.len()),
            });
        }
        let start = self.plane[plane] as usize * 4;
        let row = self.plane_bytes[plane].checked_div(count).unwrap_or(0);
        Ok(start + rows.start * row..start + rows.end * row)
    }

    /// Where the table lies in the buffer; empty when the type has none.
    pub fn table(&self) -> Range<usize> {
        let last = self.planes - 1;
        let start = self.plane[last] as usize * 4;
        match self.block.table {
            Some(_) => start..start + self.plane_bytes[last],
            None => self.bytes..self.bytes,
        }
    }

    /// The bytes of one plane of some rows: of each block of `bytes`, GGML's rows `rows` of the matrix,
    /// its bytes that belong to the plane; `out` has the length of [`Self::segment`].
    ///
    /// # Errors
    /// [`RepackError`] for a plane or rows that there are not, and slices of other lengths.
    pub fn gather(
        &self,
        plane: usize,
        rows: Range<usize>,
        bytes: &[u8],
        out: &mut [u8],
    ) -> Result<(), RepackError> {
        let segment = self.segment(plane, rows.clone())?;
        let block = self.block;
        let row_bytes = block.row_bytes(self.cols as usize);
        block.check("rows", bytes, rows.len() * row_bytes)?;
        block.check("plane", out, segment.len())?;
        if out.is_empty() {
            return Ok(());
        }
        if block.block_len == 1 {
            let padded = out.len() / rows.len();
            for (out, row) in out
                .chunks_exact_mut(padded)
                .zip(bytes.chunks_exact(row_bytes))
            {
                let (values, padding) = out.split_at_mut(row_bytes);
                values.copy_from_slice(row);
                padding.fill(0);
            }
            return Ok(());
        }
        let Plane { start, end } = block.planes[plane];
        let blocks = bytes.chunks_exact(block.block_bytes);
        for (out, block) in out.chunks_exact_mut(end - start).zip(blocks) {
            out.copy_from_slice(&block[start..end]);
        }
        Ok(())
    }
}

impl BlockShader {
    /// Where the planes of a matrix lie.
    ///
    /// # Errors
    /// [`RepackError::Columns`] when the rows are not whole blocks, [`RepackError::TooLarge`] when
    /// the planes cannot be addressed.
    pub fn layout(&'static self, rows: usize, cols: usize) -> Result<Layout, RepackError> {
        let name = self.name;
        if !cols.is_multiple_of(self.block_len) {
            return Err(RepackError::Columns {
                name,
                block_len: self.block_len,
                cols,
            });
        }
        self.place(rows, cols)
            .ok_or(RepackError::TooLarge { name, rows, cols })
    }

    fn place(&'static self, rows: usize, cols: usize) -> Option<Layout> {
        let runs = u32::try_from(cols.div_ceil(RUN)).ok()?;
        let row_blocks = self.padded_cols(cols)? / self.block_len;
        // `unpack32` numbers the runs of all rows in a `u32`.
        u32::try_from(rows.checked_mul(runs as usize)?).ok()?;
        let mut layout = Layout {
            rows: u32::try_from(rows).ok()?,
            cols: u32::try_from(cols).ok()?,
            runs,
            plane: [0; MAX_PLANES],
            bytes: 0,
            plane_bytes: [0; MAX_PLANES],
            planes: 0,
            block: self,
        };
        let blocks = row_blocks.checked_mul(rows)?;
        let table = self.table.map(|table| Some(table.words() * 4));
        let sizes = self.planes.iter().map(|p| p.bytes().checked_mul(blocks));
        for size in sizes.chain(table) {
            let size = size?;
            layout.plane[layout.planes] = u32::try_from(layout.bytes / 4).ok()?;
            layout.plane_bytes[layout.planes] = size;
            layout.planes += 1;
            layout.bytes = layout
                .bytes
                .checked_add(size.checked_next_multiple_of(ALIGN)?)?;
        }
        // The last word must have a number too.
        u32::try_from(layout.bytes / 4).ok()?;
        Some(layout)
    }

    /// Weights of a row with its padding: floats are padded to whole runs, blocks are whole.
    fn padded_cols(&self, cols: usize) -> Option<usize> {
        cols.checked_next_multiple_of(if self.block_len == 1 { RUN } else { 1 })
    }

    /// Bytes of a row as GGML stores it; `cols` has been checked by [`Self::layout`].
    fn row_bytes(&self, cols: usize) -> usize {
        cols / self.block_len * self.block_bytes
    }

    /// The buffer of a whole matrix from GGML's rows, and the table's words for types that have
    /// one. `out` is overwritten.
    ///
    /// # Errors
    /// [`RepackError`] when the bytes are not those of such a matrix, or the words not a table's.
    pub fn repack(
        &'static self,
        rows: usize,
        cols: usize,
        bytes: &[u8],
        table: &[u32],
        out: &mut Vec<u8>,
    ) -> Result<Layout, RepackError> {
        let layout = self.layout(rows, cols)?;
        self.check("rows", bytes, rows * self.row_bytes(cols))?;
        if table.len() * 4 != layout.table().len() {
            return Err(RepackError::Bytes {
                what: "table",
                name: self.name,
                got: table.len() * 4,
                wanted: layout.table().len(),
            });
        }
        out.clear();
        out.resize(layout.bytes, 0);
        for plane in 0..self.planes.len() {
            let segment = layout.segment(plane, 0..rows)?;
            layout.gather(plane, 0..rows, bytes, &mut out[segment])?;
        }
        let words = out[layout.table()].as_chunks_mut::<4>().0.iter_mut();
        for (bytes, word) in words.zip(table) {
            *bytes = word.to_le_bytes();
        }
        Ok(layout)
    }

    fn check(&self, what: &'static str, slice: &[u8], wanted: usize) -> Result<(), RepackError> {
        if slice.len() == wanted {
            return Ok(());
        }
        Err(RepackError::Bytes {
            what,
            name: self.name,
            got: slice.len(),
            wanted,
        })
    }
}
