//! Typed metadata values, kept bit for bit.
//!
//! A value is its GGUF type and its encoded payload, exactly as it stood in the file. Reading a
//! value decodes; copying one copies bytes. So a conversion cannot change a width, a sign, a NaN
//! or a string that is not UTF-8.

use std::fmt;

/// GGUF's metadata value types, with their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // the names say it
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one value, `None` for strings and arrays.
    pub const fn fixed_size(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "str",
            Self::Array => "arr",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

/// One metadata value: its type and its encoded payload (without the type tag).
///
/// Only [`crate::gguf`]'s reader and the constructors here make one, so the payload is always
/// well formed: accessors cannot run past its end.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    ty: ValueType,
    payload: Vec<u8>,
}

impl Value {
    /// A value whose payload the reader has already checked.
    pub(crate) fn from_checked(ty: ValueType, payload: Vec<u8>) -> Self {
        Self { ty, payload }
    }

    /// A `u8`.
    pub fn u8(v: u8) -> Self {
        Self::from_checked(ValueType::U8, vec![v])
    }

    /// A `u16`.
    pub fn u16(v: u16) -> Self {
        Self::from_checked(ValueType::U16, v.to_le_bytes().to_vec())
    }

    /// A `u32`.
    pub fn u32(v: u32) -> Self {
        Self::from_checked(ValueType::U32, v.to_le_bytes().to_vec())
    }

    /// An `i32`.
    pub fn i32(v: i32) -> Self {
        Self::from_checked(ValueType::I32, v.to_le_bytes().to_vec())
    }

    /// A `u64`.
    pub fn u64(v: u64) -> Self {
        Self::from_checked(ValueType::U64, v.to_le_bytes().to_vec())
    }

    /// An `f32`.
    pub fn f32(v: f32) -> Self {
        Self::from_checked(ValueType::F32, v.to_le_bytes().to_vec())
    }

    /// A `bool`.
    pub fn bool(v: bool) -> Self {
        Self::from_checked(ValueType::Bool, vec![u8::from(v)])
    }

    /// A string.
    pub fn string(s: &str) -> Self {
        let mut p = Vec::with_capacity(8 + s.len());
        put_string(&mut p, s.as_bytes());
        Self::from_checked(ValueType::String, p)
    }

    /// An array of strings (bytes, since token pieces need not be UTF-8).
    pub fn string_array<S: AsRef<[u8]>>(items: &[S]) -> Self {
        let mut p = array_header(ValueType::String, items.len());
        for s in items {
            put_string(&mut p, s.as_ref());
        }
        Self::from_checked(ValueType::Array, p)
    }

    /// An array of `f32`.
    pub fn f32_array(items: &[f32]) -> Self {
        let mut p = array_header(ValueType::F32, items.len());
        p.extend(items.iter().flat_map(|v| v.to_le_bytes()));
        Self::from_checked(ValueType::Array, p)
    }

    /// An array of `i32`.
    pub fn i32_array(items: &[i32]) -> Self {
        let mut p = array_header(ValueType::I32, items.len());
        p.extend(items.iter().flat_map(|v| v.to_le_bytes()));
        Self::from_checked(ValueType::Array, p)
    }

    /// The GGUF type.
    pub fn value_type(&self) -> ValueType {
        self.ty
    }

    /// The encoded payload, without the type tag.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn bytes<const N: usize>(&self) -> Option<[u8; N]> {
        self.payload.as_slice().try_into().ok()
    }

    /// Any integer type, when it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self.ty {
            ValueType::U64 => self.bytes().map(u64::from_le_bytes),
            _ => self.as_i64().and_then(|v| v.try_into().ok()),
        }
    }

    /// Any integer type that fits an `i64`.
    pub fn as_i64(&self) -> Option<i64> {
        Some(match self.ty {
            ValueType::U8 => i64::from(u8::from_le_bytes(self.bytes()?)),
            ValueType::I8 => i64::from(i8::from_le_bytes(self.bytes()?)),
            ValueType::U16 => i64::from(u16::from_le_bytes(self.bytes()?)),
            ValueType::I16 => i64::from(i16::from_le_bytes(self.bytes()?)),
            ValueType::U32 => i64::from(u32::from_le_bytes(self.bytes()?)),
            ValueType::I32 => i64::from(i32::from_le_bytes(self.bytes()?)),
            ValueType::U64 => u64::from_le_bytes(self.bytes()?).try_into().ok()?,
            ValueType::I64 => i64::from_le_bytes(self.bytes()?),
            _ => return None,
        })
    }

    /// Any integer type, when it fits a `u32`.
    pub fn as_u32(&self) -> Option<u32> {
        self.as_u64().and_then(|v| v.try_into().ok())
    }

    /// A float (`f64` rounded to `f32`).
    pub fn as_f32(&self) -> Option<f32> {
        match self.ty {
            ValueType::F32 => self.bytes().map(f32::from_le_bytes),
            ValueType::F64 => self.bytes().map(|b| f64::from_le_bytes(b) as f32),
            _ => None,
        }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        match self.ty {
            ValueType::Bool => self.payload.first().map(|b| *b != 0),
            _ => None,
        }
    }

    /// A string, when it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self.ty {
            ValueType::String => std::str::from_utf8(self.payload.get(8..)?).ok(),
            _ => None,
        }
    }

    /// An array.
    pub fn as_array(&self) -> Option<Array<'_>> {
        if self.ty != ValueType::Array {
            return None;
        }
        let elem = u32::from_le_bytes(self.payload.get(..4)?.try_into().ok()?);
        let len = u64::from_le_bytes(self.payload.get(4..12)?.try_into().ok()?);
        Some(Array {
            elem: ValueType::from_id(elem)?,
            len: len.try_into().ok()?,
            bytes: self.payload.get(12..)?,
        })
    }
}

fn array_header(elem: ValueType, len: usize) -> Vec<u8> {
    let mut p = Vec::new();
    p.extend((elem as u32).to_le_bytes());
    p.extend((len as u64).to_le_bytes());
    p
}

/// Appends a GGUF string: `u64` length, bytes.
pub(crate) fn put_string(out: &mut Vec<u8>, s: &[u8]) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s);
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.ty)
    }
}

/// A short form for people: long strings and arrays are cut.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(a) = self.as_array() {
            return write!(f, "[{} × {}]", a.len, a.elem);
        }
        match self.ty {
            ValueType::String => {
                let text = String::from_utf8_lossy(self.payload.get(8..).unwrap_or(&[]));
                let short: String = text.chars().take(60).collect();
                let dots = if short.len() < text.len() { "…" } else { "" };
                write!(f, "{short:?}{dots}")
            }
            ValueType::F32 => write!(f, "{}", self.as_f32().unwrap_or_default()),
            ValueType::F64 => {
                write!(
                    f,
                    "{}",
                    self.bytes().map(f64::from_le_bytes).unwrap_or_default()
                )
            }
            ValueType::Bool => write!(f, "{}", self.as_bool().unwrap_or_default()),
            ValueType::U64 => write!(f, "{}", self.as_u64().unwrap_or_default()),
            _ => write!(f, "{}", self.as_i64().unwrap_or_default()),
        }
    }
}

/// A view of an array value.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    elem: ValueType,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Type of the elements.
    pub fn elem_type(&self) -> ValueType {
        self.elem
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings of a string array as bytes; `None` for another element type.
    pub fn strings(&self) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        if self.elem != ValueType::String {
            return None;
        }
        let mut rest = self.bytes;
        Some(std::iter::from_fn(move || {
            let n = u64::from_le_bytes(rest.get(..8)?.try_into().ok()?);
            let (head, tail) = rest.get(8..)?.split_at_checked(n.try_into().ok()?)?;
            rest = tail;
            Some(head)
        }))
    }

    /// The elements of an `f32` array.
    pub fn f32s(&self) -> Option<impl ExactSizeIterator<Item = f32> + use<'a>> {
        (self.elem == ValueType::F32).then(|| {
            let (chunks, _) = self.bytes.as_chunks::<4>();
            chunks.iter().map(|b| f32::from_le_bytes(*b))
        })
    }

    /// The elements of an `i32` or `u32` array.
    pub fn i32s(&self) -> Option<impl ExactSizeIterator<Item = i32> + use<'a>> {
        matches!(self.elem, ValueType::I32 | ValueType::U32).then(|| {
            let (chunks, _) = self.bytes.as_chunks::<4>();
            chunks.iter().map(|b| i32::from_le_bytes(*b))
        })
    }
}

/// The metadata of a file, in the file's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Sets `key`: in place when it stands already, else at the end.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// Removes every key for which `drop` is true.
    pub fn remove_if(&mut self, mut drop: impl FnMut(&str) -> bool) {
        self.entries.retain(|(k, _)| !drop(k));
    }

    /// Keys and values in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends without looking for a duplicate (the reader has looked).
    pub(crate) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }
}
