//! Planes put together again are the blocks, however they were made; wrong sizes are errors.

use shaders::blocks::{ALL, BlockShader};
use shaders::repack::{Layout, ROW_STEP, RepackError};

fn table_of(block: &BlockShader) -> Vec<u32> {
    let words = block.table.map_or(0, |t| t.words() as u32);
    (0..words).map(|w| w.wrapping_mul(0x9e37_79b9)).collect()
}

/// Bytes in which neighbours differ, also a block or a row apart.
fn bytes(n: usize) -> Vec<u8> {
    let word = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9).rotate_left(13);
    (0..n).map(|i| word(i) as u8).collect()
}

/// The shapes of each type: one row and several, odd numbers of blocks.
fn shapes(block: &BlockShader) -> Vec<(usize, usize)> {
    let rows = [1, 2, 3, 4, 7, 33].into_iter();
    if block.block_len == 1 {
        rows.flat_map(|r| [1, 31, 32, 33, 100].map(|c| (r, c)))
            .collect()
    } else {
        rows.flat_map(|r| [1, 2, 3, 5].map(|c| (r, c * block.block_len)))
            .collect()
    }
}

/// GGML's rows from the buffer.
fn together(block: &BlockShader, layout: &Layout, planes: &[u8]) -> Vec<u8> {
    let (rows, cols) = (layout.rows as usize, layout.cols as usize);
    let blocks = cols / block.block_len;
    let padded = if block.block_len == 1 {
        layout.runs as usize * 32
    } else {
        blocks
    };
    let mut out = vec![0; rows * blocks * block.block_bytes];
    for (b, bytes) in out.chunks_exact_mut(block.block_bytes).enumerate() {
        let b = b / blocks * padded + b % blocks;
        for (p, plane) in block.planes.iter().enumerate() {
            let at = layout.plane[p] as usize * 4 + b * plane.bytes();
            bytes[plane.start..plane.end].copy_from_slice(&planes[at..at + plane.bytes()]);
        }
    }
    out
}

#[test]
fn planes_put_together_are_the_rows() {
    for block in ALL {
        for (rows, cols) in shapes(block) {
            let what = format!("{} {rows} × {cols}", block.name);
            let (given, table) = (
                bytes(rows * cols / block.block_len * block.block_bytes),
                table_of(block),
            );
            let mut planes = vec![255; 7];
            let layout = block
                .repack(rows, cols, &given, &table, &mut planes)
                .unwrap();
            assert_eq!(planes.len(), layout.bytes, "{what}");
            assert!(layout.plane.iter().all(|p| p % 4 == 0), "{what}");
            assert_eq!(together(block, &layout, &planes), given, "{what}");
            let words: &[u8] = bytemuck::cast_slice(&table);
            assert_eq!(&planes[layout.table()], words, "{what}");
            // No more bytes than GGML has, but for the padding.
            let padding = 16 * (block.planes.len() + 1);
            if block.block_len > 1 {
                assert!(
                    layout.bytes <= given.len() + words.len() + padding,
                    "{what}"
                );
            }
            // In pieces: the same bytes, in segments that a copy of buffers may have.
            let row_bytes = given.len() / rows;
            let mut pieces = vec![0; layout.bytes];
            for start in (0..rows).step_by(ROW_STEP) {
                let part = start..rows.min(start + ROW_STEP);
                let given = &given[part.start * row_bytes..part.end * row_bytes];
                for p in 0..block.planes.len() {
                    let segment = layout.segment(p, part.clone()).unwrap();
                    assert_eq!(segment.start % 4, 0, "{what}");
                    let out = &mut pieces[segment];
                    layout.gather(p, part.clone(), given, out).unwrap();
                }
            }
            pieces[layout.table()].copy_from_slice(words);
            assert!(pieces == planes, "{what} in pieces");
        }
    }
}

#[test]
fn wrong_sizes_are_errors() {
    for block in ALL {
        let (len, table) = (block.block_len, table_of(block));
        let given = bytes(3 * 2 * block.block_bytes);
        let mut out = Vec::new();
        for (bytes, words) in [
            (&given[1..], &table[..]),
            (&[], &table),
            (&given, &[&table[..], &[0]].concat()),
        ] {
            let got = block.repack(3, 2 * len, bytes, words, &mut out);
            assert!(
                matches!(got, Err(RepackError::Bytes { .. })),
                "{}",
                block.name
            );
        }
        if len > 1 {
            let got = block.layout(1, len + 1);
            assert!(
                matches!(got, Err(RepackError::Columns { .. })),
                "{}",
                block.name
            );
        }
        let most = usize::MAX / len * len;
        for (rows, cols) in [(most, len), (1, most), (most, most), (1 << 20, len << 24)] {
            let got = block.layout(rows, cols);
            assert!(
                matches!(got, Err(RepackError::TooLarge { .. })),
                "{}",
                block.name
            );
        }
        let layout = block.layout(3, 2 * len).unwrap();
        for (plane, rows) in [(block.planes.len(), 0..3), (0, 0..4), (0, 4..4)] {
            let got = layout.segment(plane, rows);
            assert!(
                matches!(got, Err(RepackError::Range { .. })),
                "{}",
                block.name
            );
        }
        assert!(layout.gather(0, 0..3, &given, &mut [0; 1]).is_err());
        assert!(layout.gather(0, 0..1, &given, &mut []).is_err());
        // Nothing is a matrix too.
        for (rows, cols) in [(0, len), (3, 0), (0, 0)] {
            block.repack(rows, cols, &[], &table, &mut out).unwrap();
        }
    }
}
