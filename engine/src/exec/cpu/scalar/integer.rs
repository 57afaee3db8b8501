//! Products in whole numbers: the definition. See [`super::super::integer`].

use std::ops::Range;

use super::super::MAX_ROWS;
use super::super::integer::{BLOCK, Codes, Matrix};
use super::{Grouping, PANEL, Panel, grouping, super256, unpack};

/// Rows `rows` of `w`, which lie one behind the other, times all activation rows: `out(r, i)` receives row `i`
/// of the weights times row `r` of the activations.
pub(crate) fn products(
    w: Matrix<'_>,
    rows: Range<usize>,
    x: &Codes,
    out: &mut dyn FnMut(usize, usize, f32),
) {
    assert_eq!(w.tiled, None);
    let (ty, row_bytes) = (w.block_type, w.row_bytes);
    let Grouping { group, min } = grouping(ty);
    let mut panel = Panel {
        q: [0.0; PANEL],
        scale: [0.0; 16],
        min: [0.0; 16],
    };
    let cols = x.per_row() * BLOCK;
    let mut acc = [0.0_f32; MAX_ROWS];
    for first in (0..x.rows()).step_by(MAX_ROWS) {
        let acts = first..x.rows().min(first + MAX_ROWS);
        for i in rows.clone() {
            let row = &w.bytes[i * row_bytes..(i + 1) * row_bytes];
            let acc = &mut acc[..acts.len()];
            acc.fill(0.0);
            for k0 in (0..cols).step_by(PANEL) {
                let n = PANEL.min(cols - k0);
                unpack(ty, row, k0, n, &mut panel);
                let sizes = (group < BLOCK).then(|| {
                    let at = k0 / ty.block_len() * ty.block_bytes();
                    super256::sizes(ty, &row[at..at + ty.block_bytes()])
                });
                for (r, acc) in acts.clone().zip(&mut *acc) {
                    let mut sum = 0.0;
                    for b in 0..n / BLOCK {
                        let x = &x.of(k0 / BLOCK + b)[r];
                        let dot = |k: usize, n: usize| -> i32 {
                            let pairs = panel.q[BLOCK * b + k..][..n].iter().zip(&x.codes[k..]);
                            pairs.map(|(q, c)| *q as i32 * i32::from(*c)).sum()
                        };
                        let mins = &panel.min[b * BLOCK / group..];
                        if let Some((_, z)) = &sizes {
                            let t = z[2 * b] * dot(0, 16) + z[2 * b + 1] * dot(16, 16);
                            if min {
                                *acc = mins[0].mul_add(x.sum[1], *acc);
                                *acc = mins[1].mul_add(x.sum[2], *acc);
                            }
                            sum = (t as f32).mul_add(x.scale, sum);
                        } else {
                            let i = dot(0, BLOCK);
                            *acc = (panel.scale[b] * x.scale).mul_add(i as f32, *acc);
                            if min {
                                *acc = mins[0].mul_add(x.sum[0], *acc);
                            }
                        }
                    }
                    if let Some((unit, _)) = sizes {
                        *acc = unit.mul_add(sum, *acc);
                    }
                }
            }
            for (r, acc) in acts.clone().zip(&*acc) {
                out(r, i, *acc);
            }
        }
    }
}
