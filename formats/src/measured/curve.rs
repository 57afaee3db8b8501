//! A time as a function of how many rows are computed at once.

use serde::{Deserialize, Serialize};

use super::error::{MeasuredErrorKind as Kind, amount, value};

/// The most points of a curve.
pub const MAX_POINTS: usize = 256;
/// The most rows that a point may be about.
pub const MAX_ROWS: u32 = 1 << 20;

/// A time measured at some numbers of rows, for all the rows together (not for each).
///
/// Between two points it is a straight line; before the first it is the first value (a kernel that
/// is made for eight rows takes as long for one); after the last it grows as between the last
/// two, and with one point only in proportion to the rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Numbers of rows, ascending.
    pub rows: Vec<u32>,
    /// The time at each, in nanoseconds per whatever unit the owner of the curve names.
    pub ns: Vec<f64>,
}

impl Curve {
    /// The time for `rows` rows. 0 for none, and for a curve without points.
    pub fn at(&self, rows: f64) -> f64 {
        let (Some(first), Some(last)) =
            (self.point(0), self.point(self.rows.len().wrapping_sub(1)))
        else {
            return 0.0;
        };
        if rows <= 0.0 {
            return 0.0;
        }
        if rows <= first.0 {
            return first.1;
        }
        let next = self.rows.iter().position(|r| f64::from(*r) >= rows);
        if let Some((a, b)) =
            next.and_then(|i| Some((self.point(i.checked_sub(1)?)?, self.point(i)?)))
        {
            return a.1 + (b.1 - a.1) * (rows - a.0) / (b.0 - a.0);
        }
        match self.rows.len().checked_sub(2).and_then(|i| self.point(i)) {
            Some(a) => {
                let slope = ((last.1 - a.1) / (last.0 - a.0)).max(0.0);
                last.1 + slope * (rows - last.0)
            }
            None => last.1 * rows / last.0,
        }
    }

    fn point(&self, i: usize) -> Option<(f64, f64)> {
        Some((f64::from(*self.rows.get(i)?), *self.ns.get(i)?))
    }

    /// Checks numbers and order; `key` names the curve in errors.
    pub(super) fn check(&self, key: &str) -> Result<(), Kind> {
        if self.rows.is_empty() || self.rows.len() > MAX_POINTS {
            let why = format!("{} points, expected 1 to {MAX_POINTS}", self.rows.len());
            return Err(value(format!("{key}.rows"), why));
        }
        if self.rows.len() != self.ns.len() {
            let why = format!(
                "{} times for {} numbers of rows",
                self.ns.len(),
                self.rows.len()
            );
            return Err(value(format!("{key}.ns"), why));
        }
        let ascending = self.rows.windows(2).all(|p| p[0] < p[1]);
        if !ascending || self.rows[0] == 0 || self.rows.last().is_some_and(|r| *r > MAX_ROWS) {
            let why = format!("expected numbers from 1 to {MAX_ROWS}, ascending");
            return Err(value(format!("{key}.rows"), why));
        }
        self.ns
            .iter()
            .try_for_each(|v| amount(&format!("{key}.ns"), *v))
    }
}
