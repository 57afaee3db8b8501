//! Threshold splitting: the few large values of a row leave the dense part and travel exactly.
//!
//! Sparse section of a payload: the number of outliers of each row, then the columns of all
//! rows, then the values, bit for bit.

use super::DecodeError;
use super::codec::Tau;
use super::cursor::{Reader, put_varint};

/// Magnitudes from here on (2^120), infinities and NaN always travel exactly, so that no
/// arithmetic on the dense part can overflow.
pub(super) const HUGE: f32 = f32::from_bits((127 + 120) << 23);

/// A value this many sigmas out does not count towards sigma.
const TRIM: f64 = 4.0;
/// Most rows settle in three or four rounds.
const ROUNDS: usize = 16;
/// Partial sums of one row. Part of the definition: another number gives other last bits.
const LANES: usize = 8;

/// The root mean square of `row` about zero without its outliers: computed over all values below
/// 2^120, then again and again over those below four times the last result, until no more
/// values leave.
///
/// About zero, because that is what the norm in front of the next layer divides by; trimmed,
/// because one spike of 22 000 would otherwise be most of it. Zero for a row of zeros (but for
/// outliers) and where nothing is left. Plain sums in a fixed order and an IEEE square root: the
/// same bits on every machine.
pub fn trimmed_sigma(row: &[f32]) -> f64 {
    let mut limit = f64::from(HUGE);
    let mut sigma = 0.0;
    let mut last = usize::MAX;
    for _ in 0..ROUNDS {
        let mut sums = [0f64; LANES];
        let mut counts = [0usize; LANES];
        for chunk in row.chunks(LANES) {
            for (lane, &x) in chunk.iter().enumerate() {
                let a = f64::from(x).abs();
                // NaN is below nothing.
                let inside = a < limit;
                sums[lane] += if inside { a * a } else { 0.0 };
                counts[lane] += usize::from(inside);
            }
        }
        let kept = counts.iter().sum();
        if kept == 0 || kept == last {
            break;
        }
        last = kept;
        sigma = (sums.iter().sum::<f64>() / kept as f64).sqrt();
        limit = TRIM * sigma;
    }
    sigma
}

/// The magnitude from which on a value of a row with `sigma` is an outlier.
pub(super) fn limit(tau: Tau, sigma: f64) -> f32 {
    match tau {
        Tau::Absolute(t) => t.min(HUGE),
        // A zero never travels as an outlier of a row of zeros.
        Tau::Sigma(k) => ((f64::from(k) * sigma) as f32).clamp(f32::from_bits(1), HUGE),
    }
}

/// The outliers of a frame.
#[derive(Default)]
pub(super) struct Sparse {
    /// Outliers of each row.
    pub(super) counts: Vec<u32>,
    /// Columns, ascending within a row.
    pub(super) columns: Vec<u32>,
    /// Values, bit for bit.
    pub(super) values: Vec<f32>,
}

impl Sparse {
    pub(super) fn clear(&mut self) {
        self.counts.clear();
        self.columns.clear();
        self.values.clear();
    }

    /// Takes the values of `row` that are not below `limit` in magnitude; the others are appended
    /// to `dense`.
    pub(super) fn split(&mut self, row: &[f32], limit: f32, dense: &mut Vec<f32>) {
        let before = self.columns.len();
        let mut start = 0;
        for (column, &x) in row.iter().enumerate() {
            if x.abs() < limit {
                continue;
            }
            dense.extend_from_slice(&row[start..column]);
            start = column + 1;
            self.columns.push(column as u32);
            self.values.push(x);
        }
        dense.extend_from_slice(&row[start..]);
        self.counts.push((self.columns.len() - before) as u32);
    }

    /// Appends the sparse section.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for &count in &self.counts {
            put_varint(out, count);
        }
        let mut columns = self.columns.iter();
        for &count in &self.counts {
            let mut next = 0;
            for &column in columns.by_ref().take(count as usize) {
                put_varint(out, column - next);
                next = column + 1;
            }
        }
        for value in &self.values {
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
    }

    /// Reads the sparse section of `rows` rows of `width`. Allocates no more than a small
    /// multiple of what `r` holds.
    pub(super) fn read(
        &mut self,
        r: &mut Reader<'_>,
        rows: usize,
        width: usize,
    ) -> Result<(), DecodeError> {
        self.clear();
        let mut total = 0usize;
        for _ in 0..rows {
            let count = r.varint("number of outliers")?;
            if count as usize > width {
                return Err(DecodeError::Malformed {
                    what: "number of outliers",
                });
            }
            total += count as usize;
            self.counts.push(count);
        }
        // A column takes a byte at least, a value four.
        if total > r.left() / 5 {
            return Err(DecodeError::Truncated { what: "outliers" });
        }
        for &count in &self.counts {
            let mut next = 0u32;
            for _ in 0..count {
                let column = r
                    .varint("outlier column")?
                    .checked_add(next)
                    .filter(|&c| (c as usize) < width)
                    .ok_or(DecodeError::Malformed {
                        what: "outlier column",
                    })?;
                self.columns.push(column);
                next = column + 1;
            }
        }
        let values = r.take(4 * total, "outlier values")?;
        let (values, _) = values.as_chunks::<4>();
        self.values
            .extend(values.iter().map(|v| f32::from_le_bytes(*v)));
        Ok(())
    }

    /// Outliers before each row and of each row, as index ranges into `columns` and `values`.
    pub(super) fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.counts.iter().scan(0usize, |start, &count| {
            let range = *start..*start + count as usize;
            *start = range.end;
            Some(range)
        })
    }

    /// Fills `row`: the outliers in `range` at their columns, between them `dense(skipped, slot)`
    /// for each stretch, where `skipped` is how many dense values stood before it.
    pub(super) fn merge(
        &self,
        range: std::ops::Range<usize>,
        row: &mut [f32],
        mut dense: impl FnMut(usize, &mut [f32]) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let (mut start, mut taken) = (0, 0);
        for (&column, &value) in self.columns[range.clone()].iter().zip(&self.values[range]) {
            let column = column as usize;
            dense(taken, &mut row[start..column])?;
            taken += column - start;
            row[column] = value;
            start = column + 1;
        }
        dense(taken, &mut row[start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sigma_does_not_feel_spikes() {
        let mut row: Vec<f32> = (0..576)
            .map(|i| if i % 2 == 0 { 3.0 } else { -3.0 })
            .collect();
        assert_eq!(trimmed_sigma(&row), 3.0);
        row[7] = 22_000.0;
        row[300] = -21_000.0;
        row[301] = f32::NAN;
        row[302] = f32::NEG_INFINITY;
        row[303] = f32::MAX;
        assert_eq!(trimmed_sigma(&row), 3.0);
        assert_eq!(trimmed_sigma(&[0.0; 9]), 0.0);
        assert_eq!(trimmed_sigma(&[f32::NAN; 3]), 0.0);
        assert_eq!(trimmed_sigma(&[]), 0.0);
    }

    #[test]
    fn a_spike_in_a_row_of_zeros_is_its_only_outlier() {
        let mut row = [0.0; 64];
        row[9] = 5.0;
        let (mut sparse, mut dense) = (Sparse::default(), Vec::new());
        sparse.split(
            &row,
            limit(Tau::Sigma(4.0), trimmed_sigma(&row)),
            &mut dense,
        );
        assert_eq!(sparse.columns, [9]);
        assert_eq!(dense, [0.0; 63]);
    }

    #[test]
    fn more_outliers_than_bytes_are_refused_before_they_are_stored() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 1 << 19);
        bytes.extend([0; 64]);
        let mut sparse = Sparse::default();
        let got = sparse.read(&mut Reader::new(&bytes), 1, 1 << 20);
        assert_eq!(got, Err(DecodeError::Truncated { what: "outliers" }));
        assert_eq!(sparse.columns.capacity(), 0);
    }

    proptest! {
        #[test]
        fn split_and_merge_are_exact(
            bits in proptest::collection::vec(any::<u32>(), 1..200),
            width in 1usize..40,
            t in 0f32..1e20,
        ) {
            let all: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let all = &all[..all.len() / width * width];
            let (mut sparse, mut dense) = (Sparse::default(), Vec::new());
            for row in all.chunks(width) {
                sparse.split(row, limit(Tau::Absolute(t), 1.0), &mut dense);
            }
            prop_assert!(dense.iter().all(|x| x.abs() < t));
            prop_assert!(sparse.values.iter().all(|x| x.is_nan() || x.abs() >= t));
            let mut bytes = Vec::new();
            sparse.write(&mut bytes);
            let mut back = Sparse::default();
            let mut r = Reader::new(&bytes);
            back.read(&mut r, all.len() / width, width).unwrap();
            r.finish().unwrap();
            let mut rows = vec![0.0; all.len()];
            let mut dense = &dense[..];
            for (row, range) in rows.chunks_mut(width).zip(back.ranges()) {
                let n = width - range.len();
                back.merge(range, row, |skip, slot| {
                    slot.copy_from_slice(&dense[skip..skip + slot.len()]);
                    Ok(())
                }).unwrap();
                dense = &dense[n..];
            }
            for (a, b) in all.iter().zip(&rows) {
                prop_assert_eq!(a.to_bits(), b.to_bits());
            }
        }
    }
}
