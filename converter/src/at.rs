//! Reading and writing at a position, which needs no shared cursor and so no lock.

use std::fs::File;
use std::io;

use formats::pair::Digest;

/// Bytes read at once where nothing else decides it.
const PIECE: usize = 1 << 20;

/// The digest of `bytes` bytes from position `at`; `buffer` is room to work in.
///
/// # Errors
/// As [`read`].
pub fn digest(file: &File, at: u64, bytes: usize, buffer: &mut Vec<u8>) -> io::Result<Digest> {
    buffer.resize(bytes.min(PIECE), 0);
    let mut hasher = blake3::Hasher::new();
    let mut done = 0;
    while done < bytes {
        let part = &mut buffer[..(bytes - done).min(PIECE)];
        read(file, part, at + done as u64)?;
        hasher.update(part);
        done += part.len();
    }
    Ok(hasher.finalize().into())
}

/// Fills `buffer` from position `at`.
///
/// # Errors
/// The system's, [`io::ErrorKind::UnexpectedEof`] when the file ends before.
#[cfg(unix)]
pub fn read(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

/// Writes all of `bytes` at position `at`.
///
/// # Errors
/// The system's.
#[cfg(unix)]
pub fn write(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

/// Fills `buffer` from position `at`.
///
/// # Errors
/// The system's, [`io::ErrorKind::UnexpectedEof`] when the file ends before.
#[cfg(windows)]
pub fn read(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bytes` at position `at`.
///
/// # Errors
/// The system's.
#[cfg(windows)]
pub fn write(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
