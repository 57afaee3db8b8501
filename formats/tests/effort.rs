//! What more effort promises: no block errs more than with less, and types with a longer search
//! gain from it.

use formats::blocks::{BlockType, Effort, dequantize_row, quantize_row};

const WIDTH: usize = 256;
const ROWS: usize = 240;

struct Lcg(u32);

impl Lcg {
    /// In −1..1.
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 * (-23f32).exp2() - 1.0
    }

    fn bell(&mut self) -> f32 {
        (self.uniform() + self.uniform() + self.uniform()) * 0.5
    }
}

/// Row `n`, of one of twelve kinds and of a magnitude of its own.
fn row(n: usize) -> Vec<f32> {
    let mut g = Lcg(n as u32 * 7919 + 1);
    let scale = ((n / 12 % 5) as f32 * 3.0 - 9.0).exp2();
    let values = (0..WIDTH).map(|i| {
        let bell = g.bell();
        let tail = 0.05 + g.uniform().abs();
        let x = match n % 12 {
            1 => bell / tail,
            2 => bell / (tail * tail),
            3 if i % 97 == 5 => bell + 40.0,
            0 | 3 => bell,
            4 => bell * 0.1 + 1.0,
            5 => bell * (i / 16) as f32,
            6 if i % 8 == 0 => bell,
            6 => 0.0,
            7 => bell.abs(),
            8 => -bell.abs() - 0.2,
            // Weights that have been in few bits before.
            9 => (bell * 7.0).round() / 7.0,
            10 => bell.signum() * 0.5,
            _ => g.uniform() * ((i / 32) as f32).exp2(),
        };
        x * scale
    });
    values.collect()
}

/// None, like a calibration's, or far apart.
fn importance(n: usize) -> Option<Vec<f32>> {
    let mut g = Lcg(n as u32 + 77);
    let mut of = |f: fn(f32) -> f32| (0..WIDTH).map(|_| f(g.uniform().abs())).collect();
    match n % 3 {
        0 => None,
        1 => Some(of(|u| 0.05 + u.powi(6) * 20.0)),
        _ => Some(of(|u| (u * 16.0 - 8.0).exp2())),
    }
}

/// `Σ w·(x − decoded)²` of each block.
fn errors(ty: BlockType, x: &[f32], w: Option<&[f32]>, effort: Effort) -> (Vec<f64>, Vec<u8>) {
    let mut bytes = vec![0; ty.row_bytes(x.len()).unwrap()];
    quantize_row(ty, x, w, effort, &mut bytes).unwrap();
    let mut y = vec![0.0; x.len()];
    dequantize_row(ty, &bytes, &mut y).unwrap();
    let square =
        |i: usize| w.map_or(1.0, |w| f64::from(w[i])) * (f64::from(x[i]) - f64::from(y[i])).powi(2);
    let blocks = (0..x.len()).step_by(ty.block_len());
    let sums = blocks.map(|first| (first..first + ty.block_len()).map(square).sum());
    (sums.collect(), bytes)
}

/// No block of any type; which types gain, and how much at least, is what the documentation of
/// `Effort` says.
#[test]
fn more_effort_never_errs_more() {
    for ty in BlockType::encodable() {
        let (mut gained, mut rows) = (0.0_f64, 0.0_f64);
        let mut other_bytes = 0;
        for n in 0..ROWS {
            let (x, w) = (row(n), importance(n / 12));
            let (normal, quick) = errors(ty, &x, w.as_deref(), Effort::Normal);
            let (high, long) = errors(ty, &x, w.as_deref(), Effort::High);
            for (block, (n_error, h_error)) in normal.iter().zip(&high).enumerate() {
                // Importances are rounded when they are made relative to a block's largest.
                assert!(
                    *h_error <= n_error * (1.0 + 1e-6),
                    "{ty}, row {n}, block {block}: {h_error:e} over {n_error:e}"
                );
            }
            let (normal, high): (f64, f64) = (normal.iter().sum(), high.iter().sum());
            if normal > 0.0 {
                gained += 1.0 - (high / normal).sqrt();
                rows += 1.0;
            }
            other_bytes += usize::from(quick != long);
        }
        let gained = gained / rows.max(1.0);
        let least = match ty {
            // The floats and the exact searches; MXFP4 only under importances far apart.
            BlockType::F32
            | BlockType::F16
            | BlockType::BF16
            | BlockType::TQ1_0
            | BlockType::TQ2_0
            | BlockType::MXFP4 => 0.0,
            _ => 0.001,
        };
        if least > 0.0 {
            assert!(gained >= least, "{ty}: {gained}");
        } else if ty != BlockType::MXFP4 {
            assert_eq!(other_bytes, 0, "{ty}");
        }
    }
}
