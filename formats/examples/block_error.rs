//! What each block type loses on a table of weights, and how long encoding takes:
//! `cargo run --release -p formats --example block_error -- TABLE [OPTIONS]`.
//!
//! `TABLE` is a safetensors file, whose first 2-D F16 tensor is read, or raw little-endian F16.
//! One line per type: bits per weight, relative RMSE `sqrt(Σ(x − x̂)² / Σx²)`, the same with
//! importance weights where asked for, and nanoseconds per weight on one thread.
//!
//! The figures in the documentation are of the table in PyPI's `wordllama==0.4.0.post1`
//! (32000 × 256, `wordllama/weights/l2_supercat_256.safetensors`).

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use formats::blocks::{BlockType, Effort, dequantize_row, quantize_row};
use half::f16;

const USAGE: &str =
    "usage: block_error TABLE [--width N] [--rows N] [--types T,T,…] [--effort E] [--weighted] [--json]
  --width N     weights in a row of a raw table [default: 256]; of another width, rows are joined
                until they are whole blocks
  --rows N      only the first N rows
  --types T,…   only these types
  --effort E    normal or high [default: normal]
  --weighted    encode with importances, and print the weighted error beside the plain one
  --json        one object on standard output";

struct Args {
    table: String,
    width: usize,
    rows: usize,
    types: Vec<BlockType>,
    effort: Effort,
    weighted: bool,
    json: bool,
}

fn args() -> Result<Args, Box<dyn Error>> {
    let mut out = Args {
        table: String::new(),
        width: 256,
        rows: usize::MAX,
        types: BlockType::encodable().collect(),
        effort: Effort::Normal,
        weighted: false,
        json: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--width" => out.width = value()?.parse()?,
            "--rows" => out.rows = value()?.parse()?,
            "--effort" => out.effort = value()?.parse()?,
            "--types" => {
                let names = value()?;
                out.types = names.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--weighted" => out.weighted = true,
            "--json" => out.json = true,
            _ if arg.starts_with('-') || !out.table.is_empty() => return Err(USAGE.into()),
            _ => out.table = arg,
        }
    }
    if out.table.is_empty() || out.width == 0 {
        return Err(USAGE.into());
    }
    Ok(out)
}

/// The values of the table and the width of its rows.
fn read(args: &Args) -> Result<(Vec<f32>, usize), Box<dyn Error>> {
    let bytes = std::fs::read(&args.table)?;
    let (data, width) = match first_f16_tensor(&bytes) {
        Some(found) => found,
        None => (&bytes[..], args.width),
    };
    let halves = data.as_chunks::<2>().0.iter();
    let mut values: Vec<f32> = halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect();
    values.truncate(args.rows.saturating_mul(width));
    values.truncate(values.len() / width * width);
    if values.is_empty() {
        return Err(format!("{}: no whole row of {width} F16 values", args.table).into());
    }
    Ok((values, width))
}

/// Data and row length of the first F16 matrix; `None` when this is no safetensors file.
fn first_f16_tensor(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (size, rest) = bytes.split_first_chunk::<8>()?;
    let size = usize::try_from(u64::from_le_bytes(*size)).ok()?;
    let (header, data) = rest.split_at_checked(size)?;
    let header: serde_json::Value = serde_json::from_slice(header).ok()?;
    header.as_object()?.values().find_map(|t| {
        let shape = t.get("shape")?.as_array()?;
        let [from, to] = t.get("data_offsets")?.as_array()?.as_slice() else {
            return None;
        };
        let at = |v: &serde_json::Value| usize::try_from(v.as_u64()?).ok();
        if t.get("dtype")? != "F16" || shape.len() != 2 {
            return None;
        }
        Some((data.get(at(from)?..at(to)?)?, at(&shape[1])?))
    })
}

/// Importances as a calibration gives them: one per column, most of them alike, some far larger.
fn importances(width: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..width)
        .map(|_| 0.05 + uniform().powi(6) * 20.0)
        .collect()
}

#[derive(Default)]
struct Figures {
    rmse: f64,
    weighted_rmse: f64,
    encode_ns: f64,
    decode_ns: f64,
}

fn measure(
    ty: BlockType,
    effort: Effort,
    values: &[f32],
    width: usize,
    weights: Option<&[f32]>,
) -> Result<Figures, Box<dyn Error>> {
    let mut coded = vec![0; ty.row_bytes(width).ok_or("rows are not whole blocks")?];
    let mut back = vec![0.0; width];
    let mut sums = [[0.0_f64; 2]; 2];
    let (mut encode, mut decode) = (0.0, 0.0);
    for row in values.chunks_exact(width) {
        let start = Instant::now();
        quantize_row(ty, row, weights, effort, &mut coded)?;
        encode += start.elapsed().as_secs_f64();
        let start = Instant::now();
        dequantize_row(ty, &coded, &mut back)?;
        decode += start.elapsed().as_secs_f64();
        for (i, (a, b)) in row.iter().zip(&back).enumerate() {
            let w = weights.map_or(1.0, |w| f64::from(w[i]));
            let (x, miss) = (f64::from(*a), f64::from(*a) - f64::from(*b));
            sums[0][0] += miss * miss;
            sums[0][1] += x * x;
            sums[1][0] += w * miss * miss;
            sums[1][1] += w * x * x;
        }
    }
    let n = values.len() as f64;
    let relative = |[miss, all]: [f64; 2]| if all > 0.0 { (miss / all).sqrt() } else { 0.0 };
    Ok(Figures {
        rmse: relative(sums[0]),
        weighted_rmse: relative(sums[1]),
        encode_ns: encode * 1e9 / n,
        decode_ns: decode * 1e9 / n,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = args()?;
    let (values, width) = read(&args)?;
    let mut out = std::io::stdout().lock();
    if !args.json {
        writeln!(out, "{} rows of {width}", values.len() / width)?;
        writeln!(
            out,
            "type      bits/w      rmse  weighted  enc ns/w  dec ns/w"
        )?;
    }
    let mut types = serde_json::Map::new();
    for ty in args.types {
        // Rows joined until they are whole blocks.
        let mut joined = width;
        while !joined.is_multiple_of(ty.block_len()) {
            joined += width;
        }
        let weights = args.weighted.then(|| importances(joined));
        let whole = values.len() / joined * joined;
        let f = measure(
            ty,
            args.effort,
            &values[..whole],
            joined,
            weights.as_deref(),
        )?;
        let bits = ty.bits_per_weight();
        if args.json {
            let mut one = serde_json::json!({
                "bits_per_weight": bits,
                "relative_rmse": f.rmse,
                "encode_ns_per_weight": f.encode_ns,
                "decode_ns_per_weight": f.decode_ns,
            });
            if args.weighted {
                one["weighted_relative_rmse"] = f.weighted_rmse.into();
            }
            types.insert(ty.to_string(), one);
            continue;
        }
        let mut line = format!("{:<8} {bits:>7.4} {:>9.5}", ty.name(), f.rmse);
        if args.weighted {
            write!(line, " {:>9.5}", f.weighted_rmse)?;
        } else {
            line += "         -";
        }
        writeln!(out, "{line} {:>9.1} {:>9.2}", f.encode_ns, f.decode_ns)?;
        out.flush()?;
    }
    if args.json {
        let all = serde_json::json!({
            "rows": values.len() / width,
            "width": width,
            "types": types,
        });
        writeln!(out, "{all}")?;
    }
    Ok(())
}
