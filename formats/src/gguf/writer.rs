//! Writing a GGUF: header first, then tensor data streamed in directory order.

use std::io::{self, Write};

use super::header::DEFAULT_ALIGNMENT;
use super::value::{Metadata, put_string};
use crate::blocks::BlockType;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// Name.
    pub name: String,
    /// Sizes in GGML order: `dims[0]` is the length of a row.
    pub dims: Vec<u64>,
    /// Block type.
    pub block_type: BlockType,
}

impl TensorDecl {
    /// Bytes of data, `None` when rows are not whole blocks or the size overflows.
    pub fn bytes(&self) -> Option<usize> {
        let (row, rest) = self.dims.split_first()?;
        let rows = rest.iter().try_fold(1_u64, |a, d| a.checked_mul(*d))?;
        self.block_type
            .row_bytes(usize::try_from(*row).ok()?)?
            .checked_mul(usize::try_from(rows).ok()?)
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sink failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A declaration that has no size.
    #[error("tensor `{0}`: its rows are not whole blocks of its type")]
    BadTensor(String),
    /// More or fewer bytes than declared.
    #[error("tensor `{tensor}`: {got} bytes written, {want} declared")]
    WrongSize {
        /// The tensor.
        tensor: String,
        /// Bytes declared.
        want: usize,
        /// Bytes that would have been written.
        got: usize,
    },
}

/// A header as bytes, and where the data will lie.
#[derive(Debug)]
pub struct EncodedHeader {
    /// Magic to the padding before the data section.
    pub bytes: Vec<u8>,
    /// Absolute file position of each tensor.
    pub starts: Vec<usize>,
    /// Size of the whole file.
    pub file_bytes: usize,
}

/// Bytes that `metadata` takes in a header.
pub fn metadata_bytes(metadata: &Metadata) -> usize {
    // A key with its length, the type, the value.
    metadata
        .iter()
        .map(|(key, value)| 8 + key.len() + 4 + value.payload().len())
        .sum()
}

/// The size of the file that [`encode_header`] lays out for `tensors` behind metadata of
/// `metadata_bytes` bytes, without making the header.
///
/// # Errors
/// When a tensor's rows are not whole blocks.
pub fn file_bytes(
    metadata_bytes: usize,
    alignment: usize,
    tensors: &[TensorDecl],
) -> Result<usize, WriteError> {
    let alignment = alignment.max(1);
    let (mut header, mut offset, mut end) = (24 + metadata_bytes, 0_usize, 0);
    for t in tensors {
        let bytes = t
            .bytes()
            .ok_or_else(|| WriteError::BadTensor(t.name.clone()))?;
        header += 8 + t.name.len() + 4 + 8 * t.dims.len() + 4 + 8;
        end = offset + bytes;
        offset = end.next_multiple_of(alignment);
    }
    Ok(header.next_multiple_of(alignment) + end.next_multiple_of(alignment))
}

/// The `general.alignment` that `metadata` states, or GGUF's own.
pub fn alignment_of(metadata: &Metadata) -> usize {
    metadata
        .get("general.alignment")
        .and_then(super::Value::as_u32)
        .map_or(DEFAULT_ALIGNMENT, |a| (a as usize).max(1))
}

/// Encodes a GGUF v3 header. `general.alignment` in `metadata` is honoured.
///
/// # Errors
/// When a tensor's rows are not whole blocks.
pub fn encode_header(
    metadata: &Metadata,
    tensors: &[TensorDecl],
) -> Result<EncodedHeader, WriteError> {
    let alignment = alignment_of(metadata);
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key.as_bytes());
        out.extend((value.value_type() as u32).to_le_bytes());
        out.extend(value.payload());
    }
    let mut offset = 0_usize;
    let mut starts = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for t in tensors {
        let bytes = t
            .bytes()
            .ok_or_else(|| WriteError::BadTensor(t.name.clone()))?;
        put_string(&mut out, t.name.as_bytes());
        out.extend((t.dims.len() as u32).to_le_bytes());
        for d in &t.dims {
            out.extend(d.to_le_bytes());
        }
        out.extend(t.block_type.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        starts.push(offset);
        end = offset + bytes;
        offset = end.next_multiple_of(alignment);
    }
    out.resize(out.len().next_multiple_of(alignment), 0);
    let data_start = out.len();
    for start in &mut starts {
        *start += data_start;
    }
    // GGML pads after the last tensor too, and some readers expect it.
    let file_bytes = data_start + end.next_multiple_of(alignment);
    Ok(EncodedHeader {
        bytes: out,
        starts,
        file_bytes,
    })
}

/// Streams a GGUF into a sink: the header at once, then the tensors in order, in pieces of any
/// size.
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    tensors: Vec<TensorDecl>,
    header: EncodedHeader,
    /// The tensor being written and the bytes of it so far.
    current: usize,
    written: usize,
    position: usize,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// When a declaration has no size or the sink fails.
    pub fn new(
        mut sink: W,
        metadata: &Metadata,
        tensors: Vec<TensorDecl>,
    ) -> Result<Self, WriteError> {
        let header = encode_header(metadata, &tensors)?;
        sink.write_all(&header.bytes)?;
        let position = header.bytes.len();
        Ok(Self {
            sink,
            tensors,
            header,
            current: 0,
            written: 0,
            position,
        })
    }

    /// The tensor whose bytes come next, `None` when all are written.
    pub fn current(&self) -> Option<&TensorDecl> {
        self.tensors.get(self.current)
    }

    /// Writes more bytes of the current tensor; moves on when it is complete.
    ///
    /// # Errors
    /// When `bytes` reach past the end of the tensor, or the sink fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let Some(t) = self.tensors.get(self.current) else {
            return Err(WriteError::WrongSize {
                tensor: "(after the last)".into(),
                want: 0,
                got: bytes.len(),
            });
        };
        let want = t
            .bytes()
            .ok_or_else(|| WriteError::BadTensor(t.name.clone()))?;
        let got = self.written + bytes.len();
        if got > want {
            return Err(WriteError::WrongSize {
                tensor: t.name.clone(),
                want,
                got,
            });
        }
        if self.written == 0 {
            self.pad_to(self.header.starts[self.current])?;
        }
        self.sink.write_all(bytes)?;
        self.position += bytes.len();
        self.written = got;
        if got == want {
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Pads the end and gives the sink back.
    ///
    /// # Errors
    /// When a tensor is missing or incomplete, or the sink fails.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if let Some(t) = self.tensors.get(self.current) {
            return Err(WriteError::WrongSize {
                tensor: t.name.clone(),
                want: t.bytes().unwrap_or(0),
                got: self.written,
            });
        }
        self.pad_to(self.header.file_bytes)?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn pad_to(&mut self, position: usize) -> io::Result<()> {
        const ZEROS: [u8; 64] = [0; 64];
        while self.position < position {
            let n = (position - self.position).min(ZEROS.len());
            self.sink.write_all(&ZEROS[..n])?;
            self.position += n;
        }
        Ok(())
    }
}
