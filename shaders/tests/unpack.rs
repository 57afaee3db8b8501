//! Every block type on an adapter against `formats`, and its source before naga.

mod gpu;

use formats::blocks::{self, BlockType, Effort};
use shaders::blocks::{ALL, BlockShader, Table};

/// How far a weight may be from `dequantize_row`, in units in the last place of the largest magnitude of
/// its run of 32. No decoder rounds more than once (a half times a scale times a code has less than 24
/// bits, and a minimum is added last), so a fused multiply-add gives the same bits.
const ULPS: &[(&str, u32)] = &[];

/// Shaders may flush floats below the smallest normal one.
const FLUSHED: f32 = f32::MIN_POSITIVE;

fn tolerance(name: &str) -> u32 {
    ULPS.iter().find(|t| t.0 == name).map_or(0, |t| t.1)
}

/// xorshift: the tests need bytes, not statistics.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 24) as u8).collect()
    }

    /// About as weights are: a sum of uniform numbers, with some large ones.
    fn weight(&mut self) -> f32 {
        let sum: i64 = (0..4).map(|_| (self.next() >> 40) as i64 - (1 << 23)).sum();
        let large = if self.next().is_multiple_of(40) {
            6.0
        } else {
            1.0
        };
        sum as f32 * large * 1e-9
    }
}

/// Where a block's little-endian halves lie.
fn halves(ty: BlockType) -> &'static [usize] {
    match ty {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        BlockType::TQ1_0 => &[52],
        BlockType::TQ2_0 => &[64],
        BlockType::F32 | BlockType::BF16 | BlockType::MXFP4 | BlockType::IQ1_M => &[],
        _ => &[0],
    }
}

/// Random bytes of `n` blocks with finite scales: every third of them below the smallest normal half.
fn random_blocks(ty: BlockType, n: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = random.bytes(n * ty.block_bytes());
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in halves(ty) {
            if random.next().is_multiple_of(3) {
                block[at + 1] &= 0x83;
            }
            if block[at + 1] & 0x7c == 0x7c {
                block[at + 1] ^= 0x40;
            }
        }
        match ty {
            // The upper quarters of four words are the half.
            BlockType::IQ1_M if random.next().is_multiple_of(3) => {
                block[55] &= 0x8f;
                block[53] &= 0x3f;
            }
            BlockType::IQ1_M => block[55] &= 0xbf,
            // 12 times 2 to the power of e - 128.
            BlockType::MXFP4 => block[0] = block[0].min(251),
            BlockType::F32 | BlockType::BF16 => {
                let last = block.len() - 1;
                if block[last] & 0x7f == 0x7f {
                    block[last] ^= 0x40;
                }
            }
            _ => {}
        }
    }
    bytes
}

fn table(table: Table) -> Vec<u32> {
    match table {
        Table::Iq1 => bytemuck::pod_collect_to_vec(&blocks::IQ1_GRID[..]),
        Table::Iq2Xxs => bytemuck::pod_collect_to_vec(&blocks::IQ2_XXS_GRID[..]),
        Table::Iq2Xs => bytemuck::pod_collect_to_vec(&blocks::IQ2_XS_GRID[..]),
        Table::Iq2S => bytemuck::pod_collect_to_vec(&blocks::IQ2_S_GRID[..]),
        Table::Iq3Xxs => bytemuck::pod_collect_to_vec(&blocks::IQ3_XXS_GRID[..]),
        Table::Iq3S => bytemuck::pod_collect_to_vec(&blocks::IQ3_S_GRID[..]),
    }
}

fn type_of(block: &BlockShader) -> BlockType {
    block.name.parse().unwrap()
}

fn table_of(block: &BlockShader) -> Vec<u32> {
    block.table.map(table).unwrap_or_default()
}

/// Compares what the adapter makes of the rows with `dequantize_row`.
fn check(
    block: &'static BlockShader,
    pipeline: &wgpu::ComputePipeline,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) {
    let gpu = gpu::gpu();
    let mut planes = Vec::new();
    let layout = block
        .repack(rows, cols, bytes, &table_of(block), &mut planes)
        .unwrap();
    let runs = rows * layout.runs as usize;
    let (group, results) = gpu.bind(pipeline, &layout, &planes, runs * 32);
    gpu.dispatch(pipeline, &group, runs.div_ceil(64) as u32, 1);
    let got = gpu.read(&results);
    let mut wanted = vec![0.0; rows * cols];
    blocks::dequantize_row(type_of(block), bytes, &mut wanted).unwrap();
    let padded = layout.runs as usize * 32;
    for (row, (got, wanted)) in got.chunks(padded).zip(wanted.chunks(cols)).enumerate() {
        for (run, got) in got.chunks(32).enumerate() {
            let wanted = &wanted[run * 32..cols.min(run * 32 + 32)];
            let largest = wanted.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let unit = f32::from_bits(largest.to_bits() + 1) - largest;
            let bound = unit * tolerance(block.name) as f32;
            for (i, (g, w)) in got.iter().zip(wanted).enumerate() {
                let flushed = *g == 0.0 && w.abs() < FLUSHED;
                assert!(
                    (g - w).abs() <= bound || flushed,
                    "{} {rows} × {cols}, row {row}, run {run}, weight {i}: {g:e} instead of {w:e} on {}",
                    block.name,
                    gpu.name
                );
            }
            assert!(
                got[wanted.len()..].iter().all(|g| *g == 0.0),
                "{}: padding",
                block.name
            );
        }
    }
}

#[test]
fn every_type_decodes_as_on_the_cpu() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for block in ALL {
        let ty = type_of(block);
        let pipeline = gpu::gpu().pipeline(block, gpu::UNPACK);
        // Odd numbers of blocks, so that planes of two bytes begin and end within a word.
        let shapes = match block.block_len {
            1 => [(1, 1), (3, 31), (2, 32), (5, 97)],
            32 => [(1, 32), (3, 96), (2, 32), (7, 160)],
            _ => [(1, 256), (3, 768), (2, 256), (7, 1280)],
        };
        for (rows, cols) in shapes {
            let n = rows * cols / block.block_len;
            check(
                block,
                &pipeline,
                rows,
                cols,
                &random_blocks(ty, n, &mut random),
            );
            if !ty.can_encode() {
                continue;
            }
            let weights: Vec<f32> = (0..rows * cols).map(|_| random.weight()).collect();
            let mut bytes = vec![0; ty.row_bytes(rows * cols).unwrap()];
            blocks::quantize_row(ty, &weights, None, Effort::Normal, &mut bytes).unwrap();
            check(block, &pipeline, rows, cols, &bytes);
        }
    }
}

#[test]
fn the_table_is_that_of_formats() {
    assert_eq!(ALL.len(), BlockType::ALL.len());
    for block in ALL {
        let ty = type_of(block);
        assert_eq!(block.name, ty.name());
        assert_eq!(block.block_len, ty.block_len(), "{ty}");
        assert_eq!(block.block_bytes, ty.block_bytes(), "{ty}");
        assert_eq!(shaders::blocks::block(ty.name()), Some(block));
        if let Some(t) = block.table {
            assert_eq!(t.words(), table(t).len(), "{ty}");
        }
    }
}

#[test]
fn every_source_is_valid() {
    for block in ALL {
        let source = gpu::source(block, gpu::UNPACK);
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{}: {}", block.name, e.emit_to_string(&source)));
        naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32,
        )
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}: {e:?}", block.name));
    }
}
