//! The importance matrix of a model, and what its rows look like at every cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use formats::imatrix::{Boundary, Entry, Imatrix, NORM_QUANTILES, OUTLIER_SIGMAS};
use formats::wire::trimmed_sigma;

use super::windows::windows;
use crate::exec::Executor as _;
use crate::exec::cpu::{CpuExecutor, Observer, Rows, Site};
use crate::role::RunError;
use crate::text::Tokenizer;

/// Rows that go through a half at once.
const CHUNK: usize = 128;

/// Row norms kept per cut; later rows do not count towards the quantiles.
const MOST_NORMS: usize = 1 << 16;

/// What to calibrate on.
#[derive(Clone, Debug)]
pub struct CalibrateOptions {
    /// Tokens of a window.
    pub ctx: usize,
    /// Windows; `None` for as many as the text has.
    pub chunks: Option<usize>,
    /// What the text is called in the file.
    pub dataset: String,
}

/// Sums of squares of one input.
#[derive(Default)]
struct Columns {
    sums: Vec<f64>,
    rows: u64,
}

impl Columns {
    fn add(&mut self, rows: Rows<'_>) {
        for row in rows.iter() {
            self.sums.resize(row.len(), 0.0);
            for (s, x) in self.sums.iter_mut().zip(row) {
                *s += f64::from(*x) * f64::from(*x);
            }
            self.rows += 1;
        }
    }

    fn entry(&self) -> Entry {
        Entry {
            sums: self.sums.iter().map(|s| *s as f32).collect(),
            counts: vec![self.rows as f32],
        }
    }
}

/// One cut's rows.
struct Cut {
    sums: Vec<f64>,
    squares: Vec<f64>,
    largest: Vec<f32>,
    first_largest: Vec<f32>,
    norms: Vec<f32>,
    outliers: [u64; OUTLIER_SIGMAS.len()],
    rows: u64,
}

fn raise(largest: &mut [f32], row: &[f32]) {
    for (l, x) in largest.iter_mut().zip(row) {
        *l = l.max(x.abs());
    }
}

impl Cut {
    fn new(width: usize) -> Self {
        Self {
            sums: vec![0.0; width],
            squares: vec![0.0; width],
            largest: vec![0.0; width],
            first_largest: vec![0.0; width],
            norms: Vec::new(),
            outliers: [0; OUTLIER_SIGMAS.len()],
            rows: 0,
        }
    }

    fn add(&mut self, row: &[f32]) {
        self.rows += 1;
        let mut square = 0.0;
        for ((x, sum), squares) in row.iter().zip(&mut self.sums).zip(&mut self.squares) {
            let x = f64::from(*x);
            *sum += x;
            *squares += x * x;
            square += x * x;
        }
        raise(&mut self.largest, row);
        if self.norms.len() < MOST_NORMS {
            self.norms.push(square.sqrt() as f32);
        }
        let sigma = trimmed_sigma(row);
        for (n, k) in self.outliers.iter_mut().zip(OUTLIER_SIGMAS) {
            let limit = (f64::from(k) * sigma) as f32;
            *n += row.iter().filter(|x| x.abs() >= limit).count() as u64;
        }
    }

    fn append_to(mut self, out: &mut Boundary) {
        let n = self.rows.max(1) as f64;
        for (sum, squares) in self.sums.iter().zip(&self.squares) {
            let mean = sum / n;
            out.mean.push(mean as f32);
            // Rounding can take a constant channel a hair below zero.
            out.sigma
                .push((squares / n - mean * mean).max(0.0).sqrt() as f32);
        }
        out.absmax.extend(&self.largest);
        out.first_row_absmax.extend(&self.first_largest);
        self.norms.sort_by(f32::total_cmp);
        let last = self.norms.len().saturating_sub(1);
        out.row_norms.extend(NORM_QUANTILES.iter().map(|q| {
            let at = (f64::from(*q) * last as f64).round() as usize;
            self.norms.get(at).copied().unwrap_or(0.0)
        }));
        let counts = self.outliers.iter().map(|c| (*c as f64 / n) as f32);
        out.outliers.extend(counts);
    }
}

/// Gathers everything.
struct Collector {
    inputs: BTreeMap<(usize, u8), Columns>,
    cuts: Vec<Cut>,
}

impl Observer for Collector {
    fn input(&mut self, layer: usize, site: Site, rows: Rows<'_>) {
        let columns = self.inputs.entry((layer, site as u8)).or_default();
        columns.add(rows);
    }

    fn hidden(&mut self, layers: usize, first: usize, rows: Rows<'_>) {
        // Behind the last layer nothing is cut.
        let Some(cut) = self.cuts.get_mut(layers - 1) else {
            return;
        };
        for (i, row) in rows.iter().enumerate() {
            if first + i == 0 {
                raise(&mut cut.first_largest, row);
            } else {
                cut.add(row);
            }
        }
    }
}

/// Runs `text` through the parts of a model, in order, and writes down what their matrices meet.
///
/// Sums are in f64 and in one order: the result does not depend on the number of threads.
/// `progress` hears of each finished window.
///
/// # Errors
/// When the text is too short for one window, a part refuses, or an activation is not finite.
pub fn calibrate(
    parts: &[Arc<CpuExecutor>],
    tokenizer: &Tokenizer,
    text: &str,
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Imatrix, RunError> {
    let windows = windows(tokenizer, text, options.ctx, options.chunks)?;
    let Some(front) = parts.first() else {
        return Err(RunError::Request("there is no model to calibrate".into()));
    };
    let hp = front.hparams();
    let (width, n_layer) = (hp.n_embd, hp.n_layer);
    let mut seen = Collector {
        inputs: BTreeMap::new(),
        cuts: (1..n_layer).map(|_| Cut::new(width)).collect(),
    };
    let mut rows = Vec::new();
    for (w, window) in windows.iter().enumerate() {
        let mut caches = parts
            .iter()
            .map(|p| p.new_cache(window.len()))
            .collect::<Result<Vec<_>, _>>()?;
        for ids in window.chunks(CHUNK) {
            front.embed(ids, &mut rows)?;
            for (part, cache) in parts.iter().zip(&mut caches) {
                part.forward_observed(cache, &mut rows, &mut seen)?;
                if part.part().head.is_some() {
                    part.observe_head(&rows, &mut seen)?;
                }
            }
        }
        progress(w + 1, windows.len());
    }
    let im = Imatrix {
        datasets: vec![options.dataset.clone()],
        chunk_count: windows.len() as u32,
        chunk_size: options.ctx as u32,
        entries: entries(parts, &seen.inputs),
        boundary: boundary(seen.cuts, width),
        sensitivity: None,
    };
    let bad = |e: &Entry| e.sums.iter().any(|s| !s.is_finite());
    if let Some((name, _)) = im.entries.iter().find(|(_, e)| bad(e)) {
        return Err(RunError::Request(format!(
            "the activations in front of `{name}` are not finite; the model is damaged"
        )));
    }
    Ok(im)
}

/// The sums under the names of the matrices, as in the model's file.
fn entries(
    parts: &[Arc<CpuExecutor>],
    inputs: &BTreeMap<(usize, u8), Columns>,
) -> BTreeMap<String, Entry> {
    let mut out = BTreeMap::new();
    let mut name = |layer: usize, site: Site, names: &[&str]| {
        if let Some(columns) = inputs.get(&(layer, site as u8)) {
            for n in names {
                out.insert((*n).to_owned(), columns.entry());
            }
        }
    };
    for part in parts {
        let part = part.part();
        for (l, w) in part.layers.clone().zip(&part.blocks) {
            let attn = [&w.attn_q, &w.attn_k, &w.attn_v].map(|t| t.name.as_str());
            name(l, Site::AttnIn, &attn);
            name(l, Site::AttnOutput, &[&w.attn_output.name]);
            name(l, Site::FfnIn, &[&w.ffn_gate.name, &w.ffn_up.name]);
            name(l, Site::FfnDown, &[&w.ffn_down.name]);
        }
        if let Some((_, head)) = &part.head {
            name(part.hparams.n_layer, Site::Head, &[&head.name]);
        }
    }
    out
}

fn boundary(cuts: Vec<Cut>, width: usize) -> Option<Boundary> {
    let mut out = Boundary {
        width,
        cuts: cuts.len(),
        rows: cuts.first()?.rows,
        ..Boundary::default()
    };
    for cut in cuts {
        cut.append_to(&mut out);
    }
    Some(out)
}
