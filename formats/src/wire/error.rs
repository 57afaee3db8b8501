//! Why rows do not become a frame, or bytes do not become rows.

use super::codec::SpecError;
use super::frame::{MAX_WIDTH, PairTag, VERSION};

/// Why rows could not be put into a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A codec built in code with an option out of range.
    #[error(transparent)]
    Codec(#[from] SpecError),
    /// No rows can have this width.
    #[error("a row of {width} values cannot be sent; the width must be 1 to {MAX_WIDTH}")]
    Width {
        /// The width asked for.
        width: usize,
    },
    /// The values are not whole rows.
    #[error("{len} values are not whole rows of {width}")]
    NotWholeRows {
        /// Values given.
        len: usize,
        /// Width of a row.
        width: usize,
    },
    /// Positions past the end of the counter.
    #[error(
        "{rows} rows from position {first_position} on run past position 2^32; start a new sequence"
    )]
    Position {
        /// Position of the first row.
        first_position: u32,
        /// Rows given.
        rows: usize,
    },
    /// Trellis-coded rows of a pair that was not calibrated.
    #[error(
        "codec `tcq` needs a calibrated pair, and this one is not; run `splitrun calibrate` on the model and give its file to `splitconv --imatrix`, or use `ts-tabq`"
    )]
    NotCalibrated,
    /// The calibration is of other rows.
    #[error("the pair's calibration is of rows of {channels} values, these have {width}")]
    Channels {
        /// Channels calibrated.
        channels: usize,
        /// Width of a row.
        width: usize,
    },
    /// A value that no model in order computes.
    #[error(
        "row {row} of the frame has {value} in channel {channel}: the model or its input is damaged; check the file with `splitconv verify`"
    )]
    NotFinite {
        /// Index of the row in the frame.
        row: usize,
        /// Channel of the row.
        channel: usize,
        /// NaN or an infinity.
        value: String,
    },
    /// The compressor could not be set up, which is a lack of memory.
    #[error("zstd could not compress the frame: {cause}")]
    Zstd {
        /// What zstd says.
        cause: String,
    },
}

/// Why bytes are not a frame for this receiver. Every one leaves the receiver as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The first byte is not a frame's.
    #[error("not an activation frame: it starts with {first:#04x}; is the peer a splitrun?")]
    NotAFrame {
        /// The first byte.
        first: u8,
    },
    /// Written by another version.
    #[error(
        "the frame has format version {theirs}, this half reads {VERSION}; use the same release of splitrun on both sides"
    )]
    Version {
        /// The version of the frame.
        theirs: u8,
    },
    /// The bytes changed on their way.
    #[error("the frame is damaged: checksum {computed:08x} instead of {stored:08x}; send it again")]
    Checksum {
        /// In the frame, read as a little-endian number.
        stored: u32,
        /// Of the bytes that came.
        computed: u32,
    },
    /// A version 2 frame whose codes do not end where they must.
    #[error(
        "the frame is damaged, or of another pair: its codes do not end as they must; send it again, and use two files written by one splitconv run"
    )]
    Seed,
    /// Trellis-coded rows for a half that knows nothing of their channels.
    #[error(
        "the frame needs a calibrated pair, and this half is not; use two files written by one splitconv run"
    )]
    NotCalibrated,
    /// Of the halves of another conversion.
    #[error(
        "the frame is of another pair: ours is {ours}…, the frame's {theirs}…; use two files written by one splitconv run"
    )]
    OtherPair {
        /// The tag here.
        ours: PairTag,
        /// The tag in the frame.
        theirs: PairTag,
    },
    /// A coding this version does not know.
    #[error("the frame has coding {id}, which format version {VERSION} does not have")]
    Coding {
        /// The number in the header.
        id: u8,
    },
    /// Flags that mean nothing, or nothing together with the coding.
    #[error("the frame has flags {flags:#04x}, which its coding does not allow")]
    Flags {
        /// The flags in the header.
        flags: u8,
    },
    /// Rows of another model.
    #[error("the frame has rows of {theirs} values, this half works on {ours}")]
    Width {
        /// The width here.
        ours: usize,
        /// The width in the frame.
        theirs: u32,
    },
    /// More than the receiver allows at once.
    #[error("the frame has {rows} rows, at most {max} are allowed in one; send smaller chunks")]
    TooManyRows {
        /// Rows in the frame.
        rows: u32,
        /// Rows allowed.
        max: usize,
    },
    /// Positions past the end of the counter.
    #[error("the frame's {rows} rows from position {first_position} on run past position 2^32")]
    Position {
        /// Position of the first row.
        first_position: u32,
        /// Rows in the frame.
        rows: u32,
    },
    /// The frame ends within something.
    #[error("the frame ends within its {what}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
    },
    /// A field that no encoder writes so.
    #[error("the frame's {what} is malformed")]
    Malformed {
        /// The field.
        what: &'static str,
    },
    /// Bytes left over.
    #[error("the frame has {left} bytes too many")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// A compressed payload that claims more than its rows can take.
    #[error(
        "the frame's payload claims {claimed} bytes uncompressed, its rows take at most {most}"
    )]
    TooLarge {
        /// Bytes claimed.
        claimed: u64,
        /// Bytes possible.
        most: usize,
    },
    /// A compressed payload that does not decompress.
    #[error("the frame's payload does not decompress: {cause}")]
    Zstd {
        /// What zstd says.
        cause: String,
    },
    /// `Expect` itself is out of range.
    #[error("a receiver of {max_rows} rows of {width} values is not possible")]
    Expect {
        /// The width asked for.
        width: usize,
        /// The rows asked for.
        max_rows: usize,
    },
}
