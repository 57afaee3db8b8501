//! TAB-Q, token-wise adaptive bit quantisation: each row gets its own asymmetric min/max codes,
//! and as few bits as its distortion allows.

use half::f16;

use super::DecodeError;
use super::cursor::Reader;

/// Set in a row's head when `min` and `step` are f32 instead of f16.
const WIDE: u8 = 0x10;
const BITS: u8 = 0x0f;

/// What a row's codes mean: `x = min + step · code`, one multiplication and one addition in f32,
/// not fused.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// Bits of a code, 0 to 8; 0 says that every value is `min` and no codes follow.
    pub(super) bits: u8,
    pub(super) min: f32,
    /// Above zero where there are bits, zero where there are none.
    pub(super) step: f32,
}

fn levels(bits: u8) -> f32 {
    ((1u32 << bits) - 1) as f32
}

/// The f16 at or below `x`, which is finite. May be minus infinity.
fn f16_below(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() <= x {
        near
    } else {
        towards(near, false)
    }
}

/// The f16 at or above `x`, which is finite. May be infinity.
fn f16_above(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() >= x {
        near
    } else {
        towards(near, true)
    }
}

/// The neighbour of `h`, upwards or downwards.
fn towards(h: f16, up: bool) -> f16 {
    let bits = h.to_bits();
    let magnitude = bits & 0x7fff;
    let negative = bits & 0x8000 != 0;
    f16::from_bits(if magnitude == 0 {
        // The smallest subnormal of the wanted sign.
        if up { 0x0001 } else { 0x8001 }
    } else if negative == up {
        bits - 1
    } else {
        bits + 1
    })
}

/// Whether `x` is an f16.
fn fits(x: f32) -> bool {
    f16::from_f32(x).to_f32().to_bits() == x.to_bits()
}

impl Scale {
    /// Codes of `bits` bits from `lo` to `hi`, both below 2^120 in magnitude. In f16 (rounded
    /// outwards) where that widens the range by little, else in f32.
    fn new(lo: f32, hi: f32, bits: u8) -> Self {
        if lo == hi {
            return Self {
                bits: 0,
                min: lo,
                step: 0.0,
            };
        }
        let min = f16_below(lo).to_f32();
        if min.is_finite() && lo - min <= (hi - lo) / 64.0 {
            let step = f16_above((hi - min) / levels(bits));
            if step.is_finite() && step.is_normal() {
                let step = step.to_f32();
                return Self { bits, min, step };
            }
        }
        let mut step = (hi - lo) / levels(bits);
        // Rounding, coarse among subnormal numbers, must not cut off the top.
        if step * levels(bits) < hi - lo {
            step = step.next_up();
        }
        Self {
            bits,
            min: lo,
            step,
        }
    }

    fn code(self, x: f32) -> u8 {
        // The cast saturates at both ends of u8.
        (((x - self.min) / self.step + 0.5) as u8).min(levels(self.bits) as u8)
    }

    pub(super) fn value(self, code: u8) -> f32 {
        self.min + self.step * f32::from(code)
    }

    /// Sum of the squared errors of `dense`, in eight lanes.
    fn squared_error(self, dense: &[f32]) -> f64 {
        let mut lanes = [0f64; 8];
        for chunk in dense.chunks(8) {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                let e = f64::from(x) - f64::from(self.value(self.code(x)));
                *lane += e * e;
            }
        }
        lanes.iter().sum()
    }

    /// Chooses the scale for the dense part of a row, which is not empty: `bits` bits, then fewer
    /// (at least one) while the root mean square error is at most `delta · sigma`. A `delta` of 0
    /// stays at `bits`. Equal values take no bits at all.
    pub(super) fn choose(dense: &[f32], sigma: f64, bits: u8, delta: f32) -> Self {
        let (lo, hi) = dense
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| {
                (lo.min(x), hi.max(x))
            });
        let mut scale = Self::new(lo, hi, bits);
        if delta == 0.0 || scale.bits == 0 {
            return scale;
        }
        let rms = f64::from(delta) * sigma;
        let allowed = rms * rms * dense.len() as f64;
        for bits in (1..bits).rev() {
            let fewer = Self::new(lo, hi, bits);
            if fewer.squared_error(dense) > allowed {
                break;
            }
            scale = fewer;
        }
        scale
    }

    /// Appends the code of each value of `dense`, one a byte.
    pub(super) fn encode(self, dense: &[f32], codes: &mut Vec<u8>) {
        if self.bits != 0 {
            codes.extend(dense.iter().map(|&x| self.code(x)));
        }
    }

    /// Appends the head of a row: bits, `min`, and `step` where there are bits.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        if fits(self.min) && fits(self.step) {
            out.push(self.bits);
            out.extend_from_slice(&f16::from_f32(self.min).to_le_bytes());
            if self.bits != 0 {
                out.extend_from_slice(&f16::from_f32(self.step).to_le_bytes());
            }
        } else {
            out.push(self.bits | WIDE);
            out.extend_from_slice(&self.min.to_le_bytes());
            if self.bits != 0 {
                out.extend_from_slice(&self.step.to_le_bytes());
            }
        }
    }

    /// Reads the head of a row.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let what = "row head";
        let head = r.u8(what)?;
        let bits = head & BITS;
        if head & !(BITS | WIDE) != 0 || bits > 8 {
            return Err(DecodeError::Malformed { what });
        }
        let mut number = || {
            Ok::<_, DecodeError>(if head & WIDE == 0 {
                f16::from_le_bytes(r.array(what)?).to_f32()
            } else {
                f32::from_le_bytes(r.array(what)?)
            })
        };
        let min = number()?;
        let step = if bits == 0 { 0.0 } else { number()? };
        let scale = Self { bits, min, step };
        let top = scale.value(levels(bits) as u8);
        if !min.is_finite() || !top.is_finite() || (bits != 0 && step <= 0.0) {
            return Err(DecodeError::Malformed { what });
        }
        Ok(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(bytes: &[u8]) -> Result<Scale, DecodeError> {
        let mut r = Reader::new(bytes);
        let s = Scale::read(&mut r)?;
        r.finish()?;
        Ok(s)
    }

    #[test]
    fn f16_neighbours_bracket() {
        for x in [
            0.0, 1.0, -1.0, 1e-9, -1e-9, 0.1, -0.1, 3.3, -3.3, 65_519.0, -65_519.0,
        ] {
            assert!(
                f16_below(x).to_f32() <= x && f16_above(x).to_f32() >= x,
                "{x}"
            );
            let gap = f16_above(x).to_bits().abs_diff(f16_below(x).to_bits());
            assert!(gap <= 1 || x.abs() < 1e-7, "{x}: {gap}");
        }
        assert_eq!(f16_below(-1e6).to_f32(), f32::NEG_INFINITY);
    }

    #[test]
    fn delta_lowers_the_width_and_holds_the_bound() {
        let row: Vec<f32> = (0..512)
            .map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0)
            .collect();
        let sigma = super::super::ts::trimmed_sigma(&row);
        assert_eq!(Scale::choose(&row, sigma, 8, 0.0).bits, 8);
        let mut last = 9;
        for delta in [0.001, 0.01, 0.05, 0.1, 0.3, 10.0] {
            let s = Scale::choose(&row, sigma, 8, delta);
            assert!(s.bits <= last);
            last = s.bits;
            let rms = (s.squared_error(&row) / row.len() as f64).sqrt();
            assert!(s.bits == 8 || rms <= f64::from(delta) * sigma);
        }
        assert_eq!(last, 1);
    }

    #[test]
    fn equal_values_take_no_codes_and_stay_exact() {
        for x in [0.0, 1.0, 0.1, -70_000.0, 1e-40] {
            let s = Scale::choose(&[x; 5], 1.0, 8, 0.1);
            assert_eq!((s.bits, s.value(0)), (0, x));
            let mut bytes = Vec::new();
            s.write(&mut bytes);
            assert_eq!(head(&bytes), Ok(s));
        }
    }

    #[test]
    fn heads_that_no_encoder_writes_are_refused() {
        let f = |b: u8, min: f32, step: f32| {
            let mut v = vec![b | WIDE];
            v.extend(min.to_le_bytes());
            v.extend(step.to_le_bytes());
            v
        };
        assert!(head(&f(5, -1.0, 0.5)).is_ok());
        for bad in [
            f(9, -1.0, 0.5),
            f(5 | 0x20, -1.0, 0.5),
            f(5, f32::NAN, 0.5),
            f(5, -1.0, f32::NAN),
            f(5, -1.0, 0.0),
            f(5, -1.0, -0.5),
            f(8, 0.0, f32::MAX),
            f(5, f32::INFINITY, 0.5),
        ] {
            assert!(
                matches!(head(&bad), Err(DecodeError::Malformed { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(
            head(&[5, 0, 0]),
            Err(DecodeError::Truncated { .. })
        ));
    }

    proptest! {
        #[test]
        fn errors_stay_below_half_a_step(
            row in proptest::collection::vec(-1e3f32..1e3, 1..100),
            magnitude in -140i32..110,
            bits in 1u8..=8,
        ) {
            let by = f32::exp2(magnitude as f32 / 2.0);
            let row: Vec<f32> = row.iter().map(|x| x * by * by).collect();
            let s = Scale::choose(&row, 1.0, bits, 0.0);
            let mut bytes = Vec::new();
            s.write(&mut bytes);
            prop_assert_eq!(head(&bytes), Ok(s));
            let mut codes = Vec::new();
            s.encode(&row, &mut codes);
            for (i, &x) in row.iter().enumerate() {
                let y = s.value(codes.get(i).copied().unwrap_or(0));
                // Half a step, and the rounding of three f32 operations.
                let top = s.min.abs().max(x.abs());
                let bound = s.step * 0.5 + top * 4.0 * f32::EPSILON + f32::from_bits(2);
                prop_assert!((x - y).abs() <= bound, "{x} {y} {s:?}");
            }
            // The range is used: the step is not much wider than it must be.
            let span = row.iter().fold(f32::MIN, |a, &b| a.max(b))
                - row.iter().fold(f32::MAX, |a, &b| a.min(b));
            prop_assert!(s.step <= span / levels(bits).max(1.0) * 1.02 + f32::from_bits(2));
        }
    }
}
