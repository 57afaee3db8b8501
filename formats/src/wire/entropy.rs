//! Static probabilities of codes, and the coder that spends their bits: rANS (Duda, "Asymmetric
//! numeral systems", 2013) with one state of 31 bits and words of 16.
//!
//! A channel's code is distributed as a Gaussian cut into cells. The tables depend on the ratio of
//! step and spread alone, in quarters of a factor of two, and are made from the four basic
//! operations of f64: the same on every machine. No table travels.

use std::sync::OnceLock;

/// Bits of a frequency: those of one table add up to `TOTAL`.
pub(super) const PRECISION: u32 = 12;
const TOTAL: u32 = 1 << PRECISION;
/// The state stays in `LOW..LOW << 16` between symbols.
const LOW: u32 = 1 << 15;
/// Bits of the first state that the caller chooses, and gets back from the decoder.
pub(super) const SEED_BITS: u32 = 15;

/// Classes of step / spread: 2^(-16 / 4) to 2^(8 / 4).
pub(super) const CLASSES: usize = 25;
/// Class of step / spread = 1.
pub(super) const CLASS_ONE: i32 = 16;
/// A value this many spreads from its mean is an outlier.
const TAU: f64 = 6.0;

/// e^-x for 0 ≤ x ≤ 1000 by its series for x / 1024, squared ten times.
fn exp_neg(x: f64) -> f64 {
    let y = -x / 1024.0;
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..16 {
        term *= y / f64::from(n);
        sum += term;
    }
    for _ in 0..10 {
        sum *= sum;
    }
    sum
}

/// Mass of a standard normal distribution between 0 and `x` ≥ 0, by the series
/// φ(x) · Σ x^(2n + 1) / (1 · 3 · … · (2n + 1)) (Abramowitz and Stegun, 26.2.11).
fn normal_mass(x: f64) -> f64 {
    const ONE_OVER_ROOT_TAU: f64 = 0.398_942_280_401_432_7;
    if x > 9.0 {
        return 0.5;
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    ONE_OVER_ROOT_TAU * exp_neg(x * x / 2.0) * sum
}

/// One symbol: its share, and a multiplication instead of a division by it (Alverson, "Integer
/// division using reciprocals", 1991).
#[derive(Clone, Copy, Debug, Default)]
struct Symbol {
    start: u16,
    frequency: u16,
    reciprocal: u32,
    shift: u32,
    bias: u32,
}

impl Symbol {
    fn new(start: u32, frequency: u32) -> Self {
        let (reciprocal, shift, bias) = if frequency < 2 {
            (u32::MAX, 0, start + TOTAL - 1)
        } else {
            let shift = u32::BITS - (frequency - 1).leading_zeros();
            let up = (1u64 << (shift + 31)).div_ceil(u64::from(frequency));
            (up as u32, shift - 1, start)
        };
        Self {
            start: start as u16,
            frequency: frequency as u16,
            reciprocal,
            shift,
            bias,
        }
    }
}

/// The codes −`most` to `most` of one class in one of the two quantisers, then the escape.
#[derive(Debug)]
pub(super) struct Table {
    /// The largest code.
    pub(super) most: i32,
    symbols: Vec<Symbol>,
    /// The symbol of each of the shares.
    owner: Vec<u8>,
}

/// Upper end of the cell of code `k` ≥ 0, in steps. The points are 2k steps from the mean, and
/// 2k − 1 in the odd quantiser but for its zero (see `trellis`).
fn cell_end(k: i32, odd: bool) -> f64 {
    match (odd, k) {
        (false, k) => f64::from(2 * k + 1),
        (true, 0) => 0.5,
        (true, k) => f64::from(2 * k),
    }
}

impl Table {
    fn new(class: i32, odd: bool) -> Self {
        // 2^(class / 4 - 4) by square roots, which IEEE defines exactly.
        let quarter = 2f64.sqrt().sqrt();
        let mut ratio = 1.0 / 16.0;
        for _ in 0..class {
            ratio *= quarter;
        }
        let most = (TAU / (2.0 * ratio)).ceil() as i32 + 1;
        let count = 2 * most as usize + 2;
        let spare = f64::from(TOTAL) - count as f64;
        let mass = |k: i32| {
            let k = k.abs();
            let end = normal_mass(cell_end(k, odd) * ratio);
            if k == 0 {
                2.0 * end
            } else {
                end - normal_mass(cell_end(k - 1, odd) * ratio)
            }
        };
        let mut frequencies: Vec<u32> = (-most..=most)
            .map(|k| 1 + (mass(k).max(0.0) * spare).floor() as u32)
            .collect();
        frequencies.push(1);
        // What rounding left goes to the middle.
        let sum: u32 = frequencies.iter().sum();
        frequencies[most as usize] += TOTAL - sum;
        let (mut symbols, mut owner, mut start) = (Vec::new(), Vec::new(), 0);
        for (i, &frequency) in frequencies.iter().enumerate() {
            symbols.push(Symbol::new(start, frequency));
            owner.resize((start + frequency) as usize, i as u8);
            start += frequency;
        }
        Self {
            most,
            symbols,
            owner,
        }
    }

    /// The symbol of the escape.
    pub(super) fn escape(&self) -> usize {
        self.symbols.len() - 1
    }

    /// From this magnitude on, in steps, a value is an outlier: the nearest points of all four
    /// subsets of a smaller one have codes.
    pub(super) fn limit(&self) -> f32 {
        (2 * self.most - 2) as f32
    }
}

/// The tables of all classes, the even quantiser's before the odd one's.
pub(super) fn tables() -> &'static [Table] {
    static TABLES: OnceLock<Vec<Table>> = OnceLock::new();
    TABLES.get_or_init(|| {
        (0..2 * CLASSES)
            .map(|i| Table::new((i / 2) as i32, i % 2 == 1))
            .collect()
    })
}

/// Writes symbols from the last to the first.
pub(super) struct Writer<'a> {
    state: u32,
    /// Words, the last to be read first.
    words: &'a mut Vec<u16>,
}

impl<'a> Writer<'a> {
    /// `seed` has [`SEED_BITS`]. `words` is replaced.
    pub(super) fn new(seed: u32, words: &'a mut Vec<u16>) -> Self {
        words.clear();
        Self {
            state: LOW | (seed & (LOW - 1)),
            words,
        }
    }

    #[inline]
    fn make_room(&mut self, frequency: u32) {
        // frequency ≤ 2^12, so this is at most 2^31, which no state reaches.
        if self.state >= frequency << (31 - PRECISION) {
            self.words.push(self.state as u16);
            self.state >>= 16;
        }
    }

    #[inline]
    pub(super) fn put(&mut self, table: &Table, symbol: usize) {
        let s = table.symbols[symbol];
        let frequency = u32::from(s.frequency);
        self.make_room(frequency);
        let q = ((u64::from(self.state) * u64::from(s.reciprocal)) >> 32) as u32 >> s.shift;
        self.state = self.state + s.bias + q * (TOTAL - frequency);
    }

    /// `count` ≤ 12 bits as they are.
    #[inline]
    pub(super) fn put_bits(&mut self, value: u32, count: u32) {
        let left = PRECISION - count;
        self.make_room(1 << left);
        let rest = self.state & ((1 << left) - 1);
        self.state = ((self.state >> left) << PRECISION) | (value << left) | rest;
    }

    /// Appends state and words in the order of reading.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.state.to_le_bytes());
        out.extend(self.words.iter().rev().flat_map(|w| w.to_le_bytes()));
    }
}

/// Reads symbols from the first to the last. Past its end it reads zeros, and says so at
/// [`finish`](Self::finish).
pub(super) struct Reader<'a> {
    state: u32,
    words: std::slice::Iter<'a, [u8; 2]>,
    missing: bool,
}

impl<'a> Reader<'a> {
    /// `None` when there is no state, an impossible one, or half a word.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let (state, words) = bytes.split_first_chunk::<4>()?;
        let state = u32::from_le_bytes(*state);
        let (words, half) = words.as_chunks::<2>();
        (half.is_empty() && (LOW..LOW << 16).contains(&state)).then(|| Self {
            state,
            words: words.iter(),
            missing: false,
        })
    }

    #[inline]
    fn refill(&mut self) {
        if self.state < LOW {
            let word = self.words.next();
            self.missing |= word.is_none();
            let word = word.map_or(0, |w| u32::from(u16::from_le_bytes(*w)));
            self.state = self.state << 16 | word;
        }
    }

    #[inline]
    pub(super) fn symbol(&mut self, table: &Table) -> usize {
        let slot = self.state & (TOTAL - 1);
        let symbol = usize::from(table.owner[slot as usize]);
        let s = table.symbols[symbol];
        self.state = u32::from(s.frequency) * (self.state >> PRECISION) + slot - u32::from(s.start);
        self.refill();
        symbol
    }

    #[inline]
    pub(super) fn bits(&mut self, count: u32) -> u32 {
        let left = PRECISION - count;
        let slot = self.state & (TOTAL - 1);
        self.state = ((self.state >> PRECISION) << left) | (slot & ((1 << left) - 1));
        self.refill();
        slot >> left
    }

    /// The seed, when every word was read and none was missing.
    pub(super) fn finish(self) -> Option<u32> {
        let whole = !self.missing && self.words.as_slice().is_empty() && self.state >> 15 == 1;
        whole.then_some(self.state & (LOW - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_normal_distribution_is_right() {
        // Abramowitz and Stegun, table 26.1.
        for (x, p) in [
            (0.5, 0.191_462_461_274),
            (1.0, 0.341_344_746_069),
            (2.0, 0.477_249_868_052),
            (4.0, 0.499_968_328_758),
            (6.0, 0.499_999_999_013),
        ] {
            assert!((normal_mass(x) - p).abs() < 1e-11, "{x}");
        }
    }

    #[test]
    fn tables_are_whole_and_the_same_everywhere() {
        let mut hash = blake3::Hasher::new();
        for (i, t) in tables().iter().enumerate() {
            let sum: u32 = t.symbols.iter().map(|s| u32::from(s.frequency)).sum();
            assert_eq!((sum, t.owner.len()), (TOTAL, TOTAL as usize), "{i}");
            assert!(t.symbols.len() <= 256 && t.symbols.iter().all(|s| s.frequency > 0));
            for s in &t.symbols {
                hash.update(&s.frequency.to_le_bytes());
            }
        }
        // Part of the format: other tables, another version.
        assert_eq!(
            &hash.finalize().to_hex()[..16],
            "e6d92e202da43184",
            "the tables have changed"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            seed in 0u32..1 << SEED_BITS,
            items in proptest::collection::vec((0usize..2 * CLASSES, any::<u16>(), 0u32..=12), 0..400),
        ) {
            let (mut words, mut out) = (Vec::new(), Vec::new());
            let mut w = Writer::new(seed, &mut words);
            let symbol = |t: usize, s: u16| usize::from(s) % tables()[t].symbols.len();
            for &(t, s, n) in items.iter().rev() {
                w.put_bits(u32::from(s) & ((1 << n) - 1), n);
                w.put(&tables()[t], symbol(t, s));
            }
            w.finish(&mut out);
            let mut r = Reader::new(&out).unwrap();
            for &(t, s, n) in &items {
                prop_assert_eq!(r.symbol(&tables()[t]), symbol(t, s));
                prop_assert_eq!(r.bits(n), u32::from(s) & ((1 << n) - 1));
            }
            prop_assert_eq!(r.finish(), Some(seed));
        }
    }
}
