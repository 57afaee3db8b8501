//! JSON collections that stop growing: a hostile file is an error before it is a heap.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// An array of at most `N` elements.
#[derive(Debug)]
pub(super) struct BoundedVec<T, const N: usize>(pub(super) Vec<T>);

impl<T, const N: usize> Default for BoundedVec<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// An object with at most `N` entries, in the file's order.
#[derive(Debug)]
pub(super) struct BoundedMap<T, const N: usize>(pub(super) Vec<(String, T)>);

struct Seq<T, const N: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Seq<T, N> {
    type Value = BoundedVec<T, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {N} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = seq.next_element()? {
            if all.len() == N {
                return Err(A::Error::custom(format!("more than {N} elements")));
            }
            all.push(item);
        }
        Ok(BoundedVec(all))
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for BoundedVec<T, N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Seq(PhantomData))
    }
}

struct Map<T, const N: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Map<T, N> {
    type Value = BoundedMap<T, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with at most {N} entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = map.next_entry()? {
            if all.len() == N {
                return Err(A::Error::custom(format!("more than {N} entries")));
            }
            all.push(entry);
        }
        Ok(BoundedMap(all))
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for BoundedMap<T, N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Map(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_ends() {
        let list: BoundedVec<u32, 3> = serde_json::from_str("[1,2,3]").unwrap();
        assert_eq!(list.0, [1, 2, 3]);
        assert!(serde_json::from_str::<BoundedVec<u32, 3>>("[1,2,3,4]").is_err());
        let map: BoundedMap<u32, 2> = serde_json::from_str(r#"{"b":1,"a":2}"#).unwrap();
        assert_eq!(map.0, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
        assert!(serde_json::from_str::<BoundedMap<u32, 1>>(r#"{"b":1,"a":2}"#).is_err());
    }
}
