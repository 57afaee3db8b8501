//! `splitrun eval --codecs`: codecs side by side.

use std::path::Path;

use super::args::Eval;
use super::measure::{executors, place, read_text, window};
use super::{note, print_json, print_line};
use crate::measure::{Candidate, CodecsOptions, compare_codecs};
use crate::role::{OpenedModel, RunError, open_model};
use crate::text::Tokenizer;

/// The candidates of a list; `all` among them stands for every one there is.
fn candidates(list: &str, calibrated: bool) -> Result<Vec<Candidate>, RunError> {
    let mut out = Vec::new();
    for word in list.split_whitespace() {
        if word == "all" {
            out.extend(Candidate::all(calibrated));
        } else {
            let one = word.parse().map_err(|e| {
                RunError::Usage(format!(
                    "--codecs takes `all`, or SPECs between spaces: {e}"
                ))
            })?;
            out.push(one);
        }
    }
    if out.is_empty() {
        return Err(RunError::Usage(
            "--codecs is empty; `all` measures every one".into(),
        ));
    }
    Ok(out)
}

pub(super) fn eval_codecs(args: &Eval, text: &Path, list: &str) -> Result<(), RunError> {
    // Wrong words are told before a model is opened.
    candidates(list, true)?;
    let text = read_text(text)?;
    let model = open_model(args.model.model.as_deref())?;
    let OpenedModel::Pair { edge, .. } = &model else {
        return Err(RunError::Usage(
            "--codecs needs a pair: an unsplit model has no boundary".into(),
        ));
    };
    let cut = edge.boundary.clone();
    let candidates = candidates(list, cut.is_some())?;
    let calibration = match &args.calibration {
        Some(path) => Some((read_text(path)?, args.calibration_chunks.get())),
        None => None,
    };
    let tokenizer = Tokenizer::from_metadata(model.metadata())?;
    let execs = executors(model, &place(args)?)?;
    let [front, back] = &execs[..] else {
        return Err(RunError::Request("the pair is not two halves".into()));
    };
    let options = CodecsOptions {
        ctx: window(args),
        chunks: args.chunks.map(usize::from),
        cut,
        candidates,
        calibration,
    };
    let mut progress = |done: usize, of: usize| {
        if done.is_multiple_of(options.candidates.len()) {
            note(&format!("{done} of {of} runs"));
        }
    };
    let report = compare_codecs(front, back, &tokenizer, &text, &options, &mut progress)?;
    if args.json {
        return print_json(&report);
    }
    print_line(&format!(
        "cut {}, rows of {}, {} tokens in {} windows of {}; perplexity without codec {:.4}",
        report.cut,
        report.width,
        report.tokens_scored,
        report.windows,
        report.ctx,
        report.perplexity_no_codec
    ))?;
    print_line(
        "| codec | bytes/token | of 64 rows | largest | KL mean | p99 | max | perplexity | same top | encode µs | decode µs |",
    )?;
    print_line("|---|---|---|---|---|---|---|---|---|---|---|")?;
    for c in &report.codecs {
        let name = if c.asked == c.codec {
            format!("`{}`", c.codec)
        } else {
            format!("`{}` = `{}`", c.asked, c.codec)
        };
        print_line(&format!(
            "| {name} | {:.1} | {:.1} | {} | {:.5} | {:.4} | {:.3} | × {:.4} | {:.1} % | {:.1} | {:.1} |",
            c.bytes_per_token,
            c.bytes_per_token_64,
            c.bytes_max_frame,
            c.kl_mean,
            c.kl_p99,
            c.kl_max,
            c.perplexity_ratio,
            100.0 * c.top1_agreement,
            c.encode_us,
            c.decode_us
        ))?;
    }
    Ok(())
}
