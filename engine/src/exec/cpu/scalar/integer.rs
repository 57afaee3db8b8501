//! Products in whole numbers: the definition. See [`super::super::integer`].

use std::ops::Range;

use formats::blocks::BlockType;

use super::super::MAX_ROWS;
use super::super::integer::{BLOCK, Codes};
use super::{Grouping, PANEL, Panel, grouping, unpack};

/// Weight rows `rows` times all activation rows: `out(r, i)` receives row `i` of the weights times
/// row `r` of the activations.
pub(crate) fn products(
    ty: BlockType,
    weights: &[u8],
    row_bytes: usize,
    rows: Range<usize>,
    x: &Codes,
    out: &mut dyn FnMut(usize, usize, f32),
) {
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
            let row = &weights[i * row_bytes..(i + 1) * row_bytes];
            let acc = &mut acc[..acts.len()];
            acc.fill(0.0);
            for k0 in (0..cols).step_by(PANEL) {
                let n = PANEL.min(cols - k0);
                unpack(ty, row, k0, n, &mut panel);
                for g in 0..n / group {
                    let q = &panel.q[g * group..(g + 1) * group];
                    let at = k0 + g * group;
                    // All of a block, its first or its last half.
                    let part = if group == BLOCK {
                        0
                    } else {
                        1 + at % BLOCK / 16
                    };
                    for (acc, x) in acc.iter_mut().zip(&x.of(at / BLOCK)[acts.clone()]) {
                        let codes = &x.codes[at % BLOCK..][..group];
                        let pairs = q.iter().zip(codes);
                        let i: i32 = pairs.map(|(q, c)| *q as i32 * i32::from(*c)).sum();
                        *acc = (panel.scale[g] * x.scale).mul_add(i as f32, *acc);
                        if min {
                            *acc = panel.min[g].mul_add(x.sum[part], *acc);
                        }
                    }
                }
            }
            for (r, acc) in acts.clone().zip(&*acc) {
                out(r, i, *acc);
            }
        }
    }
}
