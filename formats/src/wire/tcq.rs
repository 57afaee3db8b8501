//! Rows in trellis-coded, entropy-coded form: from values to symbols and back.
//!
//! A row has two numbers of its own, both indices of the grid of `channels`: its *spread* relative
//! to calibration, which decides the probabilities, and its *step* relative to the middle channel.
//! Everything else follows from the pair. What a channel's table has no code for travels exactly.

// What a function of one instruction set calls is compiled for it only when it is inlined.
#![allow(clippy::inline_always)]

use super::channels::{Channels, GRID, index_of, number_of};
use super::codec::Tcq;
use super::entropy::{CLASS_ONE, CLASSES, Reader, Writer, tables};
use super::trellis::{Trellis, next, point};

/// Byte of a row's spread or step that stands for 1.
const UNIT: i32 = 128;
/// Codes of wider channels leave so many low bits to the coder as they are, at most.
const MOST_LOW_BITS: i32 = 12;
/// Values beyond so many spreads do not count towards the spread of a row.
const TRIM: f32 = 5.0;
/// Most rows settle in three or four rounds.
const ROUNDS: usize = 8;
/// Partial sums of a row. Part of the definition: another number gives other last bits.
const LANES: usize = 8;

/// The two bytes in front of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) spread: u8,
    pub(super) step: u8,
}

impl Head {
    /// Size of a step.
    pub(super) fn size(self, channels: &Channels) -> f32 {
        number_of(channels.middle + i32::from(self.step) - UNIT)
    }

    /// The step of a row with this spread. It follows the spread at a quarter of its pace: rows
    /// far from the ordinary matter a little less (measured; see `docs/wire-format.md`). The
    /// first row of a sequence, which every other attends to, gets half the step.
    fn choose(params: Tcq, spread: i32, position: u32) -> Self {
        let spread = spread.clamp(-UNIT, UNIT - 1);
        let first = if position == 0 { GRID } else { 0 };
        let step = index_of(params.step * 0.5) + ((spread + 2) >> 2) - first;
        Self {
            spread: (spread + UNIT) as u8,
            step: (step + UNIT).clamp(0, 255) as u8,
        }
    }
}

/// How one channel of one row is coded.
#[derive(Clone, Copy, Debug, Default)]
struct Class {
    /// Index of the even quantiser's table; the odd one's is behind it.
    table: u8,
    /// Low bits of codes that are not modelled.
    low: u8,
}

impl Class {
    /// For a step of 2^(`ratio` / 16) spreads.
    #[inline]
    fn of(ratio: i32) -> Self {
        let class = ((ratio + 2) >> 2) + CLASS_ONE;
        let low = ((3 - class) >> 2).clamp(0, MOST_LOW_BITS);
        let class = (class + 4 * low).clamp(0, CLASSES as i32 - 1);
        Self {
            table: 2 * class as u8,
            low: low as u8,
        }
    }

    /// The table that holds in a state of the trellis.
    #[inline]
    fn table(self, state: usize) -> usize {
        let odd = if self.low == 0 { state & 1 } else { 0 };
        usize::from(self.table) + odd
    }
}

/// A symbol that waits for the coder, which begins with the last.
#[derive(Clone, Copy, Debug)]
struct Item {
    table: u8,
    low: u8,
    symbol: u8,
    bits: u16,
}

/// Buffers that live from frame to frame.
#[derive(Default)]
pub(super) struct Buffers {
    trellis: Trellis,
    steps: Vec<f32>,
    ratios: Vec<f32>,
    classes: Vec<Class>,
    path: Vec<(u8, i32)>,
    items: Vec<Item>,
    /// Values that travel exactly.
    pub(super) exact: Vec<f32>,
    words: Vec<u16>,
}

/// The root mean square of `row` relative to calibration, without its outliers.
#[inline(always)]
fn spread_of(row: &[f32], channels: &Channels, squares: &mut Vec<f32>) -> f32 {
    squares.clear();
    let each = row.iter().zip(&channels.mean).zip(&channels.inverse);
    squares.extend(each.map(|((x, mean), inverse)| {
        let y = (x - mean) * inverse;
        y * y
    }));
    let (mut limit, mut last, mut mean) = (f32::INFINITY, usize::MAX, 0.0);
    for _ in 0..ROUNDS {
        let (mut sums, mut counts) = ([0f32; LANES], [0u32; LANES]);
        let mut add = |lane: usize, y: f32| {
            let inside = y < limit;
            sums[lane] += if inside { y } else { 0.0 };
            counts[lane] += u32::from(inside);
        };
        let (whole, rest) = squares.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, &y) in chunk.iter().enumerate() {
                add(lane, y);
            }
        }
        for (lane, &y) in rest.iter().enumerate() {
            add(lane, y);
        }
        let kept = counts.iter().sum::<u32>() as usize;
        if kept == 0 || kept == last {
            break;
        }
        last = kept;
        mean = sums.iter().sum::<f32>() / kept as f32;
        limit = TRIM * TRIM * mean;
    }
    mean.sqrt()
}

impl Buffers {
    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.exact.clear();
    }

    #[inline(always)]
    fn classify(&mut self, head: Head, channels: &Channels) {
        let row = channels.middle + i32::from(head.step) - i32::from(head.spread);
        self.classes.clear();
        let classes = channels.spread.iter().map(|s| Class::of(row - s));
        self.classes.extend(classes);
    }

    /// The head of a row, and its values in steps from the means: what the trellis begins with.
    #[inline(always)]
    fn measure(&mut self, row: &[f32], position: u32, params: Tcq, channels: &Channels) -> Head {
        let spread = index_of(spread_of(row, channels, &mut self.steps));
        let head = Head::choose(params, spread, position);
        self.classify(head, channels);
        // A power of two on the grid apart, so no division and no rounding of its own.
        let per_step = number_of(UNIT - channels.middle - i32::from(head.step));
        let (mut limits, mut ratios) = ([0f32; 2 * CLASSES], [0f32; 2 * CLASSES]);
        for class in 0..CLASSES {
            limits[2 * class] = tables()[2 * class].limit();
            ratios[2 * class] = number_of((class as i32 - CLASS_ONE) * (GRID / 4));
        }
        self.steps.clear();
        self.ratios.clear();
        let each = row.iter().zip(&channels.mean).zip(&self.classes);
        self.steps.extend(each.map(|((x, mean), class)| {
            let z = (x - mean) * per_step;
            let limit = limits[usize::from(class.table)] * (1u32 << class.low) as f32;
            if z.abs() < limit { z } else { f32::NAN }
        }));
        let modelled = |class: &Class| {
            if class.low == 0 {
                ratios[usize::from(class.table)]
            } else {
                0.0
            }
        };
        self.ratios.extend(self.classes.iter().map(modelled));
        head
    }

    /// [`measure`](Self::measure) in wider registers; every operation is the same.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn measure_avx2(
        &mut self,
        row: &[f32],
        position: u32,
        params: Tcq,
        channels: &Channels,
    ) -> Head {
        self.measure(row, position, params, channels)
    }

    /// Turns a row into symbols, appended to those before it. Every value is finite.
    pub(super) fn quantise(
        &mut self,
        row: &[f32],
        position: u32,
        params: Tcq,
        channels: &Channels,
    ) -> Head {
        #[cfg(target_arch = "x86_64")]
        let head = if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, it was asked for.
            unsafe { self.measure_avx2(row, position, params, channels) }
        } else {
            self.measure(row, position, params, channels)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let head = self.measure(row, position, params, channels);
        self.path.clear();
        self.trellis
            .quantise(&self.steps, &self.ratios, &mut self.path);
        let tables = tables();
        let each = self.path.iter().zip(&self.classes);
        for ((&(state, k), class), (&z, &x)) in each.zip(self.steps.iter().zip(row)) {
            let index = class.table(usize::from(state));
            let table = &tables[index];
            let (symbol, low) = if z.is_nan() {
                self.exact.push(x);
                (table.escape(), 0)
            } else {
                (((k >> class.low) + table.most) as usize, class.low)
            };
            self.items.push(Item {
                table: index as u8,
                low,
                symbol: symbol as u8,
                bits: (k & ((1 << low) - 1)) as u16,
            });
        }
        head
    }

    /// Appends the symbols of all rows to `out`.
    pub(super) fn write(&mut self, seed: u32, out: &mut Vec<u8>) {
        let mut writer = Writer::new(seed, &mut self.words);
        let mut exact = self.exact.iter().rev();
        let tables = tables();
        for item in self.items.iter().rev() {
            let table = &tables[usize::from(item.table)];
            let symbol = usize::from(item.symbol);
            if symbol == table.escape() {
                let bits = exact.next().map_or(0, |x| x.to_bits());
                writer.put_bits(bits & 0x3ff, 10);
                writer.put_bits(bits >> 10 & 0x7ff, 11);
                writer.put_bits(bits >> 21, 11);
            } else if item.low > 0 {
                writer.put_bits(u32::from(item.bits), u32::from(item.low));
            }
            writer.put(table, symbol);
        }
        writer.finish(out);
    }

    /// Reads a row. Any bytes give values; whether they were a row's, the end of the coder tells.
    pub(super) fn read(
        &mut self,
        reader: &mut Reader<'_>,
        head: Head,
        channels: &Channels,
        row: &mut [f32],
    ) {
        self.classify(head, channels);
        let size = head.size(channels);
        let tables = tables();
        let mut state = 0;
        for ((x, class), mean) in row.iter_mut().zip(&self.classes).zip(&channels.mean) {
            let table = &tables[class.table(state)];
            let symbol = reader.symbol(table);
            if symbol == table.escape() {
                let high = reader.bits(11) << 21;
                let middle = reader.bits(11) << 10;
                *x = f32::from_bits(high | middle | reader.bits(10));
                state = next(state, 0);
                continue;
            }
            let mut k = symbol as i32 - table.most;
            if class.low > 0 {
                k = k << class.low | reader.bits(u32::from(class.low)) as i32;
            }
            *x = mean + point(state, k) as f32 * size;
            state = next(state, k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_every_ratio() {
        for ratio in -2000..2000 {
            let c = Class::of(ratio);
            assert!(usize::from(c.table) < 2 * CLASSES && c.table.is_multiple_of(2));
            // Within the reach of the tables the two parts say the ratio again.
            let said = 4 * (i32::from(c.table) / 2 - CLASS_ONE) - GRID * i32::from(c.low);
            if (-15 * GRID..=2 * GRID).contains(&ratio) {
                assert!((said - ratio).abs() <= 2, "{ratio}: {c:?}");
            }
        }
    }

    #[test]
    fn the_spread_of_a_row_does_not_feel_spikes() {
        let channels = Channels::new(&[1.0; 64], &[2.0; 64]).unwrap();
        let mut row: Vec<f32> = (0..64)
            .map(|i| if i % 2 == 0 { 5.0 } else { -3.0 })
            .collect();
        let mut room = Vec::new();
        assert_eq!(spread_of(&row, &channels, &mut room), 2.0);
        row[9] = 22_000.0;
        row[10] = -3e38;
        assert_eq!(spread_of(&row, &channels, &mut room), 2.0);
        assert_eq!(spread_of(&[1.0; 64], &channels, &mut room), 0.0);
    }
}
