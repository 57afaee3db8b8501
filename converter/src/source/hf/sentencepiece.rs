//! tokenizer.model: the pieces of a SentencePiece vocabulary, out of its protocol buffer.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::HfError;
use super::folder::Folder;

/// The file's name.
pub(super) const NAME: &str = "tokenizer.model";
/// Largest file; vocabularies of 256,000 pieces have 5 MB.
const MAX_BYTES: u64 = 64 << 20;
/// Most pieces.
const MAX_PIECES: usize = 1 << 20;
/// `TrainerSpec.ModelType.BPE`.
const BPE: i32 = 2;

/// One piece (`SentencePiece` of `sentencepiece_model.proto`).
#[derive(Clone, PartialEq, Message)]
pub(super) struct Piece {
    /// Its text.
    #[prost(string, tag = "1")]
    pub(super) text: String,
    /// The larger, the earlier it is merged.
    #[prost(float, tag = "2")]
    pub(super) score: f32,
    /// Its kind: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    #[prost(int32, optional, tag = "3")]
    pub(super) kind: Option<i32>,
}

/// The one field of `TrainerSpec` that matters.
#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

/// Reads the folder's pieces; `None` when it has no such file.
pub(super) fn read(folder: &Folder) -> Result<Option<Vec<Piece>>, HfError> {
    let Some(bytes) = folder.bytes(NAME, MAX_BYTES)? else {
        return Ok(None);
    };
    let path = folder.join(NAME);
    let damaged = |why: String| HfError::Vocabulary {
        path: path.clone(),
        why: format!("not a sound SentencePiece model: {why}"),
        way_out: "fetch the file again",
    };
    let (pieces, model_type) = decode(&bytes).map_err(damaged)?;
    if let Some(other) = model_type.filter(|t| *t != BPE) {
        let name = match other {
            1 => "unigram",
            3 => "word",
            4 => "char",
            _ => "an unknown kind",
        };
        return Err(HfError::Unsupported {
            path,
            what: format!("a SentencePiece model of kind `{name}`"),
            way_out: "splitrun knows SentencePiece's BPE, which Llama and Mistral use",
        });
    }
    Ok(Some(pieces))
}

/// Takes a `ModelProto` apart: its pieces, and the trainer's kind of model where it is said.
fn decode(mut bytes: &[u8]) -> Result<(Vec<Piece>, Option<i32>), String> {
    let bad = |e: prost::DecodeError| e.to_string();
    let mut pieces = Vec::new();
    let mut model_type = None;
    while !bytes.is_empty() {
        let (tag, wire) = decode_key(&mut bytes).map_err(bad)?;
        if !matches!(tag, 1 | 2) || wire != WireType::LengthDelimited {
            skip_field(wire, tag, &mut bytes, DecodeContext::default()).map_err(bad)?;
            continue;
        }
        let len = decode_varint(&mut bytes).map_err(bad)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (message, rest) = bytes
            .split_at_checked(len)
            .ok_or("a message is longer than the file")?;
        bytes = rest;
        if tag == 2 {
            model_type = Trainer::decode(message).map_err(bad)?.model_type;
        } else if pieces.len() == MAX_PIECES {
            return Err(format!("more than {MAX_PIECES} pieces"));
        } else {
            pieces.push(Piece::decode(message).map_err(bad)?);
        }
    }
    if pieces.is_empty() {
        return Err("it has no pieces".to_owned());
    }
    Ok((pieces, model_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file as the library writes it, with a field in front that nobody reads here.
    fn file(pieces: &[(&str, f32, Option<i32>)], model_type: Option<i32>) -> Vec<u8> {
        let mut out = vec![0x1a, 2, 8, 1];
        let mut put = |tag: u8, message: Vec<u8>| {
            out.extend([tag << 3 | 2, message.len() as u8]);
            out.extend(message);
        };
        for (piece, score, kind) in pieces {
            let piece = Piece {
                text: (*piece).to_owned(),
                score: *score,
                kind: *kind,
            };
            put(1, piece.encode_to_vec());
        }
        put(2, Trainer { model_type }.encode_to_vec());
        out
    }

    #[test]
    fn pieces_come_in_order() {
        let all = [
            ("<unk>", 0.0, Some(2)),
            ("▁t", -1.5, None),
            ("<0x0A>", 0.0, Some(6)),
        ];
        let (pieces, model_type) = decode(&file(&all, Some(BPE))).unwrap();
        assert_eq!(model_type, Some(BPE));
        let read: Vec<_> = pieces.iter().map(|p| (&*p.text, p.score, p.kind)).collect();
        assert_eq!(read, all);
    }

    #[test]
    fn damage_is_an_error() {
        let whole = file(&[("<unk>", 0.0, Some(2)), ("▁t", -1.5, None)], None);
        assert!(decode(&[]).is_err());
        for at in 0..whole.len() {
            // A cut may fall between two messages; then what is left is a file.
            let _ = decode(&whole[..at]);
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = decode(&bytes);
            }
        }
        assert!(decode(&whole[..6]).is_err(), "a length without its message");
        assert!(decode(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
